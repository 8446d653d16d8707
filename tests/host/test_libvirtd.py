"""The private libvirtd of the tests: its domains outlive it, and nothing outlives `stop`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from liveclone.drivers.libvirt import probe
from tests.conftest import Needs
from tests.libvirtd import Libvirtd

pytestmark = pytest.mark.machine  # QEMUs without a guest

libvirt = pytest.importorskip("libvirt")

# Stands still before its first instruction.
TINY = """
<domain type='qemu'>
  <name>tiny</name>
  <memory unit='MiB'>16</memory>
  <memoryBacking><source type='file'/></memoryBacking>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <channel type='unix'><target type='virtio' name='org.liveclone.agent.0'/></channel>
  </devices>
</domain>
"""


@pytest.fixture
def plan(needs: Needs, cache_folder: Path) -> Libvirtd:
    """Return a libvirtd that is not started."""
    needs("libvirtd", "qemu-system-x86_64", root=True)
    folder, hot = (
        Path(os.environ[name]).with_name("libvirtd") for name in ("LIVECLONE_HOME", "LIVECLONE_HOT")
    )
    return Libvirtd(folder, hot=hot, cache=cache_folder / "libvirt")


@pytest.fixture
def daemon(plan: Libvirtd) -> Iterator[Libvirtd]:
    with plan:
        yield plan


def start_tiny(daemon: Libvirtd) -> Any:
    connection = libvirt.open(daemon.uri)
    connection.defineXML(TINY).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    return connection


def read_pid(name: str) -> int:
    return int(Path("/run/libvirt", name).read_text())


def inhabitants(*namespaces: str) -> set[int]:
    """Return the processes that are in one of these namespaces ("net:[4026532179]")."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/ns/*"):
        with contextlib.suppress(OSError):  # it has just ended
            if str(link.readlink()) in namespaces:
                found.add(int(link.parts[2]))
    return found


def read_words(pid: int) -> bytes:
    """Return a process's command line, which is empty once it has ended, though its parent may not have noticed."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def look_around() -> dict[str, object]:
    """Return what a libvirtd may leave on the host, where others are at work."""
    trees = [Path(path) for path in ("/etc/libvirt", "/run/libvirt", "/var/lib/libvirt", "/var/log/libvirt")]
    run, hot = (Path(os.environ[name]).parent for name in ("LIVECLONE_HOME", "LIVECLONE_HOT"))
    return {
        "mounts": [
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "libvirt" in line
        ],
        "namespace": Path("/proc/thread-self/ns/mnt").readlink(),
        "folder": Path.cwd(),
        "links": sorted(Path("/sys/class/net").glob("v*")),
        "files": sorted(str(path) for tree in (*trees, run, hot) for path in tree.rglob("*")),
    }


def test_a_domain_outlives_libvirtd(daemon: Libvirtd) -> None:
    connection = start_tiny(daemon)
    domain = connection.lookupByName("tiny")
    qemu, before = read_pid("qemu/tiny.pid"), daemon.pid
    network = Path(f"/proc/{before}/ns/net").readlink()
    daemon.restart()
    assert Path(f"/proc/{daemon.pid}/ns/net").readlink() == network
    assert daemon.pid != before
    again = libvirt.open(daemon.uri).lookupByUUIDString(domain.UUIDString())
    assert again.state()[0] == libvirt.VIR_DOMAIN_PAUSED
    assert again.ID() == domain.ID()
    assert read_pid("qemu/tiny.pid") == qemu


def test_its_paths_are_where_libvirt_says(daemon: Libvirtd) -> None:
    start_tiny(daemon)
    sockets = list(Path("/run/libvirt/qemu/channel").rglob("org.liveclone.agent.0"))
    assert [path.is_socket() for path in sockets] == [True]
    assert Path("/etc/libvirt/hooks").samefile(daemon.hooks)
    assert [path.name for path in daemon.memory.iterdir()] == ["1-tiny"]


def test_doctor_sees_it_and_its_folders(daemon: Libvirtd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    hook = daemon.hooks / "qemu.d" / "one"
    hook.parent.mkdir()
    hook.touch(0o755)
    sight = asyncio.run(probe.look())
    assert (sight.uri, sight.error) == ("qemu:///system", "")
    assert sight.daemon == probe.render_version(libvirt.open(daemon.uri).getLibVersion())
    assert sight.hypervisor.startswith("QEMU ")
    assert sight.emulator.endswith("/qemu-system-x86_64")
    assert sight.scripts == ("qemu.d/one",)
    assert sight.memory_folder == str(daemon.memory)


def test_doctor_says_that_nobody_answers(daemon: Libvirtd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    daemon.kill()
    sight = asyncio.run(probe.look())
    assert sight.library
    assert sight.daemon == ""
    assert "libvirt-sock" in sight.error


def test_stop_leaves_nothing(plan: Libvirtd) -> None:
    Path("/run/libvirt").mkdir(
        exist_ok=True
    )  # all that the first one on a host leaves: the place to mount on
    before = look_around()
    with plan:
        connection = start_tiny(plan)
        connection.networkCreateXML(
            "<network><name>n</name><ip address='10.9.8.1' prefix='24'><dhcp>"
            "<range start='10.9.8.2' end='10.9.8.9'/></dhcp></ip></network>"
        )
        namespaces = {
            str(Path(f"/proc/{plan.pid}/ns/net").readlink()),
            str(Path("/proc/thread-self/ns/mnt").readlink()),
        }
        ours = {plan.pid, read_pid("qemu/tiny.pid")}
        assert ours < inhabitants(*namespaces)
        assert look_around()["links"] == before["links"]
        assert look_around() != before
    assert look_around() == before
    assert inhabitants(*namespaces) == set()
    assert [pid for pid in ours if read_words(pid)] == []


def test_a_start_that_fails_leaves_nothing(plan: Libvirtd) -> None:
    Path("/run/libvirt").mkdir(exist_ok=True)
    before = look_around()
    bad = Libvirtd(plan.folder, namespace="liveclone-no-such")
    with pytest.raises(AssertionError, match="liveclone-no-such"):
        bad.start()
    assert look_around() == before
