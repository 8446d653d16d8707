"""Whether a clone can start on the memory image itself, in constant time, and the ticket by which it does.

libvirt knows no way to give a domain a RAM file of ours; its hook does (hook_program.py). That takes the installed hook,
an image in a folder that it accepts, and a libvirt of this host: then `find_obstacle` finds none.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ...errors import LivecloneError
from . import hook_install, tickets
from .registry import DomainRef

QEMU_CONF = Path("/etc/libvirt/qemu.conf")
DEFAULT_MEMORY_DIR = Path("/var/lib/libvirt/qemu/ram")
_SETTING = re.compile(r'^\s*memory_backing_dir\s*=\s*"([^"]*)"', re.MULTILINE)


def find_obstacle(uri: str, image: Path) -> str:
    """Return what keeps a clone from the memory image at `image`; empty if nothing does."""
    if (uri and "///session" in uri) or "+" in uri.partition(":")[0]:
        return f"the hook is for the libvirt of this host, not for {uri}"
    try:
        status = hook_install.status()
    except LivecloneError as error:
        return error.message
    if status.state is not hook_install.HookState.CURRENT:
        return f"libvirt's hook is {status.state.value}: liveclone libvirt install-hook"
    if not any(image.resolve().is_relative_to(folder) for folder in status.images):
        return f"the hook does not accept images in {image.parent}: liveclone libvirt install-hook"
    return ""


def memory_dir() -> Path:
    """Return where libvirt makes a folder for the RAM files of each domain."""
    try:
        found = _SETTING.findall(QEMU_CONF.read_text())
    except OSError:
        found = []
    return Path(found[-1]) / "libvirt" / "qemu" if found else DEFAULT_MEMORY_DIR


@contextlib.contextmanager
def ticket(ref: DomainRef, image: Path) -> Iterator[Callable[[], tickets.Outcome | None]]:
    """Ask the hook for the image in the block; gives what tells whether it has done it."""
    folder = tickets.FOLDER
    tickets.issue(folder, uuid=ref.uuid, name=ref.name, image=image, memory_dir=memory_dir())
    try:
        yield lambda: tickets.outcome(folder, ref.uuid)
    finally:
        tickets.withdraw(folder, ref.uuid)
