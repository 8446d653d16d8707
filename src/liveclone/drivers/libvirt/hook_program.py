"""The program that libvirt runs: it gives a clone's QEMU the memory image as the file of its RAM.

libvirt runs every executable in its folder `hooks/qemu.d` at each step in each domain's life, and waits for it:

    libvirtd ── NAME start begin -, domain XML on stdin ──> a few lines of shell (hook_install.py)
                                                               │  no ticket anywhere: nothing, exit 0
                                                               v
    TICKETS/UUID.json ── there is one for this domain ──> this program
                                                               │  each word of the ticket is checked
                                                               v
    memory_dir/ID-NAME/pc.ram     the memory image: a hard link, or a symbolic one to another file system
    TICKETS/UUID.json -> UUID.done: then libvirt starts QEMU, which opens its RAM there
                      -> UUID.failed, a line on stderr and exit 1: then libvirt refuses this start, and no other

Until a ticket of ours has been read, nothing is an error: the domain is somebody else's, and starts as if we were not
here. A ticket that others could have written (folder or file not ours alone, a symbolic link) is none. So is a stale one,
older than ten minutes or from before the host's last boot: it would forbid the clone's ordinary starts for ever. The
domain then starts with whatever RAM libvirt gives it, which is harmless: the driver restores a domain paused,
and lets it run when it has seen UUID.done (tickets.py).

It stands alone: standard library only, Python 3.8 and later, started without site-packages. It opens the image without
following any symbolic link, and links the very file that it has looked at. It replaces nothing.

    hook_program.py TICKETS IMAGES NAME OPERATION SUBOPERATION [EXTRA]      IMAGES: allowed folders, joined by colons
"""

from __future__ import annotations

import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# From the ticket's writing to the hook's start pass fractions of a second; a host that swaps may need minutes.
TICKET_LIFE_S = 600.0

# The UUID is in the first lines of libvirt's XML, before anything that a user wrote; the name may be long.
_HEAD_BYTES = 64 * 1024
_TICKET_BYTES = 64 * 1024
_RAM_FILE = "pc.ram"  # libvirt's name for the RAM of an x86 machine (qemu_domain.c, defaultRAMid)

_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Refusal(Exception):
    """The ticket is ours, and cannot be honoured."""


def main(arguments: list[str]) -> int:
    """Do what is due, and return the exit code."""
    try:
        found = find_ticket(arguments)
    except Exception:  # noqa: BLE001 - nobody's start fails because of what is not ours
        return 0
    if found is None:
        return 0
    tickets, uuid, domain_id, data = found
    values: dict[str, Any] = {"uuid": uuid}
    try:
        import json

        read = json.loads(data)
        if not isinstance(read, dict):
            raise Refusal("the ticket is no object")
        values = read
        if is_stale(values):
            say(f"the ticket for {uuid} is stale; the domain starts without a memory image")
            return 0
        honour(values, tickets, uuid, domain_id, arguments)
        return 0
    except KeyError as error:
        reason = f"the ticket lacks {error}"
    except Exception as error:  # noqa: BLE001 - whatever it is: this start is refused, and the reason told
        reason = str(error) or type(error).__name__
    say(f"{uuid} cannot have its memory image: {reason}")
    try:
        settle(tickets, uuid, "failed", dict(values, reason=reason))
    except (OSError, TypeError) as error:
        say(f"the failure cannot be written down: {error}")
    return 1


def find_ticket(arguments: list[str]) -> tuple[int, str, str, bytes] | None:
    """Return the ticket of the domain that starts: its folder's descriptor, UUID, domain id, contents; None without one."""
    folder, _, _, operation, suboperation = arguments[:5]
    if (operation, suboperation) != ("start", "begin"):
        return None
    uuid, domain_id = read_domain(0)
    tickets = os.open(folder, os.O_RDONLY | _FOLDER)
    name = uuid + ".json"
    # Not blocking: it might be a pipe that somebody put there.
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=tickets)
    for what, seen in ((folder, os.fstat(tickets)), (name, os.fstat(fd))):
        if seen.st_uid != os.geteuid() or seen.st_mode & _OTHERS_WRITE:
            say(f"{what} could have been written by others: not a ticket")
            return None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return None
    return tickets, uuid, domain_id, os.read(fd, _TICKET_BYTES)


def read_domain(fd: int) -> tuple[str, str]:
    """Return UUID and id of the domain whose XML is read from `fd`; the id is empty if there is none.

    libvirt itself has just rendered it: <domain type='kvm' id='7'>, name, uuid, then all else. A name cannot hold a `<`.
    """
    head = b""
    while b"</uuid>" not in head and len(head) < _HEAD_BYTES:
        data = os.read(fd, _HEAD_BYTES)
        if not data:
            break
        head += data
    tag, _, rest = head[head.index(b"<domain") :].partition(b">")
    uuid = rest.partition(b"<uuid>")[2].partition(b"</uuid>")[0].decode("ascii").lower()
    if len(uuid) != 36 or set(uuid) - set("0123456789abcdef-"):
        raise ValueError("no UUID")
    words = tag.replace(b'"', b"'").partition(b" id='")[2]
    return uuid, words.partition(b"'")[0].decode("ascii")


def is_stale(ticket: dict[str, Any]) -> bool:
    """Tell whether a ticket is too old to be meant for this start."""
    import time

    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot_id = file.read().strip()
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticket["issued_s"]
    return ticket["boot_id"] != boot_id or not 0 <= age_s <= TICKET_LIFE_S


def honour(ticket: dict[str, Any], tickets: int, uuid: str, domain_id: str, arguments: list[str]) -> None:
    """Link the image in and turn the ticket into UUID.done; if that fails no link is left."""
    _, images, name = arguments[:3]
    if (ticket["uuid"], ticket["name"]) != (uuid, name):
        raise Refusal(f"the ticket is for {ticket['name']!r}, {ticket['uuid']}")
    image = open_image(ticket, [folder for folder in images.split(":") if folder])
    folder, path = open_memory_folder(ticket["memory_dir"], domain_id)
    how = link(image, ticket["image"], folder)
    try:
        settle(tickets, uuid, "done", dict(ticket, link=os.path.join(path, _RAM_FILE), how=how))
    except BaseException:
        os.unlink(_RAM_FILE, dir_fd=folder)
        raise


def open_image(ticket: dict[str, Any], allowed: list[str]) -> int:
    """Return a descriptor of the memory image: it is what the ticket says, and where others can put nothing."""
    path = ticket["image"]
    if os.path.normpath(path) != path or not any(path.startswith(folder + "/") for folder in allowed):
        raise Refusal(f"{path} is in none of the folders {', '.join(allowed)}")
    *parents, name = path.split("/")[1:]
    folder = os.open("/", os.O_PATH | _FOLDER)
    for parent in parents:
        try:
            folder = os.open(parent, os.O_PATH | _FOLDER, dir_fd=folder)
        except NotADirectoryError:
            raise Refusal(f"{parent} in {path} is a symbolic link, or no folder") from None
        seen = os.fstat(folder)
        safe = not seen.st_mode & _OTHERS_WRITE or seen.st_mode & stat.S_ISVTX
        if seen.st_uid not in (0, os.geteuid()) or not safe:
            raise Refusal(f"others may change what is in {parent} of {path}")
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    seen = os.fstat(fd)
    if not stat.S_ISREG(seen.st_mode):
        raise Refusal(f"{path} is no regular file")
    if seen.st_mode & stat.S_IWOTH:
        raise Refusal(f"everybody may write {path}")
    shown = {"inode": seen.st_ino, "size_bytes": seen.st_size, "owner": seen.st_uid}
    for key, value in shown.items():
        if ticket[key] != value:
            raise Refusal(f"{key} of {path} is {value}, not {ticket[key]}")
    return fd


def open_memory_folder(base: str, domain_id: str) -> tuple[int, str]:
    """Return descriptor and path of libvirt's folder for the RAM files of this start: ID-NAME, a long name cut short."""
    if not domain_id.isdigit():
        raise Refusal("libvirt gave no domain id")
    fd = os.open(base, os.O_RDONLY | _FOLDER)
    found = [name for name in os.listdir(fd) if name.startswith(domain_id + "-")]
    if len(found) != 1:
        raise Refusal(f"{len(found)} folders {domain_id}-* in {base}, not one")
    return os.open(found[0], os.O_RDONLY | _FOLDER, dir_fd=fd), os.path.join(base, found[0])


def link(image: int, path: str, folder: int) -> str:
    """Put the open image into the folder; tell how. Raises FileExistsError, and leaves it alone, if something is there."""
    import errno

    try:
        # By its descriptor: nobody can put another file in its place after it was looked at.
        os.link(f"/proc/self/fd/{image}", _RAM_FILE, dst_dir_fd=folder)
        return "hard"
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise OSError(error.errno, f"{path} cannot be linked in: {error.strerror}") from error
    os.symlink(path, _RAM_FILE, dir_fd=folder)
    return "symbolic"


def settle(tickets: int, uuid: str, outcome: str, values: dict[str, Any]) -> None:
    """Turn the ticket into UUID.outcome. That is there last of all, so whoever finds it finds all done."""
    import json
    from contextlib import suppress

    temporary = f".{uuid}.{outcome}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=tickets)
    try:
        with os.fdopen(fd, "w") as file:
            json.dump(values, file)
        with suppress(FileNotFoundError):
            os.unlink(uuid + ".json", dir_fd=tickets)
        os.rename(temporary, f"{uuid}.{outcome}", src_dir_fd=tickets, dst_dir_fd=tickets)
    except BaseException:
        os.unlink(temporary, dir_fd=tickets)
        raise


def say(text: str) -> None:
    """Write a line on stderr, which libvirt puts into its log, and into its error if the start is refused."""
    if sys.stderr is not None:
        sys.stderr.write(f"liveclone: {text.encode('ascii', 'backslashreplace').decode()}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
