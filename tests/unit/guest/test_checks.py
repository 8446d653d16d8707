"""The clone-safety checks on a guest's root in a folder: each finds what it is for, and nothing where nothing is."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from liveclone.guest.checks import Guest, connections, load_checks
from liveclone.guest.checks.environments import is_secret
from liveclone.guest.programs import Program, list_programs
from liveclone.guest.request import Request
from liveclone.guest.scan import scan

from .conftest import Host, RecordingKernel

NAMES = [
    *("connections", "containers", "enrolments", "environments", "fixed-addresses", "generators"),
    *("jobs", "key-agents", "mounts", "secret-files", "shared"),
]
TICKS = os.sysconf("SC_CLK_TCK")

Start = Callable[..., None]
Look = Callable[[], list[dict[str, str]]]


@pytest.fixture
def start(root: Path) -> Start:
    """Return what makes a process in the guest's /proc."""
    proc = root / "proc"
    (proc / "uptime").write_text("1000.00 900.00\n")

    def start(
        pid: int,
        name: str,
        *,
        unit: str = "",
        libraries: tuple[str, ...] = (),
        environment: str = "",
        sockets: tuple[int, ...] = (),
        cgroup: str = "",
        flags: int = 0x400000,
    ) -> None:
        folder = proc / str(pid)
        (folder / "fd").mkdir(parents=True)
        behind = ["S", "1", "1", "1", "0", "-1", str(flags), *["0"] * 12, str(100 * TICKS), *["0"] * 30]
        (folder / "stat").write_text(f"{pid} ({name}) {' '.join(behind)}\n")
        where = cgroup or (f"/system.slice/{unit}" if unit else "/user.slice/session-1.scope")
        (folder / "cgroup").write_text(f"0::{where}\n")
        mapped = [
            f"7f00-7f01 r-xp 00000000 fe:00 12   /usr/lib/x86_64-linux-gnu/{file}" for file in libraries
        ]
        mapped += [f"7f02-7f03 r--p 00000000 fe:00 12   /usr/lib/x86_64-linux-gnu/{f}.dat" for f in libraries]
        (folder / "maps").write_text("\n".join(mapped) + "\n")
        (folder / "environ").write_bytes(environment.encode())
        for number, inode in enumerate(sockets):
            (folder / "fd" / str(number)).symlink_to(f"socket:[{inode}]")

    return start


@pytest.fixture
def look(root: Path) -> Look:
    def look() -> list[dict[str, str]]:
        told = scan(str(root), Request("x", "scan", {}, 10, lambda reply: None))
        assert (told["failed"], told["checks"]) == ([], NAMES)
        found: list[dict[str, str]] = told["findings"]
        return found

    return look


def write(root: Path, path: str, text: str = "content\n") -> None:
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def facts(found: list[dict[str, str]]) -> set[tuple[str, str, str]]:
    return {(one["check"], one["subject"], one["remedy"]) for one in found}


def test_an_empty_guest_has_nothing(look: Look) -> None:
    assert look() == []


def test_it_is_a_call_of_the_agent(host: Host, root: Path) -> None:
    write(root, "/etc/krb5.keytab")
    told = host.call("scan")
    assert [one["check"] for one in told["findings"]] == ["enrolments"]
    assert told["checks"] == NAMES


def test_what_all_clones_will_share_is_told_unless_it_is_harmless(
    host: Host, root: Path, kernel: RecordingKernel
) -> None:
    kernel.cid = 7
    write(root, "/sys/class/dmi/id/product_uuid", "4c4c4544-0000-2010-8020-80c04f202020\n")
    write(root, "/dev/sda2", "\0" * 4096)
    write(root, "/proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n")
    found = host.call("scan")["findings"]
    assert facts(found) == {("shared", "dmi_uuid", "accept"), ("shared", "vsock_cid", "accept")}
    assert "licences" in next(one["advice"] for one in found if one["subject"] == "dmi_uuid")
    assert "4c4c4544" not in str(found)


def test_a_check_that_fails_is_told_and_keeps_no_other_from_running(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root, "/etc/krb5.keytab")

    def fail(self: object, guest: Guest) -> Any:
        raise OSError("no such thing")

    monkeypatch.setattr(connections.Connections, "look", fail)
    told = scan(str(root), Request("x", "scan", {}, 10, lambda reply: None))
    assert told["failed"] == [{"check": "connections", "error": "OSError: no such thing"}]
    assert len(told["findings"]) == 1
    assert told["checks"] == NAMES[1:]


def test_programs(root: Path, start: Start) -> None:
    start(1, "systemd")
    start(2, "kthreadd", flags=0x200000)
    start(30, "a (b) c", unit="getty@tty1.service", environment="A=1\0EMPTY=\0B=2\0")
    (root / "proc/31").mkdir()  # it has ended
    one, two = list_programs(str(root))
    assert (one.pid, one.unit) == (1, "")
    assert (two.name, two.unit, two.age_s) == ("a (b) c", "getty@tty1.service", 900)
    assert two.environment() == ["A", "B"]
    assert str(two) == "a (b) c (pid 30, getty@tty1.service)"


def test_a_real_process_is_read() -> None:
    with subprocess.Popen([shutil.which("sleep") or "sleep", "30"], env={"API_TOKEN": "x"}) as child:
        try:
            while "libc.so" not in Path(f"/proc/{child.pid}/maps").read_text():
                pass  # it is still being linked
            (found,) = [one for one in list_programs("/") if one.pid == child.pid]
            assert found.environment() == ["API_TOKEN"]
            assert any(name.startswith("libc.so") for name in found.libraries())
            assert 0 <= found.age_s < 20
        finally:
            child.kill()


class TestConnections:
    LINE = (
        "  0: {} {} {} 00000000:00000000 00:00000000 00000000  33        0 {} 1 0000000000000000 20 4 0 10 -1"
    )

    def table(self, root: Path, *rows: tuple[str, str, str, int], name: str = "tcp") -> None:
        lines = [self.LINE.format(*row) for row in rows]
        write(root, f"/proc/net/{name}", "\n".join(["  sl  local_address ...", *lines]) + "\n")

    def test_to_whom(self, root: Path, start: Start, look: Look) -> None:
        start(7, "nginx", unit="nginx.service", sockets=(501,))
        ours, theirs, local = "0200D50A:0050", "0100D50A:C350", "0100007F:0016"
        self.table(root, (ours, theirs, "01", 501), (ours, theirs, "06", 502), (local, local, "01", 503))
        (found,) = look()
        assert found["subject"] == "nginx (pid 7, nginx.service)"
        assert found["seen"] == "10.213.0.2:80 is connected to 10.213.0.1:50000"
        assert found["remedy"] == "accept"

    def test_version_6(self, root: Path, start: Start, look: Look) -> None:
        start(7, "app", sockets=(501,))

        def end(text: str, port: int) -> str:
            words = struct.unpack("=4I", socket.inet_pton(socket.AF_INET6, text))
            return "".join(f"{word:08X}" for word in words) + f":{port:04X}"

        self.table(
            root,
            (end("fd00::2", 443), end("fd00::1", 5000), "01", 501),
            (end("::1", 443), end("::1", 5000), "01", 502),
            (end("::ffff:127.0.0.1", 443), end("::ffff:127.0.0.1", 5000), "01", 502),
            name="tcp6",
        )
        (found,) = look()
        assert found["seen"] == "[fd00::2]:443 is connected to [fd00::1]:5000"

    def test_the_real_table_can_be_read(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
            assert all(one["seen"] for one in connections.Connections().look(Guest("/")))


class TestGenerators:
    def test_libraries(self, root: Path, start: Start, look: Look) -> None:
        start(5, "nginx", unit="nginx.service", libraries=("libssl.so.3", "libcrypto.so.3", "libc.so.6"))
        start(6, "login", libraries=("libgcrypt.so.20.4.1",))
        start(7, "cat", libraries=("libc.so.6", "libcrypt.so.1"))
        one, two = look()
        assert one["seen"] == "has OpenSSL, OpenSSL's TLS in memory, and runs for 900 s"
        assert (one["remedy"], two["remedy"]) == ("restart", "accept")
        assert "nginx.service" in one["advice"]
        assert two["subject"] == "login (pid 6)"

    @pytest.mark.parametrize(("name", "remedy"), [("10-nginx", "hook"), ("10-apache", "restart")])
    def test_a_hook_named_after_the_service(
        self, start: Start, look: Look, hook: Callable[..., Path], name: str, remedy: str
    ) -> None:
        hook("cloned", name, "exit 0\n")
        start(5, "nginx", unit="nginx.service", libraries=("libssl.so.3",))
        assert [one["remedy"] for one in look()] == [remedy]

    @pytest.mark.parametrize(
        ("listed", "remedy"), [("nginx", "hook"), ("nginx.service", "hook"), ("x", "restart")]
    )
    def test_a_service_that_is_restarted(
        self, root: Path, start: Start, look: Look, listed: str, remedy: str
    ) -> None:
        (root / "etc/liveclone").mkdir()
        (root / "etc/liveclone/restart").write_text(f"{listed}\n")
        start(5, "nginx", unit="nginx.service", libraries=("libssl.so.3",))
        assert [one["remedy"] for one in look()] == [remedy]

    def test_a_program_that_has_subscribed(self, root: Path, start: Start) -> None:
        start(5, "shop", unit="shop.service", libraries=("libssl.so.3",))
        start(6, "shop", unit="shop.service")  # one process of a service speaks for all of it
        start(7, "mine", libraries=("libssl.so.3",))
        start(8, "other", libraries=("libssl.so.3",))
        request = Request("", "scan", {}, 5.0, lambda reply: None)
        found = facts(scan(str(root), request, {6, 7})["findings"])
        assert found == {
            ("generators", "shop.service", "hook"),
            ("generators", "mine (pid 7)", "hook"),
            ("generators", "other (pid 8)", "accept"),
        }

    def test_one_finding_for_each_service(self, root: Path, start: Start, look: Look) -> None:
        start(41, "nginx", unit="nginx.service", libraries=("libssl.so.3", "libcrypto.so.3"))
        start(42, "nginx", unit="nginx.service", libraries=("libssl.so.3", "libcrypto.so.3"))
        start(43, "gnutls-serv", libraries=("libgnutls.so.30",))
        assert facts(look()) == {
            ("generators", "nginx.service", "restart"),
            ("generators", "gnutls-serv (pid 43)", "accept"),
        }

    def test_what_draws_from_the_kernel_alone_is_not_told(self, start: Start, look: Look) -> None:
        start(1, "systemd", libraries=("libcrypto.so.3",))
        units = ("systemd-udevd.service", "getty@tty1.service", "ssh.service", "dbus.service")
        for pid, unit in enumerate(units, 50):
            start(pid, "any", unit=unit, libraries=("libcrypto.so.3",))
        assert look() == []


def test_key_agents(start: Start, look: Look) -> None:
    start(5, "ssh-agent")
    start(6, "sshd")
    assert facts(look()) == {("key-agents", "ssh-agent (pid 5)", "refuse")}


def test_environments_are_told_by_name_and_never_by_value(start: Start, look: Look) -> None:
    start(
        5,
        "app",
        unit="app.service",
        environment="DB_PASSWORD=hunter2\0PATH=/bin\0API_TOKEN=\0AWS_SECRET_ACCESS_KEY=k\0",
    )
    (found,) = look()
    assert found["seen"] == "was started with AWS_SECRET_ACCESS_KEY, DB_PASSWORD"
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(
    "name", ["PASSWORD", "DB_PASS", "github_token", "API_KEY", "APIKEY", "MY_SECRET", "X_PRIVATE_KEY"]
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "COMPASS",
        "SECRETARY",
        "TOKEN_FILE",
        "CREDENTIALS_DIRECTORY",
        "PASSWORD_PATH",
        "SSH_AUTH_SOCK",
        "TOKENIZER",
    ],
)
def test_names_of_no_secrets(name: str) -> None:
    assert not is_secret(name)


def test_secret_files_of_every_user(root: Path, look: Look) -> None:
    write(
        root,
        "/etc/passwd",
        "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nnobody:x:1:1::/:/bin/false\n",
    )
    for path in (
        "/root/.ssh/id_ed25519",
        "/root/.ssh/id_ed25519.pub",
        "/home/ann/.netrc",
        "/etc/ssl/private/web.key",
    ):
        write(root, path)
    write(root, "/home/ann/.npmrc", "color=false\n")
    write(root, "/root/.npmrc", "//r.example/:_authToken=x\n")
    write(root, "/home/ann/.pgpass", "")
    assert facts(look()) == {
        ("secret-files", path, "accept")
        for path in ("/root/.ssh/id_ed25519", "/home/ann/.netrc", "/etc/ssl/private/web.key", "/root/.npmrc")
    }


def test_enrolments(root: Path, look: Look) -> None:
    write(root, "/var/lib/etcd/member/snap/db")
    write(root, "/opt/consul/node-id")
    (root / "var/lib/sss/secrets").mkdir(parents=True)  # empty: it was never used
    assert facts(look()) == {
        ("enrolments", "/var/lib/etcd/member", "refuse"),
        ("enrolments", "/opt/consul/node-id", "refuse"),
    }


def test_containers(start: Start, look: Look) -> None:
    start(5, "postgres", cgroup="/system.slice/docker-0123abc.scope")
    start(6, "postgres", cgroup="/system.slice/docker-0123abc.scope")
    start(7, "dockerd", unit="docker.service")
    (found,) = look()
    assert found["seen"] == "2 processes: postgres"
    assert found["check"] == "containers"


def test_jobs(root: Path, start: Start, look: Look) -> None:
    start(5, "dpkg")
    write(root, "/var/spool/cron/atjobs/a00001019b3f0a")
    write(root, "/var/spool/cron/crontabs/ann")
    assert facts(look()) == {
        ("jobs", "dpkg (pid 5)", "refuse"),
        ("jobs", "/var/spool/cron/atjobs/a00001019b3f0a", "accept"),
        ("jobs", "/var/spool/cron/crontabs/ann", "accept"),
    }


def test_mounts(root: Path, look: Look) -> None:
    lines = [
        "/dev/vda / ext4 rw 0 0",
        "filer:/home /home nfs4 rw,vers=4.2 0 0",
        "filer:/pub /pub nfs4 ro,vers=4.2 0 0",
        "me@host: /mnt fuse.sshfs rw 0 0",
    ]
    write(root, "/proc/mounts", "\n".join(lines) + "\n")
    assert facts(look()) == {
        ("mounts", "/home", "refuse"),
        ("mounts", "/pub", "accept"),
        ("mounts", "/mnt", "refuse"),
    }


def test_checks_are_found_by_their_files() -> None:
    assert [check.name for check in load_checks()] == NAMES


def test_what_has_ended_meanwhile_is_empty(root: Path, start: Start) -> None:
    start(5, "app", libraries=("libssl.so.3",), sockets=(1,))
    (found,) = list_programs(str(root))
    shutil.rmtree(root / "proc/5")
    assert isinstance(found, Program)
    assert (found.libraries(), found.environment(), found.sockets()) == ([], [], [])


@pytest.mark.parametrize(
    ("path", "text", "given"),
    [
        ("/etc/systemd/network/a.network", "[Network]\nAddress = 10.1.2.3/24\nDNS=10.1.2.1\n", ["10.1.2.3/24"]),
        ("/etc/systemd/networkd.conf", "[DHCPv4]\nDUIDRawData=00:00:ab:11\n", ["00:00:ab:11"]),
        (
            "/etc/NetworkManager/system-connections/lan.nmconnection",
            "[ipv4]\naddress1=10.1.2.3/24,10.1.2.1\ndhcp-client-id=01:02:03:04\ndhcp-duid=stable\n",
            ["10.1.2.3/24", "01:02:03:04"],
        ),
        ("/etc/sysconfig/network-scripts/ifcfg-eth0", 'IPADDR="10.1.2.3"\nPREFIX=24\n', ["10.1.2.3"]),
        (
            "/etc/network/interfaces",
            "iface lo inet loopback\n  address 127.0.0.1\niface eth0 inet static\n\taddress\t10.1.2.3/24\n",
            ["10.1.2.3/24"],
        ),
        (
            "/etc/netplan/a.yaml",
            "e:\n  addresses: [10.1.2.3/24]\n  routes:\n  - to: 10.9.0.0/16\n    via: 10.1.2.1\n",
            ["10.1.2.3/24"],
        ),
        ("/etc/dhcp/dhclient.conf", "# send dhcp-client-identifier no;\nsend dhcp-client-identifier 1:2;\n", ["1:2"]),
        ("/etc/dhcpcd.conf", "duid\nclientid\ninterface eth0\nstatic ip_address=10.1.2.3/24\n", ["10.1.2.3/24"]),
        ("/etc/systemd/network/b.network", "[Match]\nMACAddress=52:54:00:aa:bb:cc\n[Network]\nAddress=10.1.2.3/8\n", []),
        ("/etc/netplan/b.yaml", "match:\n  macaddress: 52:54:00:aa:bb:cc\naddresses:\n- 10.1.2.3/24\n", []),
        ("/etc/network/interfaces.d/eth0", "iface eth0 inet dhcp\n", []),
    ],
)  # fmt: skip
def test_fixed_addresses(root: Path, look: Look, path: str, text: str, given: list[str]) -> None:
    write(root, path, text)
    found = look()
    assert [one["seen"].split(": ")[1] for one in found] == given
    assert facts(found) == ({("fixed-addresses", path, "accept")} if given else set())
