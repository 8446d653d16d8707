"""The smallest guest with a memory: Debian's kernel and a shell on the serial console, in an initramfs.

    guest = Guest(domain);  guest.run("A=token");  guest.run("echo $A")

And one with liveclone's agent: Debian as liveclone makes it, whose first process is agent_guest/init; a shell is there too.

What is set in the shell is in its memory alone; WRITE and READ are of the first disk.
"""

from __future__ import annotations

import os
import re
import select
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from liveclone.formats import cpio
from liveclone.images import initramfs
from liveclone.images.spec import ImageSpec
from liveclone.units import GIB

PATIENCE_S = 120.0
CMDLINE = "console=ttyS0 panic=-1 quiet"

_INIT = initramfs.INIT.partition("$B mount -t ext4")[0] + (
    "$B mkdir -p /sys /proc\n$B mount -t sysfs sys /sys\n$B mount -t proc proc /proc\n"
    "while :; do $B setsid $B cttyhack $B sh; done\n"
)
WRITE = "echo {} | busybox dd of=/dev/vda bs=512 count=1 conv=sync,fsync 2>/dev/null"
READ = "busybox dd if=/dev/vda bs=512 count=1 iflag=direct 2>/dev/null | busybox tr -d '\\0'"
MACS = "busybox cat /sys/class/net/*/address | busybox grep -v 00:00:00 | busybox tr '\\n' ' '"


_AGENT_GUEST = Path(__file__).with_name("agent_guest")
AGENT_DISK_GIB, AGENT_RAM_MIB = 2, 256
WITH_AGENT = ImageSpec(
    name="nova-agent",
    disk_bytes=AGENT_DISK_GIB * GIB,
    files=((_AGENT_GUEST / "init", "/opt/init"),),
    script=_AGENT_GUEST / "setup",
)
# What is to be told of the guest's agent is told to all processes that run its file.
_AGENTS = "for p in /proc/[0-9]*; do grep -aqs agent.pyz $p/cmdline && {} ${{p#/proc/}}; done; :"
WAIT_FOR_AGENT = "until ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q vport; do sleep 0.1; done"
STOP_AGENT, CONTINUE_AGENT, END_AGENT = (
    _AGENTS.format("kill -STOP"),
    _AGENTS.format("kill -CONT"),
    "touch /run/no-agent; " + _AGENTS.format("kill -KILL"),
)


def make_initrd(initrd: Path, target: Path) -> Path:
    """Write an initrd whose /init ends in the shell: of two files with one name in it, the later one counts."""
    files = [cpio.file("init", (_INIT.replace("give_up()", "PATH=/bin\ngive_up()")).encode(), 0o755)]
    target.write_bytes(initrd.read_bytes() + cpio.render_archive(files))
    return target


class Guest:
    """The shell of a domain that runs (virDomain)."""

    def __init__(self, domain: Any) -> None:
        self.domain = domain

    def run(self, line: str) -> str:
        """Run a line, which may be run twice, and return what it printed; waits for a guest that boots."""
        console = ElementTree.fromstring(self.domain.XMLDesc()).find("devices/serial/source")
        assert console is not None
        mark, deadline = os.urandom(4).hex(), time.monotonic() + PATIENCE_S
        # The marks are put together by the shell, so that the terminal's echo of the line is not taken for them.
        request = f"\n\n echo be''gin-{mark}; {line}; echo end''-{mark}\n".encode()
        answer = re.compile(rf"^begin-{mark}\r?\n(.*?)end-{mark}", re.DOTALL | re.MULTILINE)
        fd = os.open(console.attrib["path"], os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            seen, asked_at = "", 0.0
            while (found := answer.search(seen)) is None:
                now = time.monotonic()
                assert now < deadline, f"the guest does not answer: {seen}"
                if now - asked_at > 3 and f"\nbegin-{mark}" not in seen:  # what came before its shell is lost
                    os.write(fd, request)
                    asked_at = now
                if select.select([fd], [], [], 0.5)[0]:
                    seen += os.read(fd, 4096).decode(errors="replace")
        finally:
            os.close(fd)
        return found[1].replace("\r", "").strip()
