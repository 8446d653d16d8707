"""A machine is one QEMU process of ours, with our devices and nothing else, and belongs to no command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from liveclone.model.machine import Machine
from tests.machines import Lab

# Chipset of q35, which no option removes: host bridge, ISA bridge, SATA and SMBus controller (PCI class codes).
CHIPSET = {0x0600, 0x0601, 0x0106, 0x0C05}

ASK = """
import asyncio, sys
from liveclone.engine import execute
from liveclone.engine.context import open_context

ctx = open_context()
machine = execute.find_running(ctx, sys.argv[1])
code, out, err = asyncio.run(execute.ask(ctx, machine, ["hostname"]))
print(machine.process.pid, out.strip())
"""


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_it_survives_the_command_that_started_it(lab: Lab, clone: Machine) -> None:
    """Another process starts a machine and ends; a third one finds it by its name and runs a command in it."""
    start = (
        "import asyncio\nfrom liveclone.engine import clone\nfrom liveclone.engine.context import open_context\n"
        f"request = clone.Request(snapshot={clone.clone_of!r}, names=['survivor'])\n"
        "results = asyncio.run(clone.start(open_context(), request))\n"
        "assert results[0].error is None, results[0].error.fields()\n"
    )
    run(sys.executable, "-c", start)
    machine = lab.ctx.machines.find("survivor")
    try:
        pid, hostname = run(sys.executable, "-c", ASK, "survivor").split()
        assert machine.process is not None
        assert int(pid) == machine.process.pid
        assert hostname == "survivor"
        status = Path(f"/proc/{pid}/status").read_text()
        assert f"\nPPid:\t{os.getpid()}\n" not in status
        # A session of its own: what is typed at a terminal, or the end of one, does not reach it.
        assert os.getsid(int(pid)) == int(pid)
    finally:
        lab.remove(machine)


def test_its_process_is_confined(lab: Lab, source: Machine) -> None:
    machine = lab.reload(source)
    assert machine.process is not None
    command = Path(f"/proc/{machine.process.pid}/cmdline").read_text().split("\0")
    assert "-nodefaults" in command
    assert "-no-user-config" in command
    assert command[command.index("-sandbox") + 1].startswith("on,")
    status = Path(f"/proc/{machine.process.pid}/status").read_text()
    assert "\nSeccomp:\t2\n" in status, "no system call filter is in force"


def test_it_has_our_devices_and_no_others(lab: Lab, source: Machine) -> None:
    devices = [device for bus in lab.qmp(source, "query-pci") for device in bus["devices"]]
    ours = {device["qdev_id"] for device in devices if device["qdev_id"]}
    assert ours == {"port0", "port1", "vda", "serial0", "rng0"}
    chipset = {device["class_info"]["class"] for device in devices if not device["qdev_id"]}
    assert chipset <= CHIPSET
    assert lab.nics(source) == ["nic0"]
    assert [block["qdev"].split("/")[-2] for block in lab.qmp(source, "query-block")] == ["vda"]
    assert sorted(chardev["label"] for chardev in lab.qmp(source, "query-chardev")) == [
        *("agent", "console", "exec", "qmp")
    ]


def test_the_guest_sees_no_other_devices(lab: Lab, source: Machine) -> None:
    """The guest's own view: no graphics, sound, USB, floppy or CD-ROM."""
    found = lab.shell(
        source, "cat /sys/bus/pci/devices/*/class; ls /sys/block; ls /sys/bus/usb/devices 2>&1 || :"
    )
    classes = {int(line, 16) >> 8 for line in found.splitlines() if line.startswith("0x")}
    assert classes <= CHIPSET | {0x0604, 0x0100, 0x0780, 0x00FF, 0x0200}, found
    assert "vda" in found.split()
    assert not {"fd0", "sr0", "usb1"} & set(found.split())
