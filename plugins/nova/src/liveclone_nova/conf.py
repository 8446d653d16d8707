"""The section [liveclone] of nova.conf, on the hosts of nova-compute."""

from __future__ import annotations

from pathlib import Path

import nova.conf
from oslo_config import cfg

CONF = nova.conf.CONF
SHORTEST_KEY = 32  # characters: what `openssl rand -hex 16` prints

GROUP = cfg.OptGroup("liveclone", title="Live snapshots", help="Live snapshots of servers (liveclone-nova).")
OPTIONS = [
    cfg.ListOpt(
        "seal_keys",
        default=[],
        secret=True,
        help="""
Secrets of this cloud, the same on all its hosts, of 32 characters or more each (openssl rand -hex 32).

What belongs to a live snapshot is sealed with the first of them, and a server is started from it only if the seal is of
one of them: the memory of a machine is loaded by QEMU, which is not made to withstand a hostile one, and whoever may
upload images could offer one. To exchange the key put a new one in front; take the old one away when no live snapshot
that it sealed is needed any more. Without a key no live snapshot is taken, and none is started.
""",
    ),
    cfg.BoolOpt(
        "unverified_clones",
        default=False,
        help="""
Start servers also from live snapshots in whose source no agent of liveclone's answered, so that nobody can verify that they
are machines of their own.

Such a server has its source's host name, machine id, SSH host keys, and whatever else was in the memory, and it has its
network at once. It is marked: its system metadata has liveclone_identity=unverified. Where there was an agent, servers are
verified in any case, and those that are not machines of their own are refused in any case.
""",
    ),
]


def register() -> None:
    """Make the section known to Nova's configuration; may be called again."""
    CONF.register_group(GROUP)
    CONF.register_opts(OPTIONS, group=GROUP)


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """Return all, for oslo-config-generator --namespace liveclone_nova."""
    return [(GROUP, OPTIONS)]


def seal_keys() -> list[bytes]:
    """Return the keys, the one that seals first; none if one of them is too short to be a secret."""
    keys = [key.encode() for key in CONF.liveclone.seal_keys]
    return keys if all(len(key) >= SHORTEST_KEY for key in keys) else []


def folder(name: str) -> Path:
    """Return a folder of ours beside `_base`: "states" or "captures"."""
    return Path(CONF.instances_path) / "liveclone" / name


def make_folder(name: str) -> Path:
    """Return the same, which is there now: root's alone, and to be passed through by whom it is opened for."""
    made = folder(name)
    made.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    made.mkdir(mode=0o700, exist_ok=True)
    return made
