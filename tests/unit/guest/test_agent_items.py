"""Each item on a guest's root in a temporary folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import random
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from liveclone.guest import process
from liveclone.guest.context import Context
from liveclone.guest.items import Item, load_items, ssh_host_keys
from liveclone.guest.items.boot_id import BootId
from liveclone.guest.items.dmi_uuid import DmiUuid
from liveclone.guest.items.hibernation import Hibernation
from liveclone.guest.items.hostname import Hostname, render_hosts
from liveclone.guest.items.journal import Journal
from liveclone.guest.items.login_sessions import LoginSessions
from liveclone.guest.items.machine_id import MachineId, render_machine_id, render_uuid
from liveclone.guest.items.random_seed import RandomSeed
from liveclone.guest.items.rng import Rng
from liveclone.guest.items.ssh_host_keys import SshHostKeys
from liveclone.guest.items.swap import Swap
from liveclone.guest.items.vsock_cid import VsockCid
from liveclone.guest.kernel import Kernel
from liveclone.guest.request import Request
from liveclone.guest.sha import hmac_sha256, sha512

from .conftest import KEY, SEED, RecordingKernel

Make = Callable[..., Context]


@pytest.fixture
def ctx(root: Path, kernel: RecordingKernel) -> Make:
    def make(**args: Any) -> Context:
        args = {"key": KEY, "seed": SEED, "hostname": "clone-1", "wall_clock_ns": 5_000_000_000} | args
        return Context(
            str(root), kernel, Request("x", "identify", args, 10, lambda reply: None), bytes.fromhex(KEY)
        )

    return make


def value(item: Item, ctx: Context) -> bytes:
    observed = item.observe(ctx)[0]
    assert observed is not None
    return observed


def test_items_are_found_in_order() -> None:
    names = [item.name for item in load_items()]
    assert names == [
        *(
            "rng",
            "hostname",
            "boot_id",
            "clock",
            "cloud_init",
            "connections",
            "conntrack",
            "dhcp",
            "dmi_uuid",
        ),
        *("hibernation", "interface_names", "ipv6_secrets", "journal", "login_sessions", "machine_id"),
        *("network", "random_seed", "ssh_host_keys", "swap", "vsock_cid", "network_programs"),
    ]
    assert [item.name for item in load_items() if item.for_source] == ["rng", "clock"]
    assert [item.name for item in load_items() if not item.required] == [
        *("conntrack", "dmi_uuid", "journal", "network", "swap", "vsock_cid")
    ]


@pytest.mark.parametrize("size", [0, 1, 32, 64, 65, 200])
def test_digests_are_hmac_sha256(size: int) -> None:
    key, text = os.urandom(size), os.urandom(100)
    assert hmac_sha256(key, text) == hmac.digest(key, text, "sha256")
    assert sha512(text).digest() == hashlib.sha512(text).digest()


def test_a_digest_depends_on_item_and_key(ctx: Make) -> None:
    assert ctx().digest("rng", b"x") == hmac.digest(bytes.fromhex(KEY), b"rng\0x", "sha256").hex()
    assert ctx().digest("rng", b"x") != ctx().digest("clock", b"x")


class TestRng:
    def test_draws_differ(self, ctx: Make) -> None:
        assert value(Rng(), ctx()) != value(Rng(), ctx())

    def test_the_seed_goes_to_the_kernel(self, ctx: Make, kernel: RecordingKernel) -> None:
        Rng().reset(ctx())
        assert kernel.seeds == [bytes.fromhex(SEED)]

    def test_a_short_seed_is_refused(self, ctx: Make, kernel: RecordingKernel) -> None:
        with pytest.raises(ValueError, match="seed"):
            Rng().reset(ctx(seed="00" * 16))
        assert kernel.seeds == []

    def test_the_process_own_random_module_is_reseeded(self, ctx: Make) -> None:
        random.seed(7)
        would_be = random.random()
        random.seed(7)
        Rng().reset(ctx())
        assert random.random() != would_be

    def test_the_real_calls_are_accepted(self, needs_root: None) -> None:
        Kernel().add_entropy(os.urandom(64), b"public")  # mixing into this machine's pool harms nobody


class TestHostname:
    def test_kernel_file_and_hosts_change(self, ctx: Make, root: Path, kernel: RecordingKernel) -> None:
        Hostname().reset(ctx())
        assert kernel.name == "clone-1"
        assert (root / "etc/hostname").read_text() == "clone-1\n"
        assert (
            root / "etc/hosts"
        ).read_text() == "127.0.0.1\tlocalhost\n127.0.1.1\tclone-1.example.org clone-1\n"

    def test_without_a_name_nothing_changes(self, ctx: Make, root: Path, kernel: RecordingKernel) -> None:
        with pytest.raises(ValueError, match="name"):
            Hostname().reset(ctx(hostname=""))
        assert kernel.name == "source"
        assert (root / "etc/hostname").read_text() == "source\n"

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (None, "127.0.0.1\tlocalhost\n127.0.1.1\tnew\n"),
            ("", "127.0.1.1\tnew\n"),
            ("::1 x\n", "::1 x\n127.0.1.1\tnew\n"),
            ("127.0.1.1 old\n", "127.0.1.1\tnew\n"),
            ("127.0.1.1 other.name # why\n", "127.0.1.1\tnew # why\n"),
            ("#127.0.1.1 old\n127.0.1.1\told.a old", "#127.0.1.1 old\n127.0.1.1\tnew.a new\n"),
            ("10.0.0.1 old\n127.0.1.1 older old\n", "10.0.0.1 old\n127.0.1.1\tolder new\n"),
        ],
    )
    def test_hosts(self, before: str | None, after: str) -> None:
        assert render_hosts(before, "old", "new") == after

    def test_sethostname_for_real_in_a_namespace(self, needs_root: None) -> None:
        if shutil.which("unshare") is None:
            pytest.skip("unshare is missing")
        program = (
            "import sys; sys.path[:0] = sys.argv[1:]\n"
            "from liveclone.guest.kernel import Kernel\n"
            "Kernel().set_hostname('a-clone'); print(Kernel().hostname())\n"
        )
        before = socket.gethostname()
        line = ["unshare", "--uts", sys.executable, "-c", program, *sys.path]
        told = subprocess.run(line, capture_output=True, text=True, check=True).stdout
        assert told == "a-clone\n"
        assert socket.gethostname() == before


class TestRandomSeed:
    def test_a_fresh_one_is_written(self, ctx: Make, root: Path) -> None:
        path = root / "var/lib/systemd/random-seed"
        path.parent.mkdir(parents=True)
        old = os.urandom(512)
        path.write_bytes(old)
        assert value(RandomSeed(), ctx()) == old
        RandomSeed().reset(ctx())
        assert len(path.read_bytes()) == 512
        assert value(RandomSeed(), ctx()) == path.read_bytes() != old
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_a_guest_without_one_does_not_get_one(self, ctx: Make, root: Path) -> None:
        RandomSeed().reset(ctx())
        assert RandomSeed().observe(ctx())[0] is None
        assert not (root / "var/lib/systemd").exists()


class TestBootId:
    SHOWN = "proc/sys/kernel/random/boot_id"

    @pytest.fixture
    def shown(self, root: Path) -> Path:
        path = root / self.SHOWN
        path.parent.mkdir(parents=True)
        path.write_text("0d3f9a6c-3a0e-4b61-8a53-0c6d5ac0f9e1\n")
        return path

    def test_a_file_of_our_own_is_bound_over_it(
        self, ctx: Make, root: Path, kernel: RecordingKernel, shown: Path
    ) -> None:
        before = value(BootId(), ctx())
        BootId().reset(ctx())
        assert kernel.bound == [str(shown)]
        assert re.fullmatch(
            r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\n", shown.read_text()
        )
        assert value(BootId(), ctx()) == shown.read_text().strip().encode() != before
        assert stat.S_IMODE(shown.stat().st_mode) == 0o444

    def test_a_clones_clone_is_not_bound_again(
        self, ctx: Make, root: Path, kernel: RecordingKernel, shown: Path
    ) -> None:
        BootId().reset(ctx())
        first, inode = shown.read_text(), shown.stat().st_ino
        BootId().reset(ctx())
        assert shown.read_text() != first
        assert len(shown.read_text()) == len(first)
        assert shown.stat().st_ino == inode
        assert len(kernel.bound) == 1

    def test_it_is_bound_beforehand_with_the_same_id(
        self, ctx: Make, root: Path, kernel: RecordingKernel, shown: Path
    ) -> None:
        before = shown.read_text()
        for _ in range(2):
            BootId().warm(ctx())
            assert shown.read_text() == before
            assert kernel.bound == [str(shown)]
        inode = shown.stat().st_ino
        BootId().reset(ctx())
        assert (shown.read_text() != before, shown.stat().st_ino) == (True, inode)
        assert len(kernel.bound) == 1

    def test_a_file_left_from_the_time_before_a_boot_is_not_taken_for_it(
        self, ctx: Make, root: Path, kernel: RecordingKernel, shown: Path
    ) -> None:
        (root / "run/liveclone").mkdir()
        (root / "run/liveclone/boot_id").write_text("old\n")
        BootId().reset(ctx())
        assert kernel.bound == [str(shown)]
        assert (root / "run/liveclone/boot_id").read_text() == shown.read_text() != "old\n"

    def test_a_guest_without_procfs(self, ctx: Make, kernel: RecordingKernel) -> None:
        BootId().warm(ctx())
        BootId().reset(ctx())
        assert BootId().observe(ctx())[0] is None
        assert kernel.bound == []

    def test_form(self) -> None:
        assert render_uuid(bytes(16)) == "00000000-0000-4000-8000-000000000000"

    def test_bind_for_real_in_a_namespace(self, needs_root: None, tmp_path: Path) -> None:
        own = tmp_path / "own"
        own.write_text("of our own\n")
        program = (
            "import sys; own, *sys.path[:0] = sys.argv[1:]\n"
            "from liveclone.guest.kernel import Kernel\n"
            "Kernel().bind(own, '/proc/sys/kernel/random/boot_id')\n"
            "print(open('/proc/sys/kernel/random/boot_id').read(), end='')\n"
            "try: Kernel().bind(own, own + '/nothing')\n"
            "except NotADirectoryError as error: print(error.strerror)\n"
        )
        before = Path("/proc", self.SHOWN[5:]).read_text()
        line = ["unshare", "--mount", sys.executable, "-c", program, str(own), *sys.path]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if "unshare" in done.stderr:
            pytest.skip("cannot make a mount namespace here")
        assert done.stdout == f"of our own\nbinding {own} over {own}/nothing: Not a directory\n", done.stderr
        assert Path("/proc", self.SHOWN[5:]).read_text() == before


class TestJournal:
    ID = "0123456789abcdef0123456789abcdef"

    @pytest.fixture
    def journald(self, root: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A process that has a journal's file open, and what the kernel and systemd say of it."""
        with subprocess.Popen(["sleep", "60"]) as child:
            unit = root / "sys/fs/cgroup/system.slice/systemd-journald.service"
            unit.mkdir(parents=True)
            (unit / "cgroup.procs").write_text(f"{child.pid}\n")
            fds = root / f"proc/{child.pid}/fd"
            fds.mkdir(parents=True)
            (fds / "0").symlink_to("/dev/null")
            (fds / "7").symlink_to(f"/var/log/journal/{self.ID}/user-1000.journal")
            (root / "run/systemd/journal").mkdir(parents=True)
            (root / "run/systemd/journal/seqnum").write_bytes(bytes(24))
            yield child
            child.kill()

    def test_it_ends_once_the_machine_has_its_network(
        self, ctx: Make, root: Path, journald: subprocess.Popen[bytes]
    ) -> None:
        run = ctx()
        Journal().reset(run)
        assert journald.poll() is None
        (task,) = run.later
        task()
        assert journald.wait(5) == -signal.SIGTERM
        assert not (root / "run/systemd/journal/seqnum").exists()
        task()  # it has ended already

    @pytest.mark.usefixtures("journald")
    def test_where_it_writes_is_seen(self, ctx: Make) -> None:
        assert Journal().observe(ctx()) == (self.ID.encode(), {"storage": "/var/log/journal/"})

    @pytest.mark.usefixtures("journald")
    def test_an_id_that_is_no_longer_the_machines_is_not_compared(self, ctx: Make) -> None:
        MachineId().reset(ctx())
        observed, details = Journal().observe(ctx())
        assert (observed, details["storage"]) == (b"", "/var/log/journal/")

    def test_one_that_stores_nothing(self, ctx: Make, root: Path, journald: subprocess.Popen[bytes]) -> None:
        (root / f"proc/{journald.pid}/fd/7").unlink()
        observed, details = Journal().observe(ctx())
        assert (observed, details["storage"]) == (b"", "none")

    def test_a_guest_without_one(self, ctx: Make) -> None:
        run = ctx()
        Journal().reset(run)
        assert Journal().observe(run)[0] is None
        assert run.later == []


class TestLoginSessions:
    @pytest.fixture
    def start(self, root: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
        """Return what starts a process that is another one in the guest's /proc: name, title, and its input."""
        with contextlib.ExitStack() as stack:

            def start(name: str, title: str = "", stdin: str = "/dev/null") -> subprocess.Popen[bytes]:
                child = stack.enter_context(subprocess.Popen(["sleep", "60"]))
                stack.callback(child.kill)
                entry = root / f"proc/{child.pid}"
                (entry / "fd").mkdir(parents=True)
                (entry / "comm").write_text(f"{name}\n")
                (entry / "cmdline").write_text(f"{title or name}\0")
                (entry / "fd/0").symlink_to(stdin)
                return child

            yield start

    def test_logins_end_and_services_live_on(
        self, ctx: Make, kernel: RecordingKernel, start: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        logins = [
            start("sshd-session", "sshd-session: root [priv]"),
            start("sshd-session", "sshd-session: root@pts/0"),
            start("sshd", "sshd: root@pts/1"),
            start("login", stdin="/dev/ttyS0"),
            start("login", stdin="/dev/hvc0"),
        ]
        others = [
            start("sshd", "sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups"),
            start("sshd", "/usr/sbin/sshd -D"),
            start("agetty", stdin="/dev/ttyS0"),
            start("bash", stdin="/dev/pts/0"),
            start("systemd-logind"),
        ]
        assert LoginSessions().reset(ctx()) == {"killed": "5"}
        assert [child.wait(5) for child in logins] == [-signal.SIGKILL] * 5
        assert [child.poll() for child in others] == [None] * 5
        assert sorted(kernel.hung_up) == ["/dev/hvc0", "/dev/ttyS0"]

    def test_threads_of_the_kernel_are_looked_at_before_the_snapshot(
        self, ctx: Make, root: Path, start: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        item, thread, before = LoginSessions(), start("login"), start("login")
        (root / f"proc/{thread.pid}/stat").write_text(f"{thread.pid} (a) b) I 2 0 0 0 -1\n")
        (root / f"proc/{before.pid}/stat").write_text(f"{before.pid} (login) S 1 2 2 2 2\n")
        item.warm(ctx())
        since = start("login")
        assert item.reset(ctx()) == {"killed": "2"}
        assert [before.wait(5), since.wait(5)] == [-signal.SIGKILL] * 2
        assert thread.poll() is None

    def test_leaders_of_sessions_that_logind_knows(
        self, ctx: Make, root: Path, start: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        desktop, manager, other = start("gdm-session-wor"), start("systemd"), start("database")
        sessions = root / "run/systemd/sessions"
        sessions.mkdir(parents=True)

        def know(session: str, kind: str, leader: int, scope: str = "", cgroup: str = "") -> None:
            (sessions / session).write_text(f"# private\nCLASS={kind}\nSCOPE={scope}\nLEADER={leader}\n")
            if cgroup:
                (root / f"proc/{leader}/cgroup").write_text(f"0::{cgroup}\n")

        know("c3", "user", desktop.pid, "session-c3.scope", "/user.slice/user-7.slice/session-c3.scope")
        know("4", "manager", manager.pid, "", "/user.slice/user-7.slice/user@7.service/init.scope")
        know("5", "user", 4999999, "session-5.scope")  # has just ended
        know(
            "6", "user", other.pid, "session-6.scope", "/system.slice/database.service"
        )  # another one's number now
        os.mkfifo(sessions / "c3.ref")
        assert LoginSessions().reset(ctx()) == {"killed": "1"}
        assert desktop.wait(5) == -signal.SIGKILL
        assert (manager.poll(), other.poll()) == (None, None)

    def test_utmp_tells_who_is_gone(
        self, ctx: Make, root: Path, start: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        login, screen = start("login"), start("screen")

        def entry(kind: int, pid: int, user: bytes) -> bytes:
            return (
                struct.pack("=hxxi32s4s32s256s", kind, pid, b"pts/0", b"ts/0", user, b"10.0.0.1") + b"\7" * 52
            )

        entries = [entry(2, 0, b"reboot"), entry(7, login.pid, b"ann"), entry(7, screen.pid, b"bob")]
        (root / "run/utmp").write_bytes(b"".join([*entries, entry(7, 4999999, b"eve")]))
        LoginSessions().reset(ctx())
        after = (root / "run/utmp").read_bytes()
        assert len(after) == 4 * 384
        seen = [struct.unpack_from("=hxxi32s4s32s256s", after, at) for at in range(0, len(after), 384)]
        assert [(one[0], one[1], one[4].rstrip(b"\0")) for one in seen] == [
            (2, 0, b"reboot"),
            (8, login.pid, b""),
            (7, screen.pid, b"bob"),  # no login: it lives on
            (8, 4999999, b""),
        ]
        assert seen[1][2].rstrip(b"\0") == b"pts/0"
        assert not seen[1][5].rstrip(b"\0")
        assert after.endswith(b"\7" * 52)

    def test_nobody_is_logged_in(self, ctx: Make) -> None:
        assert LoginSessions().reset(ctx()) == {"killed": "0"}

    def test_hanging_up_for_real(self, needs_root: None) -> None:
        """A shell that has a terminal of its own gets SIGHUP; not a terminal of this machine's, a pair made here."""
        master, slave = os.openpty()
        shell = subprocess.Popen(
            ["sh", "-c", "trap 'exit 7' HUP; echo ready; while :; do sleep 0.02; done"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        try:
            name = os.ttyname(slave)
            assert os.read(master, 5) == b"ready"
            Kernel().hang_up(name)
            assert shell.wait(5) == 7
        finally:
            shell.kill()
            shell.wait()
            os.close(slave)
            os.close(master)


class TestMachineId:
    def test_a_fresh_one_is_written(self, ctx: Make, root: Path) -> None:
        path = root / "etc/machine-id"
        MachineId().reset(ctx())
        assert re.fullmatch(r"[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}\n", path.read_text())
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
        assert (root / "var/lib/dbus/machine-id").is_symlink()

    def test_form(self) -> None:
        assert render_machine_id(bytes(16)) == "00000000000040008000000000000000"
        assert render_machine_id(b"\xff" * 16) == "ffffffffffff4fffbfffffffffffffff"

    def test_dbus_own_file_follows(self, ctx: Make, root: Path) -> None:
        dbus = root / "var/lib/dbus/machine-id"
        dbus.unlink()
        dbus.write_text("f" * 32 + "\n")
        before = value(MachineId(), ctx())
        MachineId().reset(ctx())
        assert dbus.read_text() == (root / "etc/machine-id").read_text()
        assert value(MachineId(), ctx()) != before

    @pytest.mark.parametrize("text", ["", "uninitialized\n", None])
    def test_not_there_yet(self, ctx: Make, root: Path, text: str | None) -> None:
        path = root / "etc/machine-id"
        path.unlink()
        if text is not None:
            path.write_text(text)
        assert MachineId().observe(ctx())[0] is None
        MachineId().reset(ctx())
        assert path.exists() == (text is not None)

    @pytest.fixture
    def mounted(self, root: Path, tmp_path: Path, needs_root: None) -> Iterator[Path]:
        """Mount a file of its own over /etc/machine-id, as systemd does on a read-only root."""
        own = tmp_path / "own"
        own.write_text("1" * 32 + "\n")
        target = root / "etc/machine-id"
        if subprocess.run(["mount", "--bind", own, target], capture_output=True, check=False).returncode:
            pytest.skip("cannot mount here")
        yield target
        subprocess.run(["umount", target], check=True)

    def test_a_mounted_file_is_written_in_place(self, ctx: Make, mounted: Path, tmp_path: Path) -> None:
        MachineId().reset(ctx())
        assert mounted.read_text() != "1" * 32 + "\n"
        assert mounted.read_text() == (tmp_path / "own").read_text()

    def test_a_read_only_mount_cannot_be_changed(self, ctx: Make, mounted: Path) -> None:
        subprocess.run(["mount", "-o", "remount,bind,ro", mounted], check=True)
        with pytest.raises(OSError, match="Read-only"):
            MachineId().reset(ctx())
        assert mounted.read_text() == "1" * 32 + "\n"


@pytest.fixture
def ssh_keygen(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is missing")
    monkeypatch.setattr(ssh_host_keys, "_RSA_BITS", "1024")  # seconds less


def make_keys(root: Path, *kinds: str) -> dict[str, str]:
    """Make host keys as a guest has them; return their fingerprints as ssh-keygen prints them."""
    told = {}
    for kind in kinds:
        path = root / f"etc/ssh/ssh_host_{kind}_key"
        bits = ["-b", "1024"] if kind == "rsa" else []
        subprocess.run(["ssh-keygen", "-q", "-t", kind, *bits, "-N", "", "-f", path], check=True)
        told[kind] = subprocess.run(
            ["ssh-keygen", "-lf", path], capture_output=True, text=True, check=True
        ).stdout.split()[1]
    return told


@pytest.mark.usefixtures("ssh_keygen")
class TestSshHostKeys:
    def test_fingerprints_are_ssh_keygens(self, ctx: Make, root: Path) -> None:
        told = make_keys(root, "ed25519", "ecdsa", "rsa")
        assert SshHostKeys().observe(ctx())[1] == told

    def test_without_keys_there_is_nothing(self, ctx: Make) -> None:
        item = SshHostKeys()
        assert item.observe(ctx()) == (None, {})
        assert item.reset(ctx()) == {}
        assert item.observe(ctx()) == (None, {})

    def test_new_keys_take_the_place_of_the_old(self, ctx: Make, root: Path) -> None:
        old = make_keys(root, "ed25519", "ecdsa")
        item, run = SshHostKeys(), ctx()
        item.reset(run)
        new = item.observe(run)[1]
        assert new.keys() == old.keys()
        assert not set(new.values()) & set(old.values())
        for kind in new:
            private = root / f"etc/ssh/ssh_host_{kind}_key"
            assert stat.S_IMODE(private.stat().st_mode) == 0o600
            assert stat.S_IMODE(private.with_suffix(".pub").stat().st_mode) == 0o644
            assert private.with_suffix(".pub").read_text().endswith(" root@clone-1\n")
        assert sorted(p.name for p in (root / "etc/ssh").iterdir()) == sorted(
            f"ssh_host_{kind}_key{end}" for kind in new for end in ("", ".pub")
        )

    def test_the_curve_of_an_ecdsa_key_is_kept(self, ctx: Make, root: Path) -> None:
        path = root / "etc/ssh/ssh_host_ecdsa_key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", path], check=True)
        SshHostKeys().reset(ctx())
        assert path.with_suffix(".pub").read_text().startswith("ecdsa-sha2-nistp384 ")
        assert not (root / "etc/ssh/ssh_host_ed25519_key").exists()

    def test_rsa_goes_at_once_and_comes_later(self, ctx: Make, root: Path) -> None:
        old = make_keys(root, "rsa")
        item, run = SshHostKeys(), ctx()
        assert "rsa" in item.reset(run)
        assert not (root / "etc/ssh/ssh_host_rsa_key").exists()
        assert (root / "etc/ssh/ssh_host_ed25519_key").exists()  # sshd is not left without any
        (task,) = run.later
        task()
        new = item.observe(run)[1]
        assert new.keys() == {"rsa", "ed25519"}
        assert new["rsa"] != old["rsa"]
        assert stat.S_IMODE((root / "etc/ssh/ssh_host_rsa_key").stat().st_mode) == 0o600
        assert (root / "etc/ssh/ssh_host_rsa_key.pub").read_text().split()[2] == "root@clone-1"

    def test_an_rsa_key_waits_for_clones_beside_it_and_not_for_the_next_reset(
        self, ctx: Make, root: Path
    ) -> None:
        make_keys(root, "rsa")
        item, first = SshHostKeys(), ctx(rest_s=60)
        item.reset(first)
        before = set(threading.enumerate())
        first.later[0]()  # returns at once
        (resting,) = set(threading.enumerate()) - before
        assert resting.is_alive()
        second = ctx(hostname="clone-2")
        item.reset(second)
        resting.join(5)
        assert not resting.is_alive()
        assert not (root / "etc/ssh/ssh_host_rsa_key").exists()
        second.later[0]()
        assert (root / "etc/ssh/ssh_host_rsa_key.pub").read_text().split()[2] == "root@clone-2"

    def test_an_rsa_key_in_the_making_is_not_shared_with_a_clone(
        self, ctx: Make, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_keys(root, "rsa", "ed25519")
        tools = tmp_path / "tools"
        tools.mkdir()
        started = tmp_path / "started"
        os.mkfifo(started)
        (tools / "ssh-keygen").write_text(f"#!/bin/sh\necho > {started}\nexec sleep 60\n")
        (tools / "ssh-keygen").chmod(0o755)
        item, first = SshHostKeys(), ctx()
        item.reset(first)
        monkeypatch.setattr(process, "PATH", f"{tools}:{os.environ['PATH']}")
        maker = threading.Thread(target=first.later[0])
        maker.start()
        started.read_text()  # it is at work
        monkeypatch.setattr(process, "PATH", os.environ["PATH"])
        second = ctx(hostname="clone-2")
        item.reset(second)  # this machine has become a clone meanwhile
        maker.join(5)
        assert not maker.is_alive()
        assert not (root / "etc/ssh/ssh_host_rsa_key").exists()
        second.later[0]()
        assert (root / "etc/ssh/ssh_host_rsa_key.pub").read_text().split()[2] == "root@clone-2"
        assert process.living() == []

    def test_a_key_without_its_public_half_counts(self, ctx: Make, root: Path) -> None:
        make_keys(root, "ed25519")
        (root / "etc/ssh/ssh_host_ed25519_key.pub").unlink()
        item = SshHostKeys()
        before = value(item, ctx())
        item.reset(ctx())
        assert value(item, ctx()) != before
        assert item.observe(ctx())[1]["ed25519"].startswith("SHA256:")

    def test_sshd_is_told(self, ctx: Make, root: Path) -> None:
        make_keys(root, "ed25519")
        sshd = subprocess.Popen(["sleep", "60"])
        try:
            (root / "run/sshd.pid").write_text(f"{sshd.pid}\n")
            (root / f"proc/{sshd.pid}").mkdir()
            (root / f"proc/{sshd.pid}/comm").write_text("sshd\n")
            SshHostKeys().reset(ctx())
            assert sshd.wait(5) == -signal.SIGHUP
        finally:
            sshd.kill()
            sshd.wait()

    def test_sshds_new_start_waits_for_the_network(self, ctx: Make, root: Path) -> None:
        make_keys(root, "ed25519")
        script = "trap 'echo again' HUP; echo ready; while :; do sleep 0.05; done"
        sshd = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)
        try:
            assert sshd.stdout
            assert sshd.stdout.readline() == b"ready\n"
            (root / "run/sshd.pid").write_text(f"{sshd.pid}\n")
            (root / f"proc/{sshd.pid}").mkdir()
            (root / f"proc/{sshd.pid}/comm").write_text("sshd\n")
            run = ctx()
            SshHostKeys().reset(run)
            assert os.sched_getscheduler(sshd.pid) == os.SCHED_IDLE
            assert sshd.stdout.readline() == b"again\n"
            for task in run.later:
                task()
            assert os.sched_getscheduler(sshd.pid) == os.SCHED_OTHER
        finally:
            sshd.kill()
            sshd.communicate()

    def test_sshd_without_a_pid_file_is_found(self, ctx: Make, root: Path) -> None:
        make_keys(root, "ed25519")
        sshd, other = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
        try:
            (root / "run/sshd.pid").write_text("1\n")  # stale: that number is another program's now
            for child, parent in ((sshd, 1), (other, 77)):
                folder = root / f"proc/{child.pid}"
                folder.mkdir()
                (folder / "comm").write_text("sshd\n")
                (folder / "status").write_text(f"Name:\tsshd\nPPid:\t{parent}\nThreads:\t1\n")
            SshHostKeys().reset(ctx())
            assert sshd.wait(5) == -signal.SIGHUP
            assert other.poll() is None
        finally:
            for child in (sshd, other):
                child.kill()
                child.wait()


class TestHibernation:
    PAGE = os.sysconf("SC_PAGE_SIZE")

    @pytest.fixture
    def area(self, root: Path) -> Path:
        """A device that the kernel would resume from, with an image behind its third page, in a swap file there."""
        for name, text in (("resume", "254:16\n"), ("resume_offset", "3\n")):
            (root / "sys/power").mkdir(parents=True, exist_ok=True)
            (root / "sys/power" / name).write_text(text)
        path = root / "dev/block/254:16"
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(4 * self.PAGE - 20) + b"SWAPSPACE2S1SUSPEND\0" + b"image")
        return path

    def test_an_image_will_not_be_resumed(self, ctx: Make, area: Path) -> None:
        assert Hibernation().reset(ctx()) == {"image": "will not be resumed"}
        assert area.read_bytes() == bytes(4 * self.PAGE - 20) + b"SWAPSPACE2" * 2 + b"image"
        assert Hibernation().reset(ctx()) == {"image": "none"}

    def test_what_is_no_swap_area_is_not_written(self, ctx: Make, area: Path) -> None:
        before = area.read_bytes().replace(b"SWAPSPACE2", b"0123456789")
        area.write_bytes(before)
        with pytest.raises(ValueError, match="no swap area"):
            Hibernation().reset(ctx())
        assert area.read_bytes() == before

    def test_a_device_that_cannot_be_looked_at_is_not_passed_over(self, ctx: Make, area: Path) -> None:
        area.unlink()
        with pytest.raises(FileNotFoundError):
            Hibernation().reset(ctx())

    @pytest.mark.parametrize("device", ["0:0\n", None])
    def test_a_kernel_that_resumes_from_nowhere(self, ctx: Make, root: Path, device: str | None) -> None:
        if device:
            (root / "sys/power").mkdir(parents=True)
            (root / "sys/power/resume").write_text(device)
        assert Hibernation().observe(ctx()) == (None, {})
        assert Hibernation().reset(ctx()) == {}


class TestSwap:
    def test_uuid_and_label_are_observed(self, ctx: Make, root: Path) -> None:
        header = "Filename\tType\tSize\tUsed\tPriority\n"
        (root / "proc/swaps").write_text(header + "/dev/vdb1 partition 1 0 -2\n/swap file 1 0 -3\n")
        (root / "dev").mkdir()
        (root / "dev/vdb1").write_bytes(bytes(1036) + b"u" * 16 + b"label".ljust(16) + bytes(4096))
        (root / "swap").write_bytes(bytes(1036) + b"v" * 16 + b"other".ljust(16) + bytes(4096))
        observed, details = Swap().observe(ctx())
        assert observed == b"u" * 16 + b"label".ljust(16) + b"\n" + b"v" * 16 + b"other".ljust(16)
        assert details == {"areas": "/dev/vdb1 /swap"}

    def test_without_any(self, ctx: Make, root: Path) -> None:
        assert Swap().observe(ctx()) == (None, {})
        (root / "proc/swaps").write_text("Filename\tType\tSize\tUsed\tPriority\n")
        assert Swap().observe(ctx()) == (None, {})


class TestHardware:
    def test_dmi_uuid(self, ctx: Make, root: Path) -> None:
        assert DmiUuid().observe(ctx()) == (None, {})
        file = root / "sys/class/dmi/id/product_uuid"
        file.parent.mkdir(parents=True)
        file.write_text("f0c9a1ce-7d5e-4b9c-9f0e-0e3f7f9d2a11\n")
        assert DmiUuid().observe(ctx()) == (
            b"f0c9a1ce-7d5e-4b9c-9f0e-0e3f7f9d2a11",
            {},
        )  # root's alone: no details

    def test_vsock_cid(self, ctx: Make, kernel: RecordingKernel) -> None:
        assert VsockCid().observe(ctx()) == (None, {})
        kernel.cid = 42
        assert VsockCid().observe(ctx()) == (b"42", {"cid": "42"})

    def test_the_real_call_is_accepted(self) -> None:
        cid = Kernel().vsock_cid()
        assert cid is None or 3 <= cid < 0xFFFFFFFF


def test_clock_is_set_to_the_hosts_time(ctx: Make, kernel: RecordingKernel) -> None:
    (clock,) = (item for item in load_items() if item.name == "clock")
    run = ctx()
    time.sleep(0.01)
    told = clock.reset(run)
    assert kernel.clock_was_set_to is not None
    passed_ns = kernel.clock_was_set_to - 5_000_000_000
    assert 10_000_000 <= passed_ns < 1_000_000_000
    assert float(told["offset_ms"]) == pytest.approx(
        (kernel.clock_was_set_to - kernel.now_ns) / 1e6, abs=0.01
    )


def test_network_observes_macs_and_addresses(ctx: Make, kernel: RecordingKernel) -> None:
    (network,) = (item for item in load_items() if item.name == "network")
    assert network.observe(ctx())[0] is None
    kernel.cards = [("eth0", "52:54:00:00:00:01", ["10.0.0.1/24"])]
    first = value(network, ctx())
    assert network.observe(ctx())[1] == {"eth0": "52:54:00:00:00:01 10.0.0.1/24"}
    kernel.cards = [("eth0", "52:54:00:00:00:02", ["10.0.0.1/24"])]
    assert value(network, ctx()) != first
