"""What libvirt is on this host, for doctor: its library, its daemon, the QEMU that it starts, and two of its folders.

    doctor ── look() ── a process of its own: `python -m liveclone.drivers.libvirt.probe` ── libvirt's library ── libvirtd
                  <── Sight, as JSON

In a process of its own, because libvirt's calls block as long as its daemon does, and a doctor is called to hosts on which
things hang. Nothing is changed and nothing is started, so a user's own daemon is seen only if it runs.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

from ...errors import LivecloneError
from ...host import command
from ...model import base
from ...model.base import Value
from .hook_install import HOOKS

# Where libvirt's packages have it.
QEMU_CONF = Path("/etc/libvirt/qemu.conf")
MEMORY_FOLDER = "/var/lib/libvirt/qemu/ram"

# A daemon that has not been asked yet first finds out what each of its QEMUs can do.
ANSWER_DEADLINE_S = 30.0


class Sight(Value, frozen=True, kw_only=True):
    """What was seen. What is not there, or could not be seen, is empty."""

    library: str = ""  # of libvirt's client, "11.3.0"
    uri: str = ""  # libvirt's default, as the daemon calls it
    daemon: str = ""  # its version
    hypervisor: str = ""  # "QEMU 10.0.2"
    emulator: str = ""  # the program that it starts
    hooks: str = ""  # the folder
    scripts: tuple[str, ...] = ()  # that libvirt runs for domains, relative to `hooks`
    memory_folder: str = ""  # where the RAM files of domains are, a folder for each
    error: str = ""  # why there is no library, or no daemon


async def look() -> Sight:
    """Return what libvirt is here; what fails is said in it."""
    try:
        answer = await command.run(
            [sys.executable, "-P", "-m", __name__],
            deadline_s=ANSWER_DEADLINE_S,
            env={"LIBVIRT_AUTOSTART": "0"},
            name="libvirt's library",
        )
        return base.decode(answer.encode(), Sight, "what libvirt is")
    except LivecloneError as error:
        return Sight(error=f"{error}{': ' if error.seen else ''}{error.seen}")


def look_here() -> Sight:
    """The same, in this process: blocks as long as libvirtd does not answer."""
    found = Sight(hooks=str(HOOKS), scripts=find_scripts(HOOKS), memory_folder=find_memory_folder(QEMU_CONF))
    try:
        import libvirt
    except ImportError as error:
        return found.replace(error=str(error))  # type: ignore[no-any-return]
    # It would print what it also raises.
    libvirt.registerErrorHandler(lambda *_: None, None)
    found = found.replace(library=render_version(libvirt.getVersion()))
    try:
        connection = libvirt.open()
        try:
            found = found.replace(uri=connection.getURI(), daemon=render_version(connection.getLibVersion()))
            if not found.uri.startswith("qemu:///system"):  # its folders are a user's, or on another host
                found = found.replace(hooks="", scripts=(), memory_folder="")
            return found.replace(  # type: ignore[no-any-return]
                hypervisor=f"{connection.getType()} {render_version(connection.getVersion())}",
                emulator=find_emulator(connection.getDomainCapabilities(arch=os.uname().machine)),
            )
        finally:
            connection.close()
    except libvirt.libvirtError as error:
        return found.replace(error=str(error))  # type: ignore[no-any-return]


def render_version(number: int) -> str:
    """Return "11.3.0" for 11003000."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def find_emulator(capabilities: str) -> str:
    """Return the program that a domain is started with, of virConnectGetDomainCapabilities."""
    return ElementTree.fromstring(capabilities).findtext("path", "")


def find_scripts(hooks: Path) -> tuple[str, ...]:
    """Return the scripts that libvirt runs for each domain: `qemu`, then those in `qemu.d` by name."""
    try:
        found = [path for path in (hooks / "qemu", *sorted((hooks / "qemu.d").glob("*"))) if path.is_file()]
    except OSError:  # another user's
        return ()
    return tuple(str(path.relative_to(hooks)) for path in found if os.access(path, os.X_OK))


def find_memory_folder(config: Path) -> str:
    """Return where libvirt makes a folder of RAM files for each domain; nothing where its configuration cannot be read.

    It adds two names to a folder that it was given, and none to its default.
    """
    try:
        text = config.read_text()
    except FileNotFoundError:
        return MEMORY_FOLDER
    except OSError:
        return ""
    chosen = re.findall(r'^\s*memory_backing_dir\s*=\s*"(.*)"\s*$', text, re.MULTILINE)
    return f"{chosen[-1]}/libvirt/qemu" if chosen else MEMORY_FOLDER


if __name__ == "__main__":
    sys.stdout.buffer.write(base.encode(look_here()))
