"""SSH host keys: a clone that keeps its source's can be impersonated by any of its siblings.

    at once      the old private keys are removed (all types); new ed25519 and ecdsa keys, of the types there were,
                 take their place; sshd is told (SIGHUP: it runs itself anew)
    later, when  a new RSA key, if there was one: it takes seconds of processor time, so ssh-keygen makes it at the
    all is done  lowest priority, after `rest_s` where the host has other clones to bring up; then sshd is told again

Removing comes first: if the making fails, the guest has no host key rather than a shared one, and the host
refuses the clone. sshd's new start costs more than all items together and would compete with the plugging of the
network card, so it waits at the lowest priority until the clone has its network. That shows no old key: sshd looks
at a pending SIGHUP before it looks at a connection. An RSA key in the making is itself state that a clone of this
clone would share, so the next reset kills it and starts over.

Of a snapshot that was scrubbed the keys are absent; a clone makes new ones of the kinds that there were.

NOT HANDLED: keys that sshd_config names outside /etc/ssh/ssh_host_*_key. Their absence from `details` is the
tripwire.
"""

from __future__ import annotations

import os
import signal
import threading

from .. import files, priority, process, scrubbed, sshkey
from ..context import Context
from ..errors import log_exception
from . import Item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Details, Observed

_FOLDER = "/etc/ssh"
_PID_FILE = "/run/sshd.pid"
_MAKING = "/etc/ssh/.liveclone-new"
_RSA_BITS = "3072"  # ssh-keygen's own default
_ECDSA_BITS = 256  # likewise


class SshHostKeys(Item):
    name = "ssh_host_keys"

    def __init__(self) -> None:
        self._rsa: process.Child | None = None  # ssh-keygen at work on a new RSA key
        self._rsa_due = False  # there was an RSA key, and its successor is not there yet
        self._again = threading.Event()  # set by the next reset
        self._turn = 0  # counts resets; what an earlier one left to do gives up

    def observe(self, ctx: Context) -> Observed:
        parts = []
        details = {}
        for kind, path in _find_keys(ctx):
            public = (files.find_text(path + ".pub") or "").split()
            if len(public) >= 2:
                parts.append(f"{kind} {public[1]}")
                details[kind] = sshkey.fingerprint(public[1])
            else:  # no public half: the private one stands for it, under the host's key
                parts.append(f"{kind} {files.find_text(path)}")
                details[kind] = "no public key"
        return "\n".join(parts).encode() or None, details

    def reset(self, ctx: Context) -> Details:
        self._turn += 1
        self._again.set()
        self._again = threading.Event()
        if self._rsa is not None:
            self._rsa.kill()
        old = dict(_find_keys(ctx))
        kinds = {*old, *scrubbed.load(ctx.root)["keys"]}
        if not kinds and not self._rsa_due:
            return {}
        bits = _ecdsa_bits(files.find_text(old["ecdsa"] + ".pub") if "ecdsa" in old else None)
        made = [kind for kind in ("ed25519", "ecdsa") if kind in kinds] or ["ed25519"]
        for kind in sorted(set(old) - set(made)):
            files.remove(old[kind])
            files.remove(old[kind] + ".pub")
            ctx.touched.append(old[kind])
        comment = f"root@{ctx.hostname or ctx.kernel.hostname()}"
        draw = ctx.kernel.draw
        if "ed25519" in made:
            _write_pair(ctx, "ed25519", sshkey.make_ed25519(draw, comment))
        if "ecdsa" in made:
            _write_pair(ctx, "ecdsa", sshkey.make_ecdsa(draw, comment, bits))
        sshd = find_sshd(ctx)
        if sshd is not None:
            priority.put_last(sshd)
            _hang_up(sshd)
            ctx.later.append(lambda: _put_back(ctx, sshd))
        if "rsa" in kinds or self._rsa_due:
            self._rsa_due = True
            turn = self._turn
            rest_s = float(ctx.request.args.get("rest_s") or 0)
            ctx.later.append(lambda: self._make_rsa_later(ctx, comment, turn, rest_s))
            return {"rsa": "a new key is being made"}
        return {}

    def warm(self, ctx: Context) -> None:
        if _find_keys(ctx) or scrubbed.load(ctx.root)["keys"]:
            sshkey.warm()

    def _make_rsa_later(self, ctx: Context, comment: str, turn: int, rest_s: float) -> None:
        """Make it at once, or on a thread of its own when the clones beside this one have had the processors."""
        again = self._again

        def work() -> None:
            again.wait(rest_s)
            if turn == self._turn:
                self._make_rsa(ctx, comment, turn)

        if rest_s:
            threading.Thread(target=work, daemon=True).start()
        else:
            work()

    def _make_rsa(self, ctx: Context, comment: str, turn: int) -> None:
        making = ctx.path(f"{_MAKING}-{turn}")
        name = "ssh_host_rsa_key"
        line = [
            "ssh-keygen",
            "-q",
            "-t",
            "rsa",
            "-b",
            _RSA_BITS,
            "-N",
            "",
            "-C",
            comment,
            "-f",
            f"{making}/{name}",
        ]
        try:
            files.remove_folder(making)
            os.mkdir(making, mode=0o700)
            child = process.start(line)
            self._rsa = child
            try:
                priority.put_last(child.pid)
                if turn != self._turn:
                    child.kill()
            finally:
                code = child.wait()
                if self._rsa is child:
                    self._rsa = None
            if turn != self._turn:
                return
            if code:
                raise RuntimeError(f"ssh-keygen ended with {code}")
            target = ctx.path(f"{_FOLDER}/{name}")
            os.chmod(f"{making}/{name}.pub", 0o644)
            os.rename(f"{making}/{name}.pub", f"{target}.pub")
            os.rename(f"{making}/{name}", target)  # ssh-keygen has made it 0600
            self._rsa_due = False
            sshd = find_sshd(ctx)
            if sshd is not None:
                _hang_up(sshd)
            files.sync([target, f"{target}.pub"])
        except (OSError, RuntimeError):
            log_exception("making the RSA host key")
        finally:
            files.remove_folder(making)


def _find_keys(ctx: Context) -> list[tuple[str, str]]:
    """Return type and path of each private host key, sorted."""
    folder = ctx.path(_FOLDER)
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    keys = [name for name in names if name.startswith("ssh_host_") and name.endswith("_key")]
    return [(name[len("ssh_host_") : -len("_key")], f"{folder}/{name}") for name in keys]


def _ecdsa_bits(public: str | None) -> int:
    kind = (public or "").split(" ")[0]  # "ecdsa-sha2-nistp384"
    digits = kind[len("ecdsa-sha2-nistp") :]
    return int(digits) if digits.isdigit() and sshkey.has_curve(int(digits)) else _ECDSA_BITS


def _write_pair(ctx: Context, kind: str, pair: sshkey.KeyPair) -> None:
    target = f"{_FOLDER}/ssh_host_{kind}_key"
    ctx.replace(target + ".pub", pair.public, 0o644)
    ctx.replace(target, pair.private, 0o600)


def _hang_up(sshd: int) -> None:
    """Let sshd run itself anew."""
    try:
        os.kill(sshd, signal.SIGHUP)
    except ProcessLookupError:
        pass  # whoever starts it again lets it read the new keys


def _put_back(ctx: Context, sshd: int) -> None:
    if _is_sshd(ctx, str(sshd)):
        priority.put_back(sshd)


def find_sshd(ctx: Context) -> int | None:
    """Return the number of the sshd that listens; None where one is started per connection (it reads new keys anyway)."""
    text = (files.find_text(ctx.path(_PID_FILE)) or "").strip()
    if text.isdigit() and _is_sshd(ctx, text):
        return int(text)
    try:
        entries = os.listdir(ctx.path("/proc"))
    except FileNotFoundError:
        return None
    for entry in entries:
        if entry.isdigit() and _is_sshd(ctx, entry):
            status = files.find_text(ctx.path(f"/proc/{entry}/status")) or ""
            if "\nPPid:\t1\n" in status:  # not the process of one connection
                return int(entry)
    return None


def _is_sshd(ctx: Context, pid: str) -> bool:
    try:
        return (files.find_text(ctx.path(f"/proc/{pid}/comm")) or "").strip() == "sshd"
    except OSError:  # it ended between listing and reading (ESRCH)
        return False


ITEM = SshHostKeys
