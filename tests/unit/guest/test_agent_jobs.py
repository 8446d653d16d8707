"""Commands, run for real on this machine."""

from __future__ import annotations

import base64
import os
import pwd
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from liveclone.guest import job as job_module
from liveclone.guest import process
from liveclone.guest.main import Agent, end_children
from liveclone.guest.stream import BUFFER_BYTES

from .conftest import Host, Refusal


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def decoded(reply: dict[str, Any], stream: str = "stdout") -> bytes:
    return base64.b64decode(reply[stream]["data"])


def start(host: Host, *argv: str, **args: Any) -> str:
    id: str = host.call("exec_start", argv=list(argv), **args)["job"]
    return id


def until(host: Host, job: str, text: bytes) -> bytes:
    """Read stdout until it holds `text`."""
    got = b""
    while text not in got:
        reply = host.call("exec_io", job=job, stdout_from=len(got), wait_s=5)
        assert reply["exit_code"] is None, got
        got += decoded(reply)
    return got


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo out; echo err >&2", (0, b"out\n", b"err\n")),
        ("exit 7", (7, b"", b"")),
        ("kill -KILL $$", (137, b"", b"")),
        ("kill -TERM $$", (143, b"", b"")),
        ("exec >&- 2>&-; sleep 0.05; exit 3", (3, b"", b"")),
    ],
)
def test_streams_and_exit_code(host: Host, script: str, expected: tuple[int, bytes, bytes]) -> None:
    assert host.run("sh", "-c", script) == expected


def test_not_found_and_not_executable(host: Host, tmp_path: Path) -> None:
    code, out, err = host.run("no-such-program")
    assert (code, out) == (127, b"")
    assert b"no-such-program" in err
    plain = tmp_path / "plain"
    plain.write_text("x")
    code, _, err = host.run(str(plain))
    assert code == 126
    assert str(plain).encode() in err


def test_a_folder_that_is_not_there(host: Host) -> None:
    code, _, err = host.run("true", cwd="/no/such/folder")
    assert code == 126
    assert b"/no/such/folder" in err


@pytest.mark.parametrize("argv", [[], None, ["a\0b"]])
def test_no_command(host: Host, argv: Any) -> None:
    with pytest.raises(Refusal) as caught:
        host.call("exec_start", argv=argv)
    assert caught.value.code == "bad-request"


def test_arguments_are_passed_to_the_letter(host: Host) -> None:
    odd = ["a b", "", "$HOME", "*", "'", '"', "\n", "-n", "ü"]
    assert host.run("printf", "%s|", *odd)[1] == "".join(f"{word}|" for word in odd).encode()


def test_environment(host: Host, tmp_path: Path) -> None:
    out = host.run("sh", "-c", "echo $PATH; echo $HOME; echo $A; pwd", env={"A": "1 2"}, cwd=str(tmp_path))[1]
    path, home, a, cwd = out.decode().splitlines()
    assert path == process.PATH
    assert home == pwd.getpwuid(os.geteuid()).pw_dir
    assert (a, cwd) == ("1 2", str(tmp_path))
    assert b"LIVECLONE" not in host.run("env")[1]


def test_a_command_may_be_killed_when_memory_is_short(host: Host, needs_root: None) -> None:
    ours = Path("/proc/self/oom_score_adj")
    before = ours.read_text()
    ours.write_text("500")  # the agent's own is -900, which not every test may set
    try:
        assert host.run("cat", "/proc/self/oom_score_adj") == (0, b"0\n", b"")
    finally:
        ours.write_text(before)


def test_another_user(host: Host, needs_root: None) -> None:
    code, out, _ = host.run("sh", "-c", "id -un; id -gn; echo $HOME $USER", user="nobody")
    assert (code, out) == (0, b"nobody\nnogroup\n/nonexistent nobody\n")
    assert host.run("id", "-u", user="65534")[1] == b"65534\n"


def test_no_such_user(host: Host) -> None:
    with pytest.raises(Refusal) as caught:
        host.call("exec_start", argv=["true"], user="no-such-user")
    assert caught.value.code == "no-user"


def test_a_lot_of_input_comes_back_whole(host: Host) -> None:
    data = os.urandom(3_000_000)
    assert host.run("cat", stdin=data) == (0, data, b"")


def test_input_is_taken_once_whatever_is_repeated(host: Host) -> None:
    job = start(host, "cat", stdin=True)
    hello = {"offset": 0, "data": encoded(b"hello ")}
    for _ in range(3):
        assert host.call("exec_io", job=job, stdin=hello)["stdin_offset"] == 6
    host.call("exec_io", job=job, stdin={"offset": 3, "data": encoded(b"lo world")}, eof=True)
    got = b""
    while True:
        reply = host.call("exec_io", job=job, stdout_from=len(got), wait_s=5)
        again = host.call("exec_io", job=job, stdout_from=len(got), wait_s=0)
        assert decoded(again).startswith(decoded(reply))
        got += decoded(reply)
        if reply["exit_code"] is not None:
            break
    assert got == b"hello world"
    host.call("exec_io", job=job, stdout_from=len(got))
    with pytest.raises(Refusal) as caught:
        host.call("exec_io", job=job, stdout_from=5)
    assert caught.value.code == "bad-offset"  # what has been acknowledged is gone
    host.call("exec_close", job=job)


def test_input_with_a_gap_is_refused(host: Host) -> None:
    job = start(host, "cat", stdin=True)
    with pytest.raises(Refusal) as caught:
        host.call("exec_io", job=job, stdin={"offset": 1, "data": encoded(b"x")})
    assert caught.value.code == "bad-offset"
    host.call("exec_close", job=job)


def test_eof_alone_ends_the_input(host: Host) -> None:
    job = start(host, "cat", stdin=True)
    assert not host.call("exec_io", job=job, eof=True)["stdin_open"]
    assert host.call("exec_io", job=job, wait_s=5)["exit_code"] == 0


def test_input_nobody_reads_is_no_error(host: Host) -> None:
    assert host.run("true", stdin=os.urandom(500_000))[0] == 0


def test_input_waits_for_a_slow_reader(host: Host) -> None:
    job = start(host, "sleep", "60", stdin=True)
    data = b"x" * 1_500_000
    reply = host.call("exec_io", job=job, stdin={"offset": 0, "data": encoded(data)}, wait_s=0.2)
    assert BUFFER_BYTES <= reply["stdin_offset"] < len(data)
    host.call("exec_close", job=job)


def test_output_nobody_takes_is_bounded(agent: Agent, host: Host) -> None:
    job = start(host, "sh", "-c", "head -c 5000000 /dev/zero; head -c 3000000 /dev/zero >&2")
    running = agent.jobs._jobs[job]
    wait_until(lambda: running.stdout.full)
    time.sleep(0.05)
    assert running.stdout.end <= BUFFER_BYTES + 65536
    out = err = 0
    while True:
        reply = host.call("exec_io", job=job, stdout_from=out, stderr_from=err, wait_s=5)
        out += len(decoded(reply))
        err += len(decoded(reply, "stderr"))
        if reply["exit_code"] is not None:
            break
    assert (out, err) == (5_000_000, 3_000_000)


def test_waiting_ends_with_something_new(host: Host, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    job = start(host, "cat", str(fifo))
    began = time.monotonic()
    assert host.call("exec_io", job=job, wait_s=0.1)["exit_code"] is None
    assert time.monotonic() - began >= 0.1
    asked = host.send("exec_io", job=job, wait_s=7)
    with fifo.open("w") as feed:
        feed.write("news\n")
        feed.flush()
        assert decoded(host.answer(asked)) == b"news\n"
    assert time.monotonic() - began < 5
    host.call("exec_close", job=job)


def test_the_exit_code_comes_with_the_last_output(host: Host) -> None:
    job = start(host, "head", "-c", "900000", "/dev/zero")
    got = 0
    while True:
        reply = host.call("exec_io", job=job, stdout_from=got, wait_s=5)
        got += len(decoded(reply))
        assert (reply["exit_code"] is not None) == (got == 900_000) or got == 900_000
        if reply["exit_code"] is not None:
            break
    assert got == 900_000


def test_a_daemon_that_keeps_the_pipe_does_not_keep_the_job(host: Host) -> None:
    began = time.monotonic()
    code, out, _ = host.run("sh", "-c", "sleep 60 & echo $!")
    assert code == 0
    assert time.monotonic() - began < 5
    os.kill(int(out), signal.SIGKILL)  # it outlived the job, as a daemon should


def test_a_talkative_daemon_does_not_keep_the_job(host: Host) -> None:
    code, out, _ = host.run("sh", "-c", "(while :; do echo noise || exit; done) & echo $! >&2; exit 5")
    assert code == 5
    assert out.count(b"noise") < 1_000_000


@pytest.mark.parametrize(("given", "number"), [("TERM", 15), ("SIGUSR1", 10), (2, 2)])
def test_signal(host: Host, given: str | int, number: int) -> None:
    job = start(host, "sh", "-c", "trap '' HUP; echo ready; exec sleep 60")
    until(host, job, b"ready")
    assert host.call("exec_signal", job=job, signal=given) == {"sent": True}
    assert host.call("exec_io", job=job, stdout_from=6, wait_s=5)["exit_code"] == 128 + number
    assert host.call("exec_signal", job=job, signal=given) == {"sent": False}


def test_close_kills_the_group(host: Host, tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    job = start(host, "sh", "-c", f"sleep 60 > {fifo} & sleep 60")
    with fifo.open() as alive:
        host.call("exec_close", job=job)
        assert alive.read() == ""
    assert host.call("exec_close", job=job) == {}
    with pytest.raises(Refusal) as caught:
        host.call("exec_io", job=job)
    assert caught.value.code == "no-job"


def test_starting_twice_under_one_name_starts_once(host: Host, tmp_path: Path) -> None:
    args: dict[str, Any] = {"argv": ["sh", "-c", f"echo x >> {tmp_path}/log; sleep 60"], "job": "mine"}
    assert host.call("exec_start", **args) == host.call("exec_start", **args) == {"job": "mine"}
    log = tmp_path / "log"
    wait_until(lambda: log.exists() and log.read_text())
    host.call("exec_close", job="mine")
    assert log.read_text() == "x\n"


def test_a_finished_job_is_dropped_after_a_while(
    agent: Agent, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "LINGER_S", 0.05)
    start(host, "true")
    wait_until(lambda: not agent.jobs._jobs)


def test_too_many_jobs_are_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liveclone.guest.jobs.MOST_JOBS", 2)
    jobs = [start(host, "sleep", "60") for _ in range(2)]
    with pytest.raises(Refusal) as caught:
        host.call("exec_start", argv=["true"])
    assert caught.value.code == "busy"
    for job in jobs:
        host.call("exec_close", job=job)


class TestTerminal:
    def test_it_is_a_terminal_of_its_own(self, host: Host) -> None:
        script = "tty; stty size; echo $TERM; echo direct > /dev/tty; ps -o tpgid= -o pgid= -p $$ | awk '{print $1 == $2}'"
        code, out, err = host.run("sh", "-c", script, tty=True, rows=33, cols=77)
        lines = out.decode().split("\r\n")
        assert code == 0, out
        assert lines[0].startswith("/dev/pts/")
        assert lines[1:5] == ["33 77", "xterm-256color", "direct", "1"]
        assert err == b""

    def test_resize(self, host: Host) -> None:
        script = "trap 'stty size; sleep 60' WINCH; echo ready; while :; do sleep 0.05; done"
        job = start(host, "sh", "-c", script, tty=True)
        until(host, job, b"ready")
        host.call("exec_resize", job=job, rows=11, cols=22)
        until(host, job, b"11 22")
        host.call("exec_close", job=job)

    def test_control_c(self, host: Host) -> None:
        # Not one long sleep: a signal between dash's fork and its child's exec is lost on the child.
        job = start(
            host, "sh", "-c", "trap 'exit 130' INT; echo ready; while :; do sleep 0.05; done", tty=True
        )
        got = until(host, job, b"ready\r\n")
        host.call("exec_io", job=job, stdin={"offset": 0, "data": encoded(b"\x03")}, stdout_from=len(got))
        while True:
            reply = host.call("exec_io", job=job, stdout_from=len(got), wait_s=5)
            got += decoded(reply)
            if reply["exit_code"] is not None:
                break
        assert reply["exit_code"] == 130

    def test_typing_and_its_end(self, host: Host) -> None:
        code, out, _ = host.run("cat", tty=True, stdin=b"one\ntwo\n")
        assert code == 0
        assert out.count(b"one") == out.count(b"two") == 2  # as typed, and as cat says it

    def test_a_program_may_close_its_terminal_and_open_it_again(self, host: Host) -> None:
        """Were our end closed meanwhile, SIGHUP would end it with 129."""
        script = "exec <&- >&- 2>&-; sleep 0.1; echo back > /dev/tty; sleep 0.1; exit 4"
        assert host.run("sh", "-c", script, tty=True) == (4, b"back\r\n", b"")

    def test_another_users_terminal(self, host: Host, needs_root: None) -> None:
        code, out, _ = host.run("sh", "-c", "id -un; echo mine > /dev/tty", tty=True, user="nobody")
        assert (code, out) == (0, b"nobody\r\nmine\r\n")

    def test_without_a_terminal_there_is_nothing_to_resize(self, host: Host) -> None:
        job = start(host, "sleep", "60")
        with pytest.raises(Refusal) as caught:
            host.call("exec_resize", job=job, rows=1, cols=1)
        assert caught.value.code == "no-tty"
        host.call("exec_close", job=job)


def test_in_a_clone_old_commands_never_wait_for_a_reader(
    agent: Agent, host: Host, identity: dict[str, Any], tmp_path: Path
) -> None:
    done = tmp_path / "done"
    os.mkfifo(done)
    job = start(host, "sh", "-c", f"head -c 9000000 /dev/zero; echo all > {done}")
    running = agent.jobs._jobs[job]
    wait_until(lambda: running.stdout.full)
    host.call("identify", **identity)
    assert done.read_text() == "all\n"
    with pytest.raises(Refusal) as caught:
        host.call("exec_io", job=job)
    assert caught.value.code == "no-job"


def test_many_at_once(host: Host) -> None:
    jobs = [start(host, "sh", "-c", f"echo {number}; exit {number}") for number in range(20)]
    for number, job in enumerate(jobs):
        got = b""
        while True:
            reply = host.call("exec_io", job=job, stdout_from=len(got), wait_s=5)
            got += decoded(reply)
            if reply["exit_code"] is not None:
                break
        assert (got, reply["exit_code"]) == (b"%d\n" % number, number)
        host.call("exec_close", job=job)


def test_the_agents_end_leaves_no_process_and_no_zombie(host: Host) -> None:
    start(host, "sleep", "60")
    job = start(host, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 60; done")
    until(host, job, b"ready")
    children = process.living()
    assert len(children) == 2
    end_children(grace_s=0.2)
    wait_until(lambda: not process.living())
    for child in children:
        assert not Path(f"/proc/{child.pid}").exists()


def test_no_descriptor_is_left(host: Host) -> None:
    host.run("true")
    before = count_descriptors()
    for _ in range(5):
        host.run("cat", stdin=b"x")
        host.run("true", tty=True)
    with pytest.raises(Refusal):
        host.call("exec_start", argv=["true"], user="no-such-user")
    wait_until(lambda: count_descriptors() <= before)


def test_a_job_ends_while_others_are_asked(host: Host) -> None:
    """Many short commands from many threads: nobody is lost between the end and the asking."""
    results: list[int] = []
    lock = threading.Lock()

    def once(number: int) -> None:
        child = process.start_for_user(["sh", "-c", f"exit {number}"], env={"PATH": process.PATH})
        code = child.wait()
        with lock:
            results.append(code)

    threads = [threading.Thread(target=once, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(20))
    assert subprocess.run(["true"], check=False).returncode == 0
