"""What this host offers, what is missing, and what to do about it.

    examine(home, hot) -> Report
                            └─ findings: acceleration qemu devices background-snapshot memory hot-folder
                                         home-folder limits network libvirt tools user-ids python

A finding is `ok`, a `warning` (something is slower, smaller or missing, the rest works) or a `problem` (machines
cannot run here). `seen` is one sentence; `facts` are the same for programs. Nothing is changed, no machine is
started; QEMU is asked twice, for its version and for its devices (10 ms and 40 ms), and libvirt once. How it looks on
a terminal is the CLI's business.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from .. import __version__
from ..drivers.libvirt import probe
from ..drivers.qemu import argv
from ..errors import LivecloneError
from ..host import acceleration, command, machine
from ..model.base import Value
from ..model.machine import Acceleration
from . import host_findings
from .host_findings import Finding, Verdict

# Answers take 50 ms; a host that swaps may need far longer, and doctor is for such hosts too.
ANSWER_DEADLINE_S = 10.0


class Report(Value, frozen=True, kw_only=True):
    """All findings, in the order in which a person wants to read them."""

    version: str  # liveclone's own
    usable: bool  # no problem was found
    acceleration: Acceleration
    acceleration_reason: str
    findings: tuple[Finding, ...]

    def of(self, verdict: Verdict) -> tuple[Finding, ...]:
        """Return the findings of one verdict."""
        return tuple(finding for finding in self.findings if finding.verdict is verdict)


async def examine(home: Path, hot: Path) -> Report:
    """Look at this host.

    Args:
        home: folder of the state; need not exist yet.
        hot: folder of the memory images; need not exist yet.

    Raises:
        ConfigError: LIVECLONE_ACCEL has no meaning, or asks for what cannot be.
    """
    choice = acceleration.examine()
    qemu = machine.find_tool(argv.BINARY)
    version, devices, unshared, libvirt = await asyncio.gather(
        _ask(qemu, "-version"),
        _ask(qemu, "-device", "help"),
        _ask("unshare", "--net", "echo", "yes"),
        probe.look(),
    )
    found = (
        host_findings.judge_acceleration(choice),
        *host_findings.judge_qemu(qemu, version, devices),
        host_findings.judge_background(),
        host_findings.judge_memory(machine.memory()),
        host_findings.judge_hot(hot, machine.file_system(hot)),
        host_findings.judge_home(home, machine.file_system(home)),
        host_findings.judge_limits(machine.limits()),
        host_findings.judge_network(can_unshare=bool(unshared)),
        host_findings.judge_libvirt(libvirt),
        *host_findings.judge_tools(),
        *host_findings.judge_user_ids(() if machine.is_root() else machine.find_missing_ids()),
        host_findings.judge_python(),
    )
    return Report(
        version=__version__,
        usable=all(finding.verdict is not Verdict.PROBLEM for finding in found),
        acceleration=choice.acceleration,
        acceleration_reason=choice.reason,
        findings=found,
    )


async def _ask(tool: str | None, *arguments: str) -> str:
    """Return what a program prints; nothing when it is not there or fails, which is all that matters here."""
    if tool is None:
        return ""
    try:
        return await command.run([tool, *arguments], deadline_s=ANSWER_DEADLINE_S)
    except LivecloneError:
        return ""
