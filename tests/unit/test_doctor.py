"""doctor judges what the host shows: each bad fact has its verdict and an advice, good facts have neither."""

from __future__ import annotations

import asyncio
import os
import pwd
from pathlib import Path

import pytest

from liveclone.drivers.libvirt import probe
from liveclone.engine import doctor, host_findings
from liveclone.engine.host_findings import Verdict
from liveclone.host import machine
from liveclone.model import base
from liveclone.units import GIB, MIB

HOT = Path("/dev/shm/liveclone")
ENOUGH: dict[str, int | None] = {
    "open-files": 1024,
    "processes": None,
    "locked-memory-bytes": 8 * MIB,
    "file-size-bytes": None,
}


def make_system(kind: str = "tmpfs", free_bytes: int = 8 * GIB, writable: bool = True) -> machine.FileSystem:
    return machine.FileSystem(
        folder=Path("/nowhere"),
        exists=False,
        writable=writable,
        kind=kind,
        mount="/dev/shm",
        total_bytes=16 * GIB,
        free_bytes=free_bytes,
    )


@pytest.mark.parametrize(
    ("system", "verdict", "advice"),
    [
        (make_system(), Verdict.OK, ""),
        (make_system(kind="ext4"), Verdict.PROBLEM, "LIVECLONE_HOT"),
        (make_system(writable=False), Verdict.PROBLEM, "can write"),
        (make_system(free_bytes=64 * MIB), Verdict.WARNING, "remount,size=75% /dev/shm"),
    ],
)
def test_the_hot_folder_must_be_a_writable_tmpfs_with_room(
    system: machine.FileSystem, verdict: Verdict, advice: str
) -> None:
    finding = host_findings.judge_hot(HOT, system)
    assert finding.verdict is verdict
    assert advice in finding.next_step
    assert bool(advice) == bool(finding.next_step)
    assert str(HOT) in finding.seen


@pytest.mark.parametrize(
    ("system", "verdict"),
    [
        (make_system(kind="ext4"), Verdict.OK),
        (make_system(kind="ext4", free_bytes=1 * GIB), Verdict.WARNING),
        (make_system(kind="ext4", writable=False), Verdict.PROBLEM),
    ],
)
def test_the_home_folder_must_be_writable_and_have_room(system: machine.FileSystem, verdict: Verdict) -> None:
    finding = host_findings.judge_home(Path("/nowhere/home"), system)
    assert finding.verdict is verdict
    assert (finding.next_step == "") == (verdict is Verdict.OK)


def test_a_folder_that_does_not_exist_yet_is_judged_by_the_nearest_that_does(tmp_path: Path) -> None:
    system = machine.file_system(tmp_path / "a" / "b")
    assert system.folder == tmp_path
    assert not system.exists
    assert system.writable
    assert machine.file_system(tmp_path).exists
    assert not (tmp_path / "a").exists()


def test_little_memory_is_a_warning_that_names_who_limits_it() -> None:
    assert host_findings.judge_memory(machine.Memory(8 * GIB, 4 * GIB)).verdict is Verdict.OK
    finding = host_findings.judge_memory(machine.Memory(512 * MIB, 100 * MIB, "/sys/fs/cgroup/memory.max"))
    assert finding.verdict is Verdict.WARNING
    assert "memory.max" in finding.seen
    assert finding.next_step


@pytest.mark.parametrize(
    ("limits", "shown"),
    [
        ({"open-files": 64}, "open-files 64"),
        ({"processes": 10}, "processes 10"),
        ({"file-size-bytes": 4096}, "4096"),
    ],
)
def test_a_low_limit_is_a_warning(limits: dict[str, int | None], shown: str) -> None:
    assert host_findings.judge_limits(ENOUGH).verdict is Verdict.OK
    finding = host_findings.judge_limits(ENOUGH | limits)
    assert finding.verdict is Verdict.WARNING
    assert shown in finding.seen
    assert finding.next_step


def test_a_folder_inside_a_closed_one_counts_as_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    look = Path.is_dir

    def is_dir(path: Path) -> bool:
        if closed in path.parents:  # as the kernel says to all but root, who runs these tests too
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(Path, "is_dir", is_dir)
    system = machine.file_system(closed / "home" / "liveclone")
    assert system.folder == closed
    assert not system.exists


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\n", (10, 0, 2)),
        ("QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7+deb12u14)\n", (7, 2, 17)),
        ("QEMU emulator version 9.1\n", (9, 1, 0)),
        ("", ()),
        ("no such command", ()),
    ],
)
def test_the_version_is_read_as_numbers(text: str, version: tuple[int, ...]) -> None:
    assert host_findings.read_version(text) == version
    assert (version >= host_findings.OLDEST_QEMU) == (version[:1] in ((9,), (10,)))


def make_program(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("exit 1", "does not run"),
        ("echo QEMU emulator version 7.2.17", "older than 8.2"),
        ("echo QEMU emulator version 10.0.2; echo 'name \"virtio-blk-pci\", bus PCI'", "vmgenid"),
    ],
)
def test_a_qemu_that_will_not_do_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, problem: str
) -> None:
    make_program(tmp_path, "qemu-system-x86_64", script)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    report = asyncio.run(doctor.examine(tmp_path, HOT))
    assert not report.usable
    assert any(problem in finding.seen and finding.next_step for finding in report.of(Verdict.PROBLEM))


def test_nothing_installed_is_reported_and_not_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "find_tool", lambda name: None)
    report = asyncio.run(doctor.examine(tmp_path, HOT))
    names = {finding.name: finding for finding in report.findings}
    assert names["qemu"].verdict is Verdict.PROBLEM
    assert names["tool mmdebstrap"].next_step == "apt install mmdebstrap"
    assert names["tool setpriv"].next_step == "apt install util-linux"
    assert "tools" not in names


def test_who_is_not_root_needs_a_tool_and_ids_to_build_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "is_root", lambda: False)
    monkeypatch.setattr(machine, "find_tool", lambda name: None)
    monkeypatch.setattr(machine, "find_missing_ids", lambda: ("/etc/subgid",))
    report = asyncio.run(doctor.examine(tmp_path, HOT))
    names = {finding.name: finding for finding in report.findings}
    assert names["tool newuidmap"].next_step == "apt install uidmap"
    assert "/etc/subgid" in names["user-ids"].seen
    assert "--add-subgids" in names["user-ids"].next_step
    assert report.of(Verdict.WARNING).count(names["user-ids"]) == 1
    monkeypatch.setattr(machine, "is_root", lambda: True)
    report = asyncio.run(doctor.examine(tmp_path, HOT))
    assert {"tool newuidmap", "user-ids"}.isdisjoint(finding.name for finding in report.findings)


def test_ids_of_a_user_are_found_by_number_and_by_name(tmp_path: Path) -> None:
    user = pwd.getpwuid(os.getuid()).pw_name
    both = (str(tmp_path / "subuid"), str(tmp_path / "subgid"))
    assert machine.find_missing_ids(tmp_path) == both
    (tmp_path / "subuid").write_text(f"somebody:100000:65536\n{user}:165536:65536\n")
    assert machine.find_missing_ids(tmp_path) == both[1:]
    (tmp_path / "subgid").write_text(f"{os.getuid()}:165536:65536\n")
    assert machine.find_missing_ids(tmp_path) == ()


def test_this_host_is_examined_without_a_trace_and_the_report_survives_json(tmp_path: Path) -> None:
    home, hot = tmp_path / "home", tmp_path / "hot"
    report = asyncio.run(doctor.examine(home, hot))
    names = [finding.name for finding in report.findings]
    assert len(names) == len(set(names))
    assert {
        "acceleration",
        "qemu",
        "memory",
        "hot-folder",
        "home-folder",
        "limits",
        "network",
        "libvirt",
    } <= set(names)
    assert all(finding.seen for finding in report.findings)
    assert all(finding.next_step for finding in report.of(Verdict.PROBLEM))
    assert report.usable == (not report.of(Verdict.PROBLEM))
    assert base.decode(base.encode(report), doctor.Report, "report") == report
    assert list(tmp_path.iterdir()) == []


def test_a_cgroup_that_allows_less_than_the_machine_has_is_the_limit(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 4194304 kB\n")
    assert machine.memory(tmp_path, tmp_path) == machine.Memory(8 * GIB, 4 * GIB)
    (tmp_path / "memory.current").write_text(f"{GIB}\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory(tmp_path, tmp_path).limited_by == ""
    (tmp_path / "memory.max").write_text(f"{2 * GIB}\n")
    assert machine.memory(tmp_path, tmp_path) == machine.Memory(
        2 * GIB, 1 * GIB, str(tmp_path / "memory.max")
    )


def test_the_mount_nearest_to_a_folder_counts_blanks_included(tmp_path: Path) -> None:
    inner = tmp_path / "a b"
    inner.mkdir()
    point = str(inner).replace(" ", "\\040")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mountinfo").write_text(
        "21 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        f"22 21 0:5 / {point} rw - tmpfs tmpfs rw\n"
        f"23 22 0:6 / {point}c rw shared:1 - xfs /dev/vdb rw\n"
    )
    assert machine.file_system(inner / "new", tmp_path).kind == "tmpfs"
    assert machine.file_system(tmp_path, tmp_path).kind == "ext4"


def test_a_program_with_a_loader_is_not_static(tmp_path: Path) -> None:
    static, dynamic = tmp_path / "static", tmp_path / "dynamic"
    static.write_bytes(b"\x7fELF" + bytes(2000) + b"/lib64/ld-linux-x86-64.so.2")
    dynamic.write_bytes(b"\x7fELF" + bytes(600) + b"/lib64/ld-linux-x86-64.so.2")
    assert machine.is_static(static)
    assert not machine.is_static(dynamic)
    assert not machine.is_static(tmp_path / "absent")
    assert not machine.is_static(Path("/bin/sh").resolve())


SIGHT = probe.Sight(
    library="11.3.0",
    uri="qemu:///system",
    daemon="11.3.0",
    hypervisor="QEMU 10.0.2",
    emulator="/usr/bin/qemu-system-x86_64",
    hooks="/etc/libvirt/hooks",
    memory_folder="/dev/shm/libvirt/qemu",
)


@pytest.mark.parametrize(
    ("sight", "words"),
    [
        (SIGHT, ("11.3.0 at qemu:///system", "QEMU 10.0.2", "hooks: none", "/dev/shm/libvirt/qemu")),
        (SIGHT.replace(scripts=("qemu", "qemu.d/liveclone")), ("hooks: qemu, qemu.d/liveclone",)),
        (
            SIGHT.replace(hypervisor="", emulator="", error="no capabilities"),
            ("11.3.0 at", "no capabilities"),
        ),
        (
            probe.Sight(library="9.0.0", error="No such file"),
            ("library 9.0.0, and no daemon", "No such file"),
        ),
        (probe.Sight(error="No module named 'libvirt'"), ("No module", "liveclone[libvirt]")),
    ],
)
def test_libvirt_is_shown_as_it_is_and_may_be_absent(sight: probe.Sight, words: tuple[str, ...]) -> None:
    finding = host_findings.judge_libvirt(sight)
    assert finding.verdict is Verdict.OK
    assert all(word in finding.seen for word in words), finding.seen
    assert finding.facts["daemon"] == sight.daemon


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        (None, "/var/lib/libvirt/qemu/ram"),
        ('#memory_backing_dir = "/x"\nuser = "root"\n', "/var/lib/libvirt/qemu/ram"),
        ('  memory_backing_dir="/dev/shm/vms"  \n', "/dev/shm/vms/libvirt/qemu"),
    ],
)
def test_where_libvirt_has_ram_files_is_read_from_its_configuration(
    tmp_path: Path, text: str | None, folder: str
) -> None:
    if text is not None:
        (tmp_path / "qemu.conf").write_text(text)
    assert probe.find_memory_folder(tmp_path / "qemu.conf") == folder


def test_the_scripts_that_libvirt_runs_are_listed(tmp_path: Path) -> None:
    assert probe.find_scripts(tmp_path / "hooks") == ()
    (tmp_path / "hooks" / "qemu.d").mkdir(parents=True)
    for name in ("qemu.d/two", "qemu.d/one", "qemu"):
        make_program(tmp_path / "hooks", name, "exit 0")
    (tmp_path / "hooks" / "qemu.d" / "README").write_text("not a program")
    assert probe.find_scripts(tmp_path / "hooks") == ("qemu", "qemu.d/one", "qemu.d/two")


def test_a_library_that_cannot_be_asked_is_said_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "ANSWER_DEADLINE_S", 0.0)
    sight = asyncio.run(probe.look())
    assert sight.library == ""
    assert sight.error
