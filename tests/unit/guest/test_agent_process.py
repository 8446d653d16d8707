"""The agent as it is shipped: one file, started by whatever Python 3.8 or later is there."""

from __future__ import annotations

import ast
import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from liveclone.guest import pack, port, priority, settings, subscribers
from liveclone.guest.items import load_items

from .conftest import KEY, Host

GUEST = Path(pack.__file__).parent
SOURCES = sorted(path for path in GUEST.rglob("*.py") if path.name != "pack.py")
PYTHONS = ["python3.8", "python3.9", "python3.13", "python3"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(GUEST)))
def test_python_3_8_reads_it(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 8))


def test_packing_is_reproducible(tmp_path: Path) -> None:
    one, two = tmp_path / "one.pyz", tmp_path / "two.pyz"
    pack.pack(one)
    os.utime(GUEST / "main.py")
    pack.pack(two)
    assert one.read_bytes() == two.read_bytes()
    assert pack.digest() == pack.digest()
    assert {path.name for path in tmp_path.iterdir()} == {"one.pyz", "two.pyz"}


def test_only_what_the_guest_needs_is_packed(tmp_path: Path) -> None:
    pack.pack(tmp_path / "agent.pyz")
    names = set(zipfile.ZipFile(tmp_path / "agent.pyz").namelist())
    assert "liveclone_guest/items/rng.py" in names
    assert "liveclone_guest/pack.py" not in names
    assert all(name.endswith((".py", ".service")) for name in names)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        pack.pack(tmp_path / "no-such-folder" / "agent.pyz")
    assert list(tmp_path.iterdir()) == []


def test_the_unit_starts_what_is_packed() -> None:
    text = pack.SERVICE.read_text()
    assert "ExecStart=/usr/bin/python3 -I -S -B /usr/lib/liveclone/agent.pyz\n" in text
    assert "Restart=always\n" in text
    assert "DefaultDependencies=no\n" in text


class Running:
    """An agent process with both ports."""

    def __init__(self, python: str, archive: Path, root: Path) -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        ports = [theirs.fileno() for _, theirs in pairs]
        line = [python, "-I", "-S", "-B", str(archive), "--root", str(root)]
        line += ["--control", str(ports[0]), "--exec", str(ports[1])]
        self.process = subprocess.Popen(line, pass_fds=ports, stderr=subprocess.PIPE)
        for _, theirs in pairs:
            theirs.close()
        self.sockets = [ours for ours, _ in pairs]
        self.control, self.exec = (Host(ours) for ours in self.sockets)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        for ours in self.sockets:
            ours.close()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "agent.pyz"
    pack.pack(path)
    return path


@pytest.fixture
def running(archive: Path, root: Path) -> Iterator[Running]:
    running = Running(sys.executable, archive, root)
    yield running
    running.close()


def find_python(name: str) -> str:
    path = shutil.which(name)
    works = path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0
    if path is None or not works:
        pytest.skip(f"{name} is missing")
    return path


@pytest.mark.parametrize("precompiled", [False, True])
@pytest.mark.parametrize("name", PYTHONS)
def test_it_runs(name: str, precompiled: bool, archive: Path, root: Path) -> None:
    python = find_python(name)
    if precompiled:
        subprocess.run([python, "-I", "-S", "-B", archive, "--precompile"], check=True)
        assert "liveclone_guest/main.pyc" in zipfile.ZipFile(archive).namelist()
    running = Running(python, archive, root)
    try:
        assert running.control.call("ping")["pid"] == running.process.pid
        assert len(running.control.call("observe", key=KEY)["items"]) == len(load_items())
        assert running.exec.run("sh", "-c", "echo hello; cat", stdin=b"!") == (0, b"hello\n!", b"")
        assert running.exec.run("echo", "x", tty=True) == (0, b"x\r\n", b"")
        running.process.terminate()
        assert running.process.wait(5) == 0
        said = running.process.stderr.read() if running.process.stderr else b""
        assert b"Traceback" not in said, said.decode()
    finally:
        running.close()


def test_it_puts_back_what_one_that_was_killed_had_changed(archive: Path, root: Path) -> None:
    """A setting that is gone by then is no reason to leave the others."""
    low = {"/sys/fs/ext4/vdb/reserved_clusters": 0, "/proc/sys/vm/min_free_kbytes": 1024}
    clusters, kbytes = [root / path.lstrip("/") for path in low]
    for path in clusters, kbytes:
        path.parent.mkdir(parents=True)
        path.write_text("16384\n")
    program = "import os, sys\nfrom liveclone.guest.settings import changed\n"
    program += f"with changed({low}, sys.argv[1]): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", program, root], check=False).returncode == -signal.SIGKILL
    assert (clusters.read_text(), kbytes.read_text()) == ("0", "1024")
    shutil.rmtree(clusters.parent)
    running = Running(sys.executable, archive, root)
    try:
        running.control.call("ping")
        assert kbytes.read_text() == "16384"
        assert not (root / settings.STATE.lstrip("/")).exists()
    finally:
        running.close()


def test_applications_stay_when_it_becomes_a_new_process(running: Running, root: Path) -> None:
    path = root / subscribers.PATH.lstrip("/")
    running.control.call("ping")
    shop, other = (Application(path, name) for name in ("shop", "the others"))
    id = running.control.send("prepare", key=KEY)
    first = shop.acknowledge()
    other.acknowledge()
    assert {one["name"] for one in running.control.answer(id)["applications"]} == {"shop", "the others"}
    running.control.call("renew")
    other.close()  # while nobody serves it, or so
    deadline = time.monotonic() + 10
    while subscribers.HANDED not in environment_of(running):
        assert time.monotonic() < deadline, "it is no new process"
    id = running.control.send("prepare", key=KEY)
    assert shop.acknowledge() > first
    (report,) = running.control.answer(id)["applications"]
    assert (report["name"], report["pid"], report["error"]) == ("shop", os.getpid(), "")
    inside = running.exec.run("sh", "-c", "ls /proc/self/fd | wc -l; env | grep -c LIVECLONE || :")[1]
    assert inside.split() == [b"4", b"0"]
    shop.close()


def environment_of(running: Running) -> str:
    """Return what its program was executed with; it has none for a moment."""
    with suppress(ProcessLookupError):
        return Path(f"/proc/{running.process.pid}/environ").read_text()
    return ""


class Application:
    """One that is subscribed."""

    def __init__(self, path: Path, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self._say({"subscribe": name})
        assert json.loads(self._lines.readline())["subscribed"] == name

    def _say(self, message: dict[str, object]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def acknowledge(self) -> int:
        """Acknowledge the next event; return its number."""
        id: int = json.loads(self._lines.readline())["id"]
        self._say({"id": id, "ok": True})
        return id

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def test_modules_compiled_by_another_python_are_passed_over(archive: Path, root: Path) -> None:
    subprocess.run([find_python("python3.8"), archive, "--precompile"], check=True)
    running = Running(sys.executable, archive, root)
    try:
        assert running.control.call("ping")
    finally:
        running.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_and_takes_its_commands_along(running: Running, number: int) -> None:
    job = running.exec.call("exec_start", argv=["sh", "-c", "echo $$; exec sleep 60"])["job"]
    child = int(base64.b64decode(running.exec.call("exec_io", job=job, wait_s=5)["stdout"]["data"]))
    running.process.send_signal(number)
    assert running.process.wait(5) == 0
    assert not Path(f"/proc/{child}").exists()


def test_commands_are_not_deaf_to_signals(running: Running) -> None:
    status = running.exec.run("cat", "/proc/self/status")[1].decode()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["SigBlk"], 16) == 0
    assert not int(fields["SigIgn"], 16) & (
        1 << signal.SIGTERM - 1 | 1 << signal.SIGINT - 1 | 1 << signal.SIGPIPE - 1
    )


def test_commands_inherit_neither_descriptors_nor_priority(running: Running) -> None:
    assert (
        running.exec.run("sh", "-c", "ls /proc/self/fd | wc -l")[1].strip() == b"4"
    )  # 0, 1, 2 and the folder itself
    assert running.exec.run("sh", "-c", "chrt -p $$ | grep -c OTHER")[1].strip() in (b"1", b"")


def test_an_unknown_option_is_refused(archive: Path) -> None:
    done = subprocess.run(
        [sys.executable, archive, "--nonsense"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--nonsense" in done.stderr


def test_it_stays_small(running: Running) -> None:
    running.control.call("observe", key=KEY)
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    resident_kib = int(status.split("VmRSS:")[1].split()[0])
    assert resident_kib < 25 * 1024
    assert "libcrypto" not in Path(f"/proc/{running.process.pid}/maps").read_text()


def test_ports_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(["org.example.other", "org.liveclone.agent.0"], start=1):
        (tmp_path / f"vport0p{number}").mkdir()
        (tmp_path / f"vport0p{number}/name").write_text(name + "\n")
    (tmp_path / "vport0p3").mkdir()  # announced, not named yet
    monkeypatch.setattr(port, "_CLASS", str(tmp_path))
    assert port.find_port("org.liveclone.agent.0") == "/dev/vport0p2"
    assert port.find_port("org.liveclone.nonsense.0") is None


def test_a_port_that_comes_later_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No uevent tells of a plain file: the safety net must find it."""
    device = tmp_path / "vport"
    looked = threading.Event()

    def find(name: str) -> str | None:
        looked.set()
        return str(device) if device.exists() else None

    monkeypatch.setattr(port, "find_port", find)
    monkeypatch.setattr(port, "_LOOK_AGAIN_S", 0.05)
    opened: list[int] = []
    waiting = threading.Thread(target=lambda: opened.append(port.open_port("org.liveclone.agent.0")))
    waiting.start()
    assert looked.wait(5)
    device.touch()
    waiting.join(5)
    assert len(opened) == 1
    os.close(opened[0])


def test_going_first_is_undone(needs_root: None) -> None:
    if not priority.go_first():
        pytest.skip("this kernel refuses real-time priorities")
    assert os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR
    priority.go_along()
    assert os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_OTHER
