"""Tickets: what the driver asks of the hook, and what became of it.

libvirt's hook cannot be called, only left a note. Just before the driver lets libvirt restore a clone it writes one:

    /run/liveclone/libvirt/UUID.json     what is asked: this domain gets this memory image      issue()
                           UUID.done     the image is linked in, there, and how                 outcome()
                           UUID.failed   it is not, and why; libvirt has refused the start      outcome()

No outcome: the hook did not run (not installed, or libvirt has not noticed it yet). Then the domain, restored paused,
has RAM of zeros and MUST NOT run. The folder is root's alone: whoever may write there may give a domain any image
that the installed hook allows. It is on tmpfs, so a reboot clears it. hook_program.py reads and settles the tickets.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from ...errors import Conflict, Corrupt, NotFound, Refused
from ...host import files
from ...model.base import Value, decode, encode
from .hook_program import TICKET_LIFE_S

FOLDER = Path("/run/liveclone/libvirt")

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Ticket(Value, frozen=True, kw_only=True):
    """What the hook is to do for one start of one domain.

    Args:
        image: the memory image, without symbolic links in its path.
        size_bytes, inode, owner: of the image as the driver knows it; `owner` is a user's number.
        memory_dir: the folder in which libvirt makes a folder ID-NAME with the RAM files of each start.
        issued_s: CLOCK_BOOTTIME, of the boot that `boot_id` names.
    """

    uuid: str
    name: str
    image: str
    size_bytes: int
    inode: int
    owner: int
    memory_dir: str
    boot_id: str
    issued_s: float


class Outcome(Value, frozen=True, kw_only=True):
    """What became of a ticket: `link` and `how` ("hard", "symbolic") if it was honoured, else `reason`."""

    link: str = ""
    how: str = ""
    reason: str = ""

    @property
    def done(self) -> bool:
        return bool(self.link)


def issue(folder: Path, *, uuid: str, name: str, image: Path, memory_dir: Path) -> Ticket:
    """Ask the hook to give domain `uuid`, at its next start, the file `image` as its RAM. Call `withdraw` when all is over.

    Raises:
        NotFound: the image is not there. StoreError: no ticket can be written. Conflict: others may write the folder.
        In all cases there is no ticket.
    """
    withdraw(folder, uuid)
    _make_folder(folder)
    try:
        image = image.resolve(strict=True)
        seen = image.stat()
    except OSError as error:
        raise NotFound(
            "there is no memory image",
            code="no-memory-image",
            tried="asking the hook to link it in",
            on=str(image),
            seen=str(error),
        ) from error
    ticket = Ticket(
        uuid=uuid.lower(),
        name=name,
        image=str(image),
        size_bytes=seen.st_size,
        inode=seen.st_ino,
        owner=seen.st_uid,
        memory_dir=str(memory_dir.resolve()),
        boot_id=_boot_id(),
        issued_s=_now_s(),
    )
    files.write_atomic(_path(folder, uuid, "json"), encode(ticket), durable=False)
    return ticket


def withdraw(folder: Path, uuid: str) -> None:
    """Remove what is there of a domain: ticket and outcome. Nothing there is no error.

    Raises:
        StoreError: it cannot be removed.
    """
    for kind in ("json", "done", "failed"):
        path = _path(folder, uuid, kind)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise files.explain(error, "withdrawing a ticket", path) from error


def outcome(folder: Path, uuid: str) -> Outcome | None:
    """Return what the hook has made of a domain's ticket; None if it has not (yet) run.

    Raises:
        StoreError: the folder cannot be read. Corrupt: what is there is none of the hook's.
    """
    for kind in ("done", "failed"):
        path = _path(folder, uuid, kind)
        try:
            found = decode(path.read_bytes(), Outcome, str(path))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise files.explain(error, "reading a ticket's outcome", path) from error
        if found.done != (kind == "done"):
            raise Corrupt(
                "the hook's word contradicts itself",
                code="bad-ticket",
                tried="reading a ticket's outcome",
                on=str(path),
                seen=repr(found),
            )
        return found
    return None


def sweep(folder: Path) -> list[str]:
    """Remove tickets and outcomes that nobody can be waiting for any more, and return their names.

    Killed commands leave them: `repair` withdraws those of its home's machines by their names, whatever their age, and
    those of homes that are gone stay for this. They do no harm: the hook ignores a ticket of that age.
    """
    removed = []
    with suppress(OSError):  # there is no folder, or it is root's and we are somebody else
        for path in sorted(folder.iterdir()):
            with suppress(OSError):  # another sweep was quicker; what cannot be removed does no harm
                if _is_old(path):
                    path.unlink()
                    removed.append(path.name)
    return removed


class _Issued(Value, frozen=True, kw_only=True):
    """What tickets and outcomes have in common."""

    boot_id: str
    issued_s: float


def _is_old(path: Path) -> bool:
    try:
        found = decode(path.read_bytes(), _Issued, path.name)
    except Corrupt:  # half-written by somebody who was killed, or just now by somebody who was not
        return time.time() - path.lstat().st_mtime > TICKET_LIFE_S
    return found.boot_id != _boot_id() or _now_s() - found.issued_s > TICKET_LIFE_S


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        seen = folder.lstat()
    except OSError as error:
        raise files.explain(error, "making the folder of tickets", folder) from error
    if seen.st_uid != os.geteuid() or seen.st_mode & 0o022:
        raise Conflict(
            "the folder of tickets is not ours alone, and the hook would not believe it",
            code="unsafe-folder",
            tried="asking the hook for a memory image",
            on=str(folder),
            seen=f"owner {seen.st_uid}, mode {seen.st_mode & 0o7777:04o}",
            next_step=f"remove {folder}; it is made anew",
        )


def _path(folder: Path, uuid: str, kind: str) -> Path:
    if len(uuid) != 36 or set(uuid.lower()) - set("0123456789abcdef-"):
        raise Refused(f"{uuid!r} is no UUID", code="bad-uuid", tried="naming a ticket", on=uuid)
    return folder / f"{uuid.lower()}.{kind}"


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
