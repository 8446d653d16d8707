"""exec, cp and console: our streams are those of the guest. The fake guest runs commands in the host's file system."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tarfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest

from .conftest import Home


@pytest.mark.parametrize("code", [0, 1, 7, 125, 255])
def test_the_exit_code_is_the_command_s(town: Home, code: int) -> None:
    words = ("exec", "web", "--", "sh", "-c", f"echo out; echo err >&2; exit {code}")
    ended = town.spawn(*words, fresh=code == 7)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, b"out\n", b"err\n")


def test_the_dashes_may_be_left_out(town: Home) -> None:
    assert town.spawn("exec", "web", "echo", "-n", "--json", "x").stdout == b"--json x"
    assert town.spawn("exec", "web", "--", "echo", "--", "x").stdout == b"-- x\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (125, ("nobody", "true")),
        (125, ("-e", "x", "web", "true")),
        (125, ("-u", "no-such-user", "web", "true")),
        (127, ("web", "no-such-program")),
        (126, ("-w", "/no/such/folder", "web", "true")),
        (2, ("web",)),
        (2, ("web", "--")),
    ],
)
def test_a_command_that_cannot_be_run(town: Home, code: int, words: tuple[str, ...]) -> None:
    ended = town.spawn("exec", *words)
    assert ended.returncode == code, ended
    assert ended.stdout == b""
    assert ended.stderr != b""
    assert b"Traceback" not in ended.stderr


def test_a_machine_that_does_not_run(home: Home) -> None:
    home.run("run", "image", "--name", "web", "-m", "128M")
    home.run("stop", "-f", "web")
    for words in (("exec", "web", "true"), ("console", "web"), ("cp", "web:/etc", "/tmp")):
        ended = home.spawn(*words)
        assert ended.returncode == (125 if words[0] == "exec" else 4)
        assert ended.stderr.startswith(b"liveclone: web does not run\n")
        assert b"liveclone start web" in ended.stderr
    home.remove_all()


def test_variables_and_folder(town: Home, tmp_path: Path) -> None:
    ended = town.spawn(
        *("exec", "-e", "A=1 2", "--env", "B=", "-w", str(tmp_path), "web"),
        *("sh", "-c", 'echo "$A,$B"; pwd'),
    )
    assert ended.stdout.decode().splitlines() == ["1 2,", str(tmp_path)]


def test_input_is_given_only_when_asked_for(town: Home) -> None:
    assert town.spawn("exec", "web", "cat", given=b"hello").stdout == b""
    assert town.spawn("exec", "-i", "web", "cat", given=b"hello", fresh=True).stdout == b"hello"
    assert town.spawn("exec", "-i", "web", "cat", given=b"").stdout == b""


def test_much_goes_through_whole_in_both_directions(town: Home) -> None:
    data = os.urandom(3_000_000)
    ended = town.spawn("exec", "-i", "web", "sh", "-c", "tee /dev/stderr", given=data)
    assert ended.stdout == data
    assert ended.stderr == data


def test_input_that_the_command_does_not_want(town: Home) -> None:
    ended = town.spawn(
        "exec", "-i", "web", "sh", "-c", "head -c 3; exec <&-; sleep 0.3", given=b"x" * 5_000_000
    )
    assert (ended.returncode, ended.stdout) == (0, b"xxx")


def test_a_file_as_input(town: Home, tmp_path: Path) -> None:
    (tmp_path / "given").write_bytes(b"from a file")
    with (tmp_path / "given").open("rb") as file:
        command = town.start("exec", "-i", "web", "cat", stdin=file)
        assert command.communicate(timeout=30)[0] == b"from a file"


def test_what_is_read_slowly_holds_nobody_up(town: Home) -> None:
    slow = town.start("exec", "web", "sh", "-c", "head -c 4000000 /dev/zero; echo end")
    assert slow.stdout
    assert slow.stdout.read(1) == b"\0"
    assert town.spawn("exec", "web", "echo", "meanwhile").stdout == b"meanwhile\n"
    out, _ = slow.communicate(timeout=30)
    assert len(out) == 4000000 - 1 + 4


def test_several_at_once(town: Home) -> None:
    loop = "for i in 1 2 3 4 5 6 7 8; do echo {0}; sleep 0.05; done"
    commands = {
        name: town.start("exec", "web", "sh", "-c", loop.format(name))
        for name in ("one", "two", "three", "four")
    }
    for name, command in commands.items():
        out, err = command.communicate(timeout=30)
        assert (command.returncode, out.decode(), err) == (0, f"{name}\n" * 8, b"")


def test_ctrl_c_is_the_command_s_first(town: Home) -> None:
    script = "trap 'echo caught; exit 9' INT; echo ready; while :; do :; done"
    command = town.start("exec", "web", "sh", "-c", script)
    assert command.stdout
    assert command.stdout.readline() == b"ready\n"
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=30)
    assert (command.returncode, out, err) == (9, b"caught\n", b"")


@pytest.mark.parametrize(
    ("signals", "code"),
    [((signal.SIGINT, signal.SIGINT), 130), ((signal.SIGTERM,), 143), ((signal.SIGHUP,), 129)],
)
def test_a_command_does_not_outlive_us(
    town: Home, tmp_path: Path, signals: tuple[signal.Signals, ...], code: int
) -> None:
    script = f"trap 'echo caught' INT; echo $$ > {tmp_path}/pid; echo ready; while :; do :; done"
    command = town.start("exec", "web", "sh", "-c", script)
    assert command.stdout
    assert command.stdout.readline() == b"ready\n"
    command.send_signal(signals[0])
    for number in signals[1:]:
        assert command.stdout.readline() == b"caught\n"
        command.send_signal(number)
    _, err = command.communicate(timeout=30)
    assert command.returncode == code
    assert f"ended by {signals[-1].name}".encode() in err
    pid = int((tmp_path / "pid").read_text())
    with suppress(ProcessLookupError):  # its agent, who is told that we have gone, ends it
        ended = os.pidfd_open(pid)
        assert select.select([ended], [], [], 10.0)[0]
        os.close(ended)


def test_a_reader_that_goes_away_ends_it(town: Home) -> None:
    command = town.start("exec", "web", "sh", "-c", "while :; do echo y; done")
    assert command.stdout
    assert command.stdout.read(2) == b"y\n"
    command.stdout.close()
    assert command.wait(30) == 141


def test_a_terminal(town: Home) -> None:
    # No program is started when ctrl-C comes: dash would not notice it (vfork).
    script = 'tty; read line; echo "got $line"; stty size; echo here; exec cat'
    terminal = town.terminal("exec", "-it", "web", "sh", "-c", script, fresh=True)
    terminal.expect(rb"/dev/pts/\d+\r\n")
    assert terminal.is_raw()
    terminal.type(b"hello\r")
    terminal.expect(rb"hello\r\ngot hello\r\n24 80\r\nhere\r\n")
    terminal.type(b"\x03")  # ctrl-C: of the guest's terminal
    assert terminal.end() == 130
    assert terminal.child.returncode == 130


def test_a_terminal_follows_the_size(town: Home, tmp_path: Path) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do read line; done"
    terminal = town.terminal("exec", "-it", "web", "sh", "-c", script)
    terminal.expect(rb"ready\r\n")
    terminal.resize(33, 99)
    terminal.child.send_signal(signal.SIGWINCH)
    terminal.expect(rb"33 99\r\n")
    terminal.type(b"\x03")
    assert terminal.end() == 130


def test_the_terminal_is_as_it_was_afterwards(town: Home) -> None:
    terminal = town.terminal("exec", "-it", "web", "sh", "-c", "echo ready; read line; exit 3")
    terminal.expect(rb"ready\r\n")
    assert terminal.is_raw()
    terminal.type(b"\r")
    assert terminal.child.wait(30) == 3
    assert not terminal.is_raw()
    terminal.close()


def test_a_console(town: Home) -> None:
    folder = town.folder / "machines" / town.machine("web")["summary"]["id"]
    (folder / "console.log").write_bytes(b"x" * 5000 + b"\nwhat was before\n")
    terminal = town.terminal("console", "web")
    terminal.expect(rb"ctrl-\] leaves the console\r\n")
    terminal.expect(rb"^what was before\r?\n")
    terminal.expect(rb"\w+ login: ")
    assert terminal.is_raw()
    terminal.type(b"root\x03")  # the fake console gives back what is typed
    terminal.expect(rb"root\x03")
    ended = town.spawn("console", "web")
    assert ended.returncode == 5
    assert b"console of web" in ended.stderr
    terminal.type(b"\x1d")
    terminal.expect(rb"left the console of web; it runs on")
    assert terminal.end() == 0
    (folder / "console.log").unlink()


def test_a_console_goes_on_through_a_handover_and_ends_with_the_machine(home: Home) -> None:
    home.run("run", "image", "--name", "web", "-m", "128M")
    terminal = home.terminal("console", "web")
    terminal.expect(rb"login: ")
    home.run("snapshot", "web", "-q")
    terminal.expect(rb"login: ")
    terminal.type(b"still here")
    terminal.expect(rb"still here")
    home.run("stop", "-f", "web")
    terminal.expect(rb"liveclone: web stopped meanwhile")
    assert terminal.end() == 9
    home.remove_all()


def test_a_console_without_a_terminal_ends_with_its_input(town: Home) -> None:
    ended = town.spawn("console", "web", given=b"")
    assert (ended.returncode, ended.stderr) == (0, b"")


# cp


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with all that may be in one."""
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "file").write_bytes(os.urandom(100_000))
    (tree / "inner" / "run").write_text("#!/bin/sh\n")
    (tree / "inner" / "run").chmod(0o755)
    (tree / "link").symlink_to("inner/run")
    (tree / "dangling").symlink_to("/nowhere")
    (tree / "hard").hardlink_to(tree / "file")
    (tree / ("n" * 200)).touch()
    (tree / "a name: with ü").touch()
    os.utime(tree / "file", (1e9, 1e9))
    return tree


def same(one: Path, other: Path) -> bool:
    return describe(one) == describe(other)


def describe(folder: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        name, mode = str(path.relative_to(folder)), path.lstat().st_mode
        if path.is_symlink():
            found[name] = ("link", path.readlink())
        elif path.is_file():
            found[name] = (mode, path.read_bytes(), int(path.stat().st_mtime))
        else:
            found[name] = (mode,)
    return found


def test_a_folder_goes_in_and_out(town: Home, tree: Path, tmp_path: Path) -> None:
    guest, back = tmp_path / "guest", tmp_path / "back"
    guest.mkdir()
    town.run("cp", str(tree), f"web:{guest}")
    assert same(tree, guest / "tree"), "into a folder that is there, under its own name"
    town.run("cp", str(tree), f"web:{guest}/other")
    assert same(tree, guest / "other"), "with the target's name, where there is none"
    town.run("cp", f"{tree}/.", f"web:{guest}/other/inner")
    assert (guest / "other" / "inner" / "inner" / "run").exists(), "what is in it"
    town.run("cp", f"web:{guest}/tree", str(back))
    assert same(tree, back)
    town.run("cp", f"web:{guest}/tree", str(back))
    assert same(tree, back / "tree")
    town.run("cp", f"web:{guest}/tree/.", str(tmp_path / "fresh"))
    assert same(tree, tmp_path / "fresh")


def test_a_file_goes_in_and_out(town: Home, tree: Path, tmp_path: Path) -> None:
    guest = tmp_path / "guest"
    guest.mkdir()
    town.run("cp", str(tree / "file"), f"web:{guest}")
    town.run("cp", str(tree / "file"), f"web:{guest}/renamed")
    town.run("cp", str(tree / "inner" / "run"), f"web:{guest}/renamed")
    assert (guest / "renamed").read_text() == "#!/bin/sh\n"
    town.run("cp", f"web:{guest}/file", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == (tree / "file").read_bytes()
    town.run("cp", f"web:{guest}/renamed", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "#!/bin/sh\n"
    assert town.json("cp", f"web:{guest}/file", str(guest / "x"))["left_out"] == []


@pytest.mark.parametrize(
    ("code", "source", "target"),
    [
        (4, "{0}/nothing", "web:{0}"),
        (4, "{0}/tree", "web:{0}/no/such"),
        (4, "{0}/tree/file", "web:{0}/none/"),
        (3, "{0}/tree", "web:{0}/tree/file"),
        (4, "web:{0}/nothing", "{0}"),
        (4, "web:{0}/tree", "{0}/no/such"),
        (3, "web:{0}/tree", "{0}/tree/file"),
        (4, "-", "web:{0}/nothing"),
        (4, "web:{0}/nothing", "-"),
    ],
)
def test_what_cannot_be_copied(
    town: Home, tree: Path, tmp_path: Path, code: int, source: str, target: str
) -> None:
    before = describe(tmp_path)
    ended = town.spawn("cp", source.format(tmp_path), target.format(tmp_path), given=b"")
    assert ended.returncode == code, ended
    assert b"Traceback" not in ended.stderr
    assert b"  next  " in ended.stderr
    assert describe(tmp_path) == before


def test_a_tar_stream(town: Home, tree: Path, tmp_path: Path) -> None:
    stream = town.spawn("cp", f"web:{tree}", "-").stdout
    with tarfile.open(fileobj=BytesIO(stream)) as archive:
        assert "tree/inner/run" in archive.getnames()
    (tmp_path / "guest").mkdir()
    ended = town.spawn("cp", "-", f"web:{tmp_path}/guest", given=stream)
    assert ended.returncode == 0
    assert same(tree, tmp_path / "guest" / "tree")
    ended = town.spawn("cp", "-", f"web:{tmp_path}/guest", given=b"no archive at all" * 100)
    assert ended.returncode == 9
    assert b"unpacking in the guest failed" in ended.stderr


def test_what_is_no_file_is_left_out(town: Home, tmp_path: Path) -> None:
    guest = tmp_path / "guest"
    guest.mkdir()
    os.mkfifo(guest / "fifo")
    (guest / "file").touch()
    ended = town.spawn("cp", f"web:{guest}", str(tmp_path / "out"))
    assert ended.returncode == 0
    assert b"left out, since they are no files: guest/fifo" in ended.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_a_copy_that_is_cut_short_ends_cleanly(town: Home, tmp_path: Path) -> None:
    source = tmp_path / "source"
    os.mkfifo(source)  # what is read from it never ends
    command = town.start("exec", "web", "cat", str(source))
    command.send_signal(signal.SIGTERM)
    command.communicate(timeout=30)
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(2_000_000_000)
    for words in (("cp", str(big), f"web:{tmp_path}/in"), ("cp", f"web:{big}", f"{tmp_path}/out")):
        command = town.start(*words, stdout=subprocess.PIPE)
        assert command.stderr
        assert b"copying" in command.stderr.readline()
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=30)
        assert command.returncode == 130, err
        assert b"Traceback" not in err
    assert town.spawn("exec", "web", "echo", "fine").stdout == b"fine\n"
