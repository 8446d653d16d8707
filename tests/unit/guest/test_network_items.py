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

from liveclone.guest import renewal
from liveclone.guest.context import Context
from liveclone.guest.items import Item
from liveclone.guest.items.cloud_init import CloudInit
from liveclone.guest.items.conntrack import Conntrack
from liveclone.guest.items.dhcp import Dhcp
from liveclone.guest.items.interface_names import InterfaceNames
from liveclone.guest.items.ipv6_secrets import Ipv6Secrets
from liveclone.guest.items.network_programs import NetworkPrograms
from liveclone.guest.request import Request

from .conftest import KEY, Host, RecordingKernel

Write = Callable[..., Path]

SOURCE = Path(__file__).parents[3] / "src"
REAL = """
import os, sys
from liveclone.guest.context import Context
from liveclone.guest.items.interface_names import InterfaceNames
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

TRACKED = """
import errno, os, socket, struct, sys
from liveclone.guest import netlink
from liveclone.guest.kernel import Kernel

assert os.readlink("/proc/self/ns/net") != os.readlink(f"/proc/{os.getppid()}/ns/net"), "not in a namespace of its own"


def attribute(kind, *parts):
    data = b"".join(parts)
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def ends(kind, source, target):  # CTA_TUPLE_*: the addresses, and UDP from port 9 to port 9
    addresses = attribute(1, socket.inet_aton(source)), attribute(2, socket.inet_aton(target))
    port = struct.pack(">H", 9)
    protocol = attribute(1, bytes([17])), attribute(2, port), attribute(3, port)
    return attribute(0x8000 | kind, attribute(0x8001, *addresses), attribute(0x8002, *protocol))


def count():
    return int(open("/proc/sys/net/netfilter/nf_conntrack_count").read())


there, back = ends(1, "10.0.0.1", "10.0.0.2"), ends(2, "10.0.0.2", "10.0.0.1")
body = bytes([socket.AF_INET, 0, 0, 0]) + there + back + attribute(7, struct.pack(">I", 600))
with netlink.Netlink(netlink.NETFILTER) as filters:
    told = filters.carry_out([(0x100, 0x600, body)])[0]  # IPCTNL_MSG_CT_NEW, create, exclusive
    if told in (errno.EINVAL, errno.EPROTONOSUPPORT):
        sys.exit(77)
    netlink.raise_for(told, "an entry")
assert count() == 1
Kernel().forget_tracked()
assert count() == 0
"""

LEASED = """
import os, subprocess
from liveclone.guest.kernel import Kernel

assert os.readlink("/proc/self/ns/net") != os.readlink(f"/proc/{os.getppid()}/ns/net"), "not in a namespace of its own"


def ip(*words):
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


life = ["valid_lft", "3600", "preferred_lft", "1800"]
ip("link", "set", "lo", "up")
for address in ("10.1.0.1/24", "2001:db8::1/64"):
    ip("address", "add", address, "dev", "lo")
for address in ("10.1.0.2/24", "10.2.0.1/24", "10.2.0.2/24", "2001:db8::2/64"):
    ip("address", "add", address, "dev", "lo", *life)
print(Kernel().remove_leased(), Kernel().remove_leased())
print(*sorted(line.split()[3] for line in ip("-oneline", "address").splitlines()))
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


def run_in_namespace(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program in a new network namespace."""
    return subprocess.run(
        ["unshare", "--net", sys.executable, "-c", script, *args],
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def reset(item: Item, ctx: Context) -> dict[str, Any]:
    """Reset as the agent does; return its report."""
    report = renewal.reset(ctx, item)
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
        done = run_in_namespace(REAL, str(root), self.OLD)
        assert done.returncode == 0, done.stderr
        unset, old, new = done.stdout.split()
        assert (unset, old) == ("None", self.OLD)
        assert re.fullmatch(r"[0-9a-f]{4}(:[0-9a-f]{4}){7}", new) and new != old


class TestInterfaceNames:
    MAC, OTHER = "52:54:00:aa:bb:cc", "52:54:00:00:00:01"
    UUID = "0b1f2e3d-1111-4222-8333-444455556666"

    @pytest.fixture
    def item(self, ctx: Context, kernel: RecordingKernel) -> InterfaceNames:
        """Return the item as it is in a clone: it saw a card before the snapshot, and there is none now."""
        item = InterfaceNames()
        kernel.cards = [
            ("eth0", self.MAC, []),
            ("sit0", "00:00:00:00", []),
            ("tun0", "00:00:00:00:00:00", []),
        ]
        item.warm(ctx)
        kernel.cards = []
        return item

    @pytest.mark.parametrize(
        ("name", "before", "after"),
        [
            (
                "/etc/udev/rules.d/70-persistent-net.rules",
                '# eth0\nATTR{address}=="52:54:00:AA:BB:CC", NAME="eth0"\nATTR{address}=="52:00:00:00:00:01", NAME="x"\n',
                '# eth0\nATTR{address}=="52:00:00:00:00:01", NAME="x"\n',
            ),
            (
                "/etc/systemd/network/10-lan.link",
                "[Match]\nMACAddress=52:54:00:aa:bb:cc\n[Link]\nName=lan\n",
                None,
            ),
            (
                "/etc/systemd/network/10-lan.link",
                "[Match]\nPermanentMACAddress=52-54-00-aa-bb-cc 52:54:00:00:00:01\n[Link]\nName=lan\n",
                None,
            ),
            (
                "/etc/systemd/network/10-lan.link",
                "[Match]\nDriver=virtio_net\n[Link]\nMACAddress=52:54:00:aa:bb:cc\nName=lan\n",
                "[Match]\nDriver=virtio_net\n[Link]\nName=lan\n",
            ),
            (
                "/etc/systemd/network/20.network",
                "[Match]\nName=eth0\n[Link]\nMACAddress = 52:54:00:aa:bb:cc\n[Network]\nDHCP=yes\n",
                "[Match]\nName=eth0\n[Link]\n[Network]\nDHCP=yes\n",
            ),
            (
                "/etc/NetworkManager/system-connections/lan.nmconnection",
                "[ethernet]\ncloned-mac-address=52:54:00:AA:BB:CC\nmtu=1400\n",
                "[ethernet]\nmtu=1400\n",
            ),
            (
                "/etc/sysconfig/network-scripts/ifcfg-eth0",
                "MACADDR=52:54:00:aa:bb:cc\nBOOTPROTO=dhcp\n",
                "BOOTPROTO=dhcp\n",
            ),
            (
                "/etc/network/interfaces",
                "iface eth0 inet dhcp\n    hwaddress ether 52:54:00:aa:bb:cc\n",
                "iface eth0 inet dhcp\n",
            ),
            (
                "/etc/network/interfaces.d/eth0",
                "iface eth0 inet dhcp\n\thwaddress 52:54:00:aa:bb:cc\n",
                "iface eth0 inet dhcp\n",
            ),
            (
                "/etc/netplan/50.yaml",
                "network:\n  ethernets:\n    a:\n      dhcp4: true\n      macaddress: 52:54:00:aa:bb:cc\n",
                "network:\n  ethernets:\n    a:\n      dhcp4: true\n",
            ),
        ],
    )
    def test_what_names_or_gives_the_sources_mac_goes(
        self, ctx: Context, write: Write, item: Item, name: str, before: str, after: str | None
    ) -> None:
        path = write(name, before)
        assert reset(item, ctx)["status"] == "configured"
        assert (path.read_text() if path.exists() else None) == after
        assert reset(item, ctx)["status"] == "absent"

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            (
                "/etc/systemd/network/20.network",
                "[Match]\nMACAddress=52:54:00:aa:bb:cc\n[Network]\nDHCP=yes\n",
            ),
            ("/etc/NetworkManager/system-connections/lan", "[ethernet]\nmac-address=52:54:00:AA:BB:CC\n"),
            ("/etc/sysconfig/network-scripts/ifcfg-eth0", "HWADDR=52:54:00:aa:bb:cc\nIPADDR=10.0.0.1\n"),
            (
                "/etc/netplan/50-cloud-init.yaml",
                'network:\n  ethernets:\n    e:\n      match:\n        macaddress: "52:54:00:aa:bb:cc"\n',
            ),
        ],
    )
    def test_what_is_for_the_sources_card_alone_stays_and_is_told(
        self, ctx: Context, write: Write, item: Item, name: str, text: str
    ) -> None:
        path = write(name, text)
        write("/etc/NetworkManager/system-connections/other", "[ethernet]\nmac-address=52:54:00:00:00:01\n")
        assert reset(item, ctx)["details"] == {"kept": name}
        assert path.read_text() == text

    def test_connections_get_new_uuids_wherever_they_are_named(
        self, ctx: Context, write: Write, item: Item
    ) -> None:
        folder = "/etc/NetworkManager/system-connections"
        bond = write(f"{folder}/bond.nmconnection", f"[connection]\nid=bond\nuuid={self.UUID}\n", 0o600)
        port = write(
            f"{folder}/port.nmconnection",
            f"[connection]\nuuid=99999999-1111-4222-8333-444455556666\nmaster={self.UUID}\n",
            0o600,
        )
        old = write(
            "/etc/sysconfig/network-scripts/ifcfg-old",
            f'UUID="{self.UUID.replace("0b", "0c")}"\nONBOOT=yes\n',
        )
        report = reset(item, ctx)
        assert report["status"] == "changed"
        found = re.search(
            r"uuid=([0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})\n", bond.read_text()
        )
        assert found and found[1] != self.UUID
        assert port.read_text().endswith(f"master={found[1]}\n")
        assert "99999999" not in port.read_text()
        assert stat.S_IMODE(port.stat().st_mode) == 0o600
        assert "0c1f2e3d" not in old.read_text() and old.read_text().endswith('"\nONBOOT=yes\n')

    def test_networkmanager_finds_its_cards_again(self, ctx: Context, write: Write, item: Item) -> None:
        """Which connection a card has is told by its uuid; one that only this run of the system has counts, too."""
        name = "system-connections/lan.nmconnection"
        lan = write(f"/etc/NetworkManager/{name}", f"uuid={self.UUID}\n", 0o600)
        other = self.UUID.replace("0b", "0c")
        run = write(f"/run/NetworkManager/{name}", f"uuid={other}\n", 0o600)
        text = f"[device]\nperm-hw-addr-fake={self.MAC}\nconnection-uuid={{}}\n"
        cards = [
            write(f"/run/NetworkManager/devices/{number}", text.format(uuid))
            for number, uuid in enumerate([self.UUID, other, "none"])
        ]
        assert reset(item, ctx)["details"] == {}
        fresh = [path.read_text().strip().removeprefix("uuid=") for path in (lan, run)]
        assert len({*fresh, self.UUID, other}) == 4
        assert [path.read_text() for path in cards] == [text.format(uuid) for uuid in (*fresh, "none")]

    def test_macs_that_the_host_gave_count_too(self, ctx: Context, write: Write) -> None:
        write("/var/lib/liveclone/network.json", f'[{{"mac": "{self.MAC.upper()}"}}]\n')
        rules = write("/etc/udev/rules.d/70-persistent-net.rules", f'ATTR{{address}}=="{self.MAC}"\n')
        reset(InterfaceNames(), ctx)
        assert rules.read_text() == ""

    def test_udev_is_told(self, ctx: Context, write: Write, item: Item) -> None:
        udevd = subprocess.Popen(["sleep", "60"])
        try:
            write(f"/proc/{udevd.pid}/comm", "systemd-udevd\n")
            write("/etc/network/interfaces", f"hwaddress {self.MAC}\n")
            reset(item, ctx)
            assert udevd.poll() is None
            write("/etc/udev/rules.d/70-persistent-net.rules", f'ATTR{{address}}=="{self.MAC}"\n')
            reset(item, ctx)
            assert udevd.wait(5) == -signal.SIGHUP
        finally:
            udevd.kill()
            udevd.wait()

    def test_a_guest_without_any(self, ctx: Context, root: Path, item: Item, write: Write) -> None:
        write("/etc/network/interfaces", "iface eth0 inet dhcp\n")
        assert reset(item, ctx)["status"] == "absent"
        assert ctx.touched == []

    def test_the_agent_notes_the_macs_before_the_snapshot(
        self, host: Host, root: Path, kernel: RecordingKernel, write: Write, identity: dict[str, Any]
    ) -> None:
        kernel.cards = [("eth0", self.MAC, [])]
        rules = write("/etc/udev/rules.d/70-persistent-net.rules", f'ATTR{{address}}=="{self.MAC}"\n')
        host.call("prepare", key=KEY, snapshot="s1")
        kernel.cards = []
        host.call("identify", **identity)
        assert rules.read_text() == ""


class TestConntrack:
    COUNT = "/proc/sys/net/netfilter/nf_conntrack_count"

    def test_entries_are_dropped(self, ctx: Context, write: Write, kernel: RecordingKernel) -> None:
        write(self.COUNT, "3\n")
        report = reset(Conntrack(), ctx)
        assert (report["status"], report["details"]) == ("configured", {"dropped": "3"})
        assert kernel.forgot_tracked == 1

    @pytest.mark.parametrize(("count", "status"), [("0\n", "configured"), (None, "absent")])
    def test_without_entries_the_kernel_is_not_asked(
        self, ctx: Context, write: Write, kernel: RecordingKernel, count: str | None, status: str
    ) -> None:
        if count is not None:
            write(self.COUNT, count)
        assert reset(Conntrack(), ctx)["status"] == status
        assert kernel.forgot_tracked == 0

    def test_the_real_kernel(self, needs_root: None) -> None:
        """In a network namespace of its own, with an entry made by hand."""
        if not Path(self.COUNT).exists():
            pytest.skip("this kernel does not track connections")
        done = run_in_namespace(TRACKED)
        if done.returncode == 77:
            pytest.skip("nf_conntrack_netlink is missing")
        assert done.returncode == 0, done.stderr


class TestCloudInit:
    OLD = "i-0123abcd"

    @pytest.fixture
    def cloud(self, root: Path, write: Write) -> Path:
        """Return cloud-init's folder after a boot of an instance with the id OLD."""
        cloud = root / "var/lib/cloud"
        write("/var/lib/cloud/data/instance-id", self.OLD + "\n")
        write(f"/var/lib/cloud/instances/{self.OLD}/sem/config_ssh", "done\n")
        write(f"/var/lib/cloud/instances/{self.OLD}/obj.pkl", "the source's metadata")
        write(f"/var/lib/cloud/instances/{self.OLD}/datasource", "DataSourceConfigDrive [net,ver=2]\n")
        # Relative: the absolute one of a real guest would lead out of this folder.
        (cloud / "instance").symlink_to(f"instances/{self.OLD}")
        return cloud

    @pytest.mark.parametrize(
        "meta_data",
        [
            "instance-id: i-0123abcd\nlocal-hostname: source\nother: i-9\n",
            '{"instance-id": "i-0123abcd", "local-hostname": "source", "other": "i-9"}\n',
        ],
    )
    def test_a_seed_on_the_disk_gets_a_new_id(
        self, ctx: Context, cloud: Path, write: Write, meta_data: str
    ) -> None:
        seed = write("/var/lib/cloud/seed/nocloud/meta-data", meta_data, 0o600)
        data = write("/run/cloud-init/instance-data.json", '{"instance_id": "i-0123abcd"}\n', 0o640)
        report = reset(CloudInit(), ctx)
        assert report["status"] == "changed"
        new = (cloud / "data/instance-id").read_text().strip()
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", new)
        assert seed.read_text() == meta_data.replace(self.OLD, new).replace("source", "clone-1")
        assert stat.S_IMODE(seed.stat().st_mode) == 0o600
        assert (cloud / "instance").readlink() == Path(f"/var/lib/cloud/instances/{new}")
        assert [path.name for path in (cloud / "instances").iterdir()] == [new]
        assert (cloud / f"instances/{new}/sem/config_ssh").read_text() == "done\n"
        assert not (cloud / f"instances/{new}/obj.pkl").exists()
        assert data.read_text() == f'{{"instance_id": "{new}"}}\n'
        assert not [
            path for path in cloud.rglob("*") if self.OLD in path.name or path.name.endswith(".liveclone")
        ]

    @pytest.mark.parametrize("seed", [None, "instance-id: another\n"])
    def test_an_id_from_outside_stays(
        self, ctx: Context, cloud: Path, write: Write, seed: str | None
    ) -> None:
        if seed is not None:
            write("/var/lib/cloud/seed/nocloud-net/meta-data", seed)
        report = reset(CloudInit(), ctx)
        assert report["status"] == "configured"
        assert report["details"] == {"given_by": "DataSourceConfigDrive [net,ver=2]"}
        assert (cloud / "data/instance-id").read_text() == self.OLD + "\n"
        assert ctx.touched == []

    @pytest.mark.parametrize("text", [None, "", "iid-datasource-none\n"])
    def test_a_guest_without_one(self, ctx: Context, write: Write, text: str | None) -> None:
        if text is not None:
            write("/var/lib/cloud/data/instance-id", text)
        assert reset(CloudInit(), ctx)["status"] == "absent"
        assert ctx.touched == []


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

    def test_what_was_something_else_before_the_snapshot_is_passed_over(
        self, ctx: Context, write: Write
    ) -> None:
        item = NetworkPrograms()
        write("/proc/4194304/comm", "bash\n")
        write("/proc/4194305/comm", "dhclient\n")
        item.warm(ctx)
        write("/proc/4194306/comm", "NetworkManager\n")
        assert reset(item, ctx)["details"] == {"ended": "NetworkManager dhclient"}
        write("/proc/4194304/comm", "dhcpcd\n")
        assert reset(item, ctx)["details"] == {"ended": "NetworkManager dhclient"}, "it is known"

    def test_addresses_that_were_given_for_a_time_go(self, ctx: Context, kernel: RecordingKernel) -> None:
        kernel.leased = 2
        assert reset(NetworkPrograms(), ctx)["details"] == {"leased": "2"}

    def test_the_real_kernel(self, needs_root: None) -> None:
        """In a network namespace of its own. With its first address goes the last of a subnet."""
        done = run_in_namespace(LEASED)
        assert done.returncode == 0, done.stderr
        counts, left = done.stdout.splitlines()
        assert counts == "4 0"
        assert left.split() == ["10.1.0.1/24", "127.0.0.1/8", "2001:db8::1/64", "::1/128"]

    def test_a_guest_without_any(self, ctx: Context) -> None:
        assert reset(NetworkPrograms(), ctx)["details"] == {}
