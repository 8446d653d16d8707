"""What a machine keeps of its network on disk and in the kernel, on a guest's root in a temporary folder."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from liveclone.guest import lifecycle
from liveclone.guest.context import Context
from liveclone.guest.items import Item
from liveclone.guest.items.dhcp import Dhcp
from liveclone.guest.items.ipv6_secrets import Ipv6Secrets
from liveclone.guest.items.network_programs import NetworkPrograms
from liveclone.guest.request import Request

from .conftest import KEY, RecordingKernel

Write = Callable[..., Path]

SOURCE = Path(__file__).parents[3] / "src"
REAL = """
import os, sys
from liveclone.guest.context import Context
from liveclone.guest.items.ipv6_secrets import Ipv6Secrets
from liveclone.guest.kernel import Kernel
from liveclone.guest.request import Request

assert os.readlink("/proc/self/ns/net") != os.readlink(f"/proc/{os.getppid()}/ns/net"), "not in a namespace of its own"
root, secret = sys.argv[1:]
ctx = Context(root, Kernel(), Request("x", "identify", {}, 10, lambda reply: None), b"")
print(Ipv6Secrets().observe(ctx)[0])
open("/proc/sys/net/ipv6/conf/default/stable_secret", "w").write(secret)
print(Ipv6Secrets().observe(ctx)[0].decode())
Ipv6Secrets().reset(ctx)
print(Ipv6Secrets().observe(ctx)[0].decode())
"""


@pytest.fixture
def ctx(root: Path, kernel: RecordingKernel) -> Context:
    args = {"key": KEY, "hostname": "clone-1"}
    return Context(
        str(root), kernel, Request("x", "identify", args, 10, lambda reply: None), bytes.fromhex(KEY)
    )


@pytest.fixture
def write(root: Path) -> Write:
    """Return what writes a file of the guest."""

    def write(name: str, text: str, mode: int = 0o644) -> Path:
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


def reset(item: Item, ctx: Context) -> dict[str, Any]:
    """Reset as the agent does; return its report."""
    report = lifecycle._reset(ctx, item)
    assert report["error"] == ""
    return report


class TestDhcp:
    OLD = "00:04:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff:00"

    def test_leases_go_and_a_servers_stay(self, ctx: Context, root: Path, write: Write) -> None:
        gone = [
            write(name, "lease")
            for name in (
                "/var/lib/dhcp/dhclient.eth0.leases",
                "/var/lib/dhcp/dhclient6.eth0.leases",
                "/var/lib/dhclient/dhclient.leases",
                "/var/lib/dhcpcd/eth0.lease",
                "/var/lib/dhcpcd/eth0.lease6",
                "/var/lib/dhcpv6/dhcp6c_duid",
                "/var/lib/NetworkManager/internal-0a-eth0.lease",
                "/var/lib/NetworkManager/timestamps",
                "/var/lib/NetworkManager/seen-bssids",
                "/run/systemd/netif/leases/2",
            )
        ]
        stays = [
            write(name, "other")
            for name in (
                "/var/lib/dhcp/dhcpd.leases",
                "/var/lib/NetworkManager/NetworkManager.state",
                "/var/lib/dhcpcd/secret",
            )
        ]
        report = reset(Dhcp(), ctx)
        assert report["status"] == "configured", "there is nothing to compare"
        assert report["details"] == {"removed": str(len(gone))}
        assert not [path for path in gone if path.exists()]
        assert [path.read_text() for path in stays] == ["other"] * len(stays)
        assert set(ctx.touched) == {str(path) for path in gone}
        assert reset(Dhcp(), ctx)["status"] == "absent"

    def test_dhcpcds_duid_is_renewed_and_keeps_its_owner(
        self, ctx: Context, write: Write, needs_root: None
    ) -> None:
        path = write("/var/lib/dhcpcd/duid", self.OLD + "\n", 0o640)
        os.chown(path, 12, 34)
        report = reset(Dhcp(), ctx)
        assert report["status"] == "changed"
        assert report["before"] != report["after"]
        assert re.fullmatch(r"00:04(:[0-9a-f]{2}){16}\n", path.read_text())
        assert path.read_text().strip() != self.OLD
        now = path.stat()
        assert (stat.S_IMODE(now.st_mode), now.st_uid, now.st_gid) == (0o640, 12, 34)

    def test_a_guest_without_any(self, ctx: Context, root: Path) -> None:
        before = sorted(root.rglob("*"))
        assert reset(Dhcp(), ctx)["status"] == "absent"
        assert sorted(root.rglob("*")) == before


class TestIpv6Secrets:
    CONF = "/proc/sys/net/ipv6/conf"
    OLD = "2001:0db8:0000:0000:0000:0000:0000:0001"

    def test_the_kernels_and_the_lines_that_set_them_at_boot(self, ctx: Context, write: Write) -> None:
        default = write(f"{self.CONF}/default/stable_secret", self.OLD + "\n")
        write(f"{self.CONF}/lo/mtu", "65536\n")
        sysctl = write(
            "/etc/sysctl.d/60-ipv6.conf",
            "# net.ipv6.conf.default.stable_secret = kept\n"
            f"net.ipv6.conf.default.stable_secret = {self.OLD}\n"
            f"-net/ipv6/conf/eth0.7/stable_secret={self.OLD}\n"
            "net.ipv4.ip_forward = 1\n",
        )
        other = write("/etc/sysctl.conf", "vm.swappiness = 1\n")
        report = reset(Ipv6Secrets(), ctx)
        assert report["status"] == "changed"
        lines = sysctl.read_text().splitlines()
        kernels, card = default.read_text().strip(), lines[2].partition("=")[2]
        for secret in (kernels, card):
            assert socket.inet_pton(socket.AF_INET6, secret) != socket.inet_pton(socket.AF_INET6, self.OLD)
        assert kernels != card
        assert lines == [
            "# net.ipv6.conf.default.stable_secret = kept",
            f"net.ipv6.conf.default.stable_secret = {kernels}",
            f"-net/ipv6/conf/eth0.7/stable_secret={card}",
            "net.ipv4.ip_forward = 1",
        ]
        assert str(other) not in ctx.touched

    @pytest.mark.parametrize("old", [bytes(range(128, 160)), b"nm-v2:" + b"A" * 44 + b"\n"])
    def test_networkmanagers_key(self, ctx: Context, root: Path, old: bytes) -> None:
        path = root / "var/lib/NetworkManager/secret_key"
        path.parent.mkdir(parents=True)
        path.write_bytes(old)
        path.chmod(0o600)
        assert reset(Ipv6Secrets(), ctx)["status"] == "changed"
        assert re.fullmatch(r"nm-v2:[A-Za-z0-9+/]{43}=\n", path.read_text())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_dhcpcds(self, ctx: Context, write: Write) -> None:
        path = write("/var/lib/dhcpcd/secret", ":".join(["5b"] * 64) + "\n")
        assert reset(Ipv6Secrets(), ctx)["status"] == "changed"
        assert re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){63}\n", path.read_text())

    def test_a_guest_without_any(self, ctx: Context, root: Path, write: Write) -> None:
        write("/etc/sysctl.d/10.conf", "net.ipv6.conf.all.forwarding = 0\n")
        assert reset(Ipv6Secrets(), ctx)["status"] == "absent"
        assert ctx.touched == []

    def test_the_real_kernel(self, root: Path, needs_root: None) -> None:
        """In a network namespace of its own, whose part of /proc is seen through a link."""
        (root / "proc").rmdir()
        (root / "proc").symlink_to("/proc")
        done = subprocess.run(
            ["unshare", "--net", sys.executable, "-c", REAL, str(root), self.OLD],
            env={"PYTHONPATH": str(SOURCE)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        unset, old, new = done.stdout.split()
        assert (unset, old) == ("None", self.OLD)
        assert re.fullmatch(r"[0-9a-f]{4}(:[0-9a-f]{4}){7}", new) and new != old


class TestNetworkPrograms:
    def test_clients_are_ended_and_nobody_else(self, ctx: Context, write: Write) -> None:
        names = ("NetworkManager", "dhclient", "dhcpcd-gtk")
        children = {name: subprocess.Popen(["sleep", "60"]) for name in names}
        try:
            for name, child in children.items():
                write(f"/proc/{child.pid}/comm", name + "\n")
            write("/proc/4194304/comm", "dhcpcd\n")  # it ended meanwhile: a number above all that Linux gives
            report = reset(NetworkPrograms(), ctx)
            assert report["status"] == "configured"
            assert report["details"] == {"ended": "NetworkManager dhclient dhcpcd"}
            for name in ("NetworkManager", "dhclient"):
                assert children[name].wait(5) == -signal.SIGKILL
            assert children["dhcpcd-gtk"].poll() is None
        finally:
            for child in children.values():
                child.kill()
                child.wait()

    def test_a_guest_without_any(self, ctx: Context) -> None:
        assert reset(NetworkPrograms(), ctx)["details"] == {}
