"""Take secrets out of this guest before a capture, and put them back behind it; what is needed for that lies with the host.

    scrub_stop      units stop, their memory is overwritten as they end; /run/liveclone/scrubbed.json says which, and which
                    host keys there were
    scrub_read      the secrets go to the host, which keeps them on its disk
    scrub_remove    each is overwritten in place with zeros, in its blocks and in the page cache, then unlinked
    renew           the agent becomes a new process: what it has read is no longer in its memory, but in free pages
    scrub_clean     free pages are filled, free blocks discarded
    (capture)
    scrub_restore   in the source: each file is as it was
    scrub_start     the units start; in a clone this follows `identify`, when it has host keys of its own

Every call may be asked again, after whatever happened in between: what is done is left alone.

NOT HANDLED: a file that is written between scrub_read and scrub_remove is refused, but one that is written within the
same millisecond is not noticed. A file system that does not write in place (btrfs) keeps old blocks; the proof finds those.
"""

from __future__ import annotations

import binascii
import os
import stat
import threading

from . import files, scrubbed
from .checks import Guest
from .checks.secret_files import FILES, has_mark
from .errors import CallError
from .kernel import Kernel
from .programs import list_programs
from .request import Request
from .sha import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

HOST_KEYS = "/etc/ssh/ssh_host_*_key"
SSH_UNITS = ("ssh.socket", "ssh.service", "sshd.socket", "sshd.service")  # they hold host keys in memory

KEYS = (HOST_KEYS, HOST_KEYS + ".pub", "~/.ssh/authorized_keys*")
HISTORIES = (
    "~/.*_history",
    "~/.lesshst",
    "~/.viminfo",
    "~/.local/share/fish/fish_history",
    "~/.local/state/bash/history",
)

MOST_BYTES = 2 * 1024 * 1024  # of all secrets, in one answer

# The kernel copies an answer into buffers of 32 KiB at the most. One of less than 8 KiB would be an object beside others,
# which nobody can clean; larger ones are pages of their own, and free ones afterwards.
_PAD = " " * 16384


class Scrub:
    """The calls of one agent. `wanted_back` is set when the host asks for `restore`: what is cleaned then need not be."""

    def __init__(self, root: str, kernel: Kernel, wanted_back: threading.Event) -> None:
        self._root = root
        self._kernel = kernel
        self._wanted_back = wanted_back

    def stop(self, request: Request) -> dict[str, Any]:
        """Stop the units named and, if there are host keys, what holds those; returns the ones that ran."""
        named = [str(unit) for unit in request.args.get("units") or []]
        keys = _key_kinds(Guest(self._root))
        state = scrubbed.load(self._root)
        wanted = [*named, *(unit for unit in SSH_UNITS if keys and unit not in named)]
        active = self._active(wanted)
        missing = [unit for unit in named if unit not in active and unit not in state["units"]]
        if missing:
            raise CallError("no-unit", f"{', '.join(missing)} does not run")
        units = [*state["units"], *(unit for unit in active if unit not in state["units"])]
        scrubbed.save(self._root, units, sorted({*state["keys"], *keys}))
        if active:
            _check("stop", active, *self._kernel.stop(active, lambda: self._find_processes(active)))
        return {"units": units}

    def read(self, request: Request) -> dict[str, Any]:
        """Return all secrets: the well-known ones, and the files and folders named."""
        guest = Guest(self._root)
        found = {}
        size = 0
        for path, is_history in _find(guest, [str(path) for path in request.args.get("paths") or []]):
            if path in found:
                continue
            found[path] = entry = _describe(self._full(path))
            entry["path"], entry["history"] = path, is_history
            size += len(entry["data"])
            if size > MOST_BYTES * 4 // 3:
                raise CallError(
                    "too-much", f"the secrets have more than {MOST_BYTES} bytes, {path} among them"
                )
        return {"files": [one for one in found.values() if one["data"]], "pad": _PAD}

    def remove(self, request: Request) -> dict[str, Any]:
        """Overwrite and unlink the files of `{path, digest}` whose content is still the one that the host has."""
        opened: list[tuple[str, int]] = []
        folders = set()
        try:
            for wanted in request.args["files"]:
                full = self._full(str(wanted["path"]))
                try:
                    fd = os.open(full, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise CallError("cannot-remove", f"{wanted['path']}: {error.strerror}") from error
                opened.append((full, fd))
                if not _is_blank(fd) and _digest(fd) != wanted["digest"]:
                    raise CallError("changed", f"{wanted['path']} has just been written to")
            for _, fd in opened:
                _blank(fd)
            for full, fd in opened:
                os.ftruncate(fd, 0)
                if os.fstat(fd).st_nlink == 1:  # else its other names would be lost: it stays, and is empty
                    _unlink(full)
                folders.add(os.path.dirname(full))
        finally:
            for _, fd in opened:
                os.close(fd)
        files.sync(sorted(folders))
        return {"removed": len(opened)}

    def clean(self, request: Request) -> dict[str, Any]:
        """Clean free blocks and free memory. Where units stand still systemd begins anew: it has read their secrets."""
        self._wanted_back.clear()

        def go_on() -> None:
            if self._wanted_back.is_set() or request.answered:
                raise CallError("called-off", "nobody waits for the cleaning any more")

        if any(unit not in SSH_UNITS for unit in scrubbed.load(self._root)["units"]):
            _check("daemon-reexec", [], *self._kernel.systemctl("daemon-reexec"))
        return self._kernel.clean(go_on)

    def restore(self, request: Request) -> dict[str, Any]:
        """Make each file what it was; one that somebody has made anew meanwhile is kept as PATH.new."""
        kept = []
        for entry in request.args["files"]:
            full = self._full(str(entry["path"]))
            if _restore(full, entry):
                kept.append(entry["path"])
        return {"kept": kept}

    def start(self, request: Request) -> dict[str, Any]:
        """Start what was stopped, and the units named: those are known after a reboot, too."""
        named = [str(unit) for unit in request.args.get("units") or []]
        return {"units": scrubbed.finish(self._root, self._kernel, named)}

    def _active(self, units: list[str]) -> list[str]:
        if not units:
            return []
        _, said = self._kernel.systemctl("is-active", *units)
        return [
            unit for unit, word in zip(units, said.split()) if word in ("active", "activating", "reloading")
        ]

    def _find_processes(self, units: list[str]) -> list[int]:
        return [program.pid for program in list_programs(self._root) if program.unit in units]

    def _full(self, path: str) -> str:
        return os.path.join(self._root, path.lstrip("/"))


def _check(verb: str, units: list[str], code: int, said: str) -> None:
    if code:
        raise CallError("unit-failed", f"systemctl {' '.join([verb, *units])} ended with {code}: {said}")


def _key_kinds(guest: Guest) -> list[str]:
    names = [os.path.basename(path) for path in guest.find(HOST_KEYS)]
    return [name[len("ssh_host_") : -len("_key")] for name in names]


def _find(guest: Guest, named: list[str]) -> Iterator[tuple[str, bool]]:
    """Yield the path of each secret, links followed, and whether it is a history."""
    for pattern in FILES:
        for path in guest.find(pattern):
            if not path.endswith(".pub") and has_mark(guest, pattern, path):
                yield from ((file, False) for file in _walk(guest.root, path))
    for patterns, is_history in ((KEYS, False), (HISTORIES, True)):
        for path in guest.find(*patterns):
            yield from ((file, is_history) for file in _walk(guest.root, path))
    for path in named:
        if not path.startswith("/") or not os.path.lexists(os.path.join(guest.root, path.lstrip("/"))):
            raise CallError("no-such-file", f"there is no {path}")
        yield from ((file, False) for file in _walk(guest.root, path))


def _walk(root: str, path: str) -> Iterator[str]:
    """Yield `path`, or the files in it, as the guest knows them: regular ones alone."""
    base = os.path.realpath(root)
    full = os.path.realpath(os.path.join(root, path.lstrip("/")))
    places = (
        [full] if not os.path.isdir(full) else [os.path.join(d, n) for d, _, ns in os.walk(full) for n in ns]
    )
    for place in sorted(places):
        inside = os.path.commonpath([base, place]) == base
        if inside and stat.S_ISREG(_mode(place)):
            yield "/" + os.path.relpath(place, base)


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


def _describe(full: str) -> dict[str, Any]:
    """Return a file's content and all that makes it this file; checked to be one that can be written."""
    try:
        fd = os.open(full, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise CallError("cannot-remove", f"{full}: {error.strerror}") from error
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        data = file.read(MOST_BYTES + 1)
        names = os.listxattr(fd)
        return {
            "data": binascii.b2a_base64(data, newline=False).decode(),
            "mode": stat.S_IMODE(found.st_mode),
            "uid": found.st_uid,
            "gid": found.st_gid,
            "atime_ns": found.st_atime_ns,
            "mtime_ns": found.st_mtime_ns,
            "xattrs": {name: os.getxattr(fd, name).hex() for name in names},
        }


def _digest(fd: int) -> str:
    os.lseek(fd, 0, os.SEEK_SET)
    return sha256(os.read(fd, MOST_BYTES + 1)).hexdigest()


def _is_blank(fd: int) -> bool:
    return not os.pread(fd, MOST_BYTES + 1, 0).strip(b"\0")


def _blank(fd: int) -> None:
    """Overwrite a file's blocks; to their end, since what is behind the file's own end may be of a longer one."""
    size = os.fstat(fd).st_size
    os.pwrite(fd, bytes(-(-size // 4096) * 4096), 0)
    os.fsync(fd)


def _unlink(full: str) -> None:
    try:
        os.unlink(full)
    except OSError:  # a mount of its own: it is empty now, which has to do
        pass


def _restore(full: str, entry: dict[str, Any]) -> bool:
    """Write one file; returns whether another one had taken its place, which is kept beside it."""
    data = binascii.a2b_base64(entry["data"])
    taken = False
    try:
        fd = os.open(full, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        fd = -1
    if fd >= 0:
        now = os.pread(fd, MOST_BYTES + 1, 0)
        if now.strip(b"\0") and now != data:
            os.close(fd)
            os.rename(full, full + ".new")
            fd, taken = -1, True
    if fd < 0:
        os.makedirs(os.path.dirname(full), mode=0o700, exist_ok=True)
        fd = os.open(full, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, len(data))
        os.pwrite(fd, data, 0)
        os.fchown(fd, entry["uid"], entry["gid"])
        os.fchmod(fd, entry["mode"])
        for name, value in entry["xattrs"].items():
            os.setxattr(fd, name, bytes.fromhex(value))
        os.utime(fd, ns=(entry["atime_ns"], entry["mtime_ns"]))
        os.fsync(fd)
    finally:
        os.close(fd)
    files.sync([full])
    return taken
