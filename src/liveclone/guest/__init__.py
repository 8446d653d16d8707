"""The guest agent: gives a clone its own identity from inside, and runs commands for the host.

It travels alone. `pack.py` puts this package into one zipapp, which runs in the guest under whatever
Python 3.8 or later is there, so it imports nothing but the standard library and nothing else of ours,
and of the standard library only what loads quickly (no dataclasses, typing, pathlib, tempfile).

    host                                   guest
    org.liveclone.agent.0  <── lines ──>   port ── channel ── server ─┬─ lifecycle ── items/*, and applications' part
    org.liveclone.exec.0   <── lines ──>   port ── channel ── server ─┼─ jobs ── job (a process and its streams)
                                                                      └─ network ── netlink

Applications take part by `generation` (a file), `subscribers` (a socket), `hooks` and `restart`; `liveclone_app` is the
client for them, a file of its own. `frames` knows lines and no descriptor, `channel` descriptors and no calls, `server`
requests and deadlines and no identity. Two ports, so that a command that floods its output never delays an identity
call. The protocol is docs/agent.md.
"""

VERSION = "0.1.0"
PROTOCOL = 1
