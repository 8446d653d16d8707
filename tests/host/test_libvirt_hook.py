"""The hook as libvirt runs it: the installed file, a process of its own, the domain's XML on its input."""

from __future__ import annotations

import ast
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from liveclone.drivers.libvirt import hook_install, hook_program, tickets
from liveclone.units import MIB
from tests.conftest import Needs

UUID = "7c2f2d6c-9f2d-4b1e-8d1c-2f4f3a5b6c7d"
NAME = "shop-c1"
IMAGE_BYTES = 4 * MIB


@dataclass
class World:
    """A host's folders, made up, with our hook installed and libvirt just about to start domain 7."""

    folder: Path

    def __post_init__(self) -> None:
        for path in (self.counter, self.image.parent, self.ram, self.hooks.parent):
            path.mkdir(parents=True, mode=0o700)
        self.image.touch(0o600)
        os.truncate(self.image, IMAGE_BYTES)
        status = hook_install.install(self.hooks, images=[self.image.parent], tickets=self.counter)
        self.hook = Path(status.path)
        assert status.state is hook_install.HookState.CURRENT

    @property
    def hooks(self) -> Path:
        return self.folder / "etc" / "libvirt" / "hooks"

    @property
    def counter(self) -> Path:
        """Where tickets are left."""
        return self.folder / "tickets"

    @property
    def image(self) -> Path:
        return self.folder / "hot" / "abc.mem"

    @property
    def ram(self) -> Path:
        return self.folder / "ram" / f"7-{NAME}"

    @property
    def linked(self) -> Path:
        return self.ram / "pc.ram"

    @property
    def ticket(self) -> Path:
        return self.counter / f"{UUID}.json"

    def issue(self, image: Path | None = None) -> tickets.Ticket:
        return tickets.issue(
            self.counter, uuid=UUID, name=NAME, image=image or self.image, memory_dir=self.ram.parent
        )

    def change(self, **values: Any) -> None:
        """Write other words into the ticket."""
        self.ticket.write_text(json.dumps(json.loads(self.ticket.read_text()) | values))

    def call(
        self,
        *words: str,
        xml: bytes | None = None,
        name: str = NAME,
        stdin: int | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run it as libvirt does."""
        return subprocess.run(
            [self.hook, name, *(words or ("start", "begin", "-"))],
            input=(render_xml() if xml is None else xml) if stdin is None else None,
            stdin=stdin,
            cwd=cwd,
            capture_output=True,
            check=False,
            timeout=20,
        )

    def refused(self) -> str:
        """Run it; it must fail, leave nothing in libvirt's folder, and give the reason that this returns."""
        before = sorted(self.ram.parent.rglob("*"))
        ended = self.call()
        assert ended.returncode == 1, ended
        assert ended.stdout == b""
        outcome = tickets.outcome(self.counter, UUID)
        assert outcome is not None and not outcome.done
        assert ended.stderr.decode().count("\n") == 1
        assert outcome.reason in ended.stderr.decode()
        assert sorted(self.ram.parent.rglob("*")) == before
        assert not self.ticket.exists()
        return outcome.reason

    def ignored(self, *words: str, **how: Any) -> str:
        """Run it; it must let the start pass and change nothing. Return what it said."""
        before = sorted(self.folder.rglob("*"))
        ended = self.call(*words, **how)
        assert (ended.returncode, ended.stdout) == (0, b""), ended
        assert sorted(self.folder.rglob("*")) == before
        return str(ended.stderr.decode())


def render_xml(uuid: str = UUID, name: str = NAME, head: str = " id='7'", rest: str = "") -> bytes:
    return (
        f"<domain type='kvm'{head}>\n  <name>{name}</name>\n  <uuid>{uuid}</uuid>\n"
        f"  <metadata>\n    <x:y xmlns:x='z'><uuid>{'0' * 36}</uuid></x:y>{rest}\n  </metadata>\n</domain>\n"
    ).encode()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# ---------------------------------------------------------------------- honoured


def test_the_image_becomes_the_ram_file(world: World) -> None:
    world.issue()
    ended = world.call()
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
    assert world.linked.stat().st_ino == world.image.stat().st_ino
    assert not world.linked.is_symlink()
    assert tickets.outcome(world.counter, UUID) == tickets.Outcome(link=str(world.linked), how="hard")
    assert [path.name for path in world.counter.iterdir()] == [f"{UUID}.done"]


def test_on_another_file_system_the_link_is_symbolic(world: World) -> None:
    far = Path(os.environ["LIVECLONE_HOT"]).with_name("hook-far")
    if far.parent.stat().st_dev == world.ram.stat().st_dev:
        pytest.skip("all folders of this run are on one file system")
    far.mkdir(mode=0o700)
    try:
        shutil.copy(world.image, far / "abc.mem")
        hook_install.install(world.hooks, images=[far], tickets=world.counter)
        world.issue(far / "abc.mem")
        assert world.call().returncode == 0
        assert world.linked.readlink() == far / "abc.mem"
        outcome = tickets.outcome(world.counter, UUID)
        assert outcome is not None and outcome.how == "symbolic"
    finally:
        shutil.rmtree(far)


def test_a_ticket_serves_one_start(world: World) -> None:
    world.issue()
    assert world.call().returncode == 0
    world.linked.unlink()
    world.ignored()


def test_the_name_of_the_folder_is_libvirts_affair(world: World) -> None:
    """libvirt cuts a long name, and replaces what it does not like in one."""
    world.ram.rename(world.ram.with_name("7-shop"))
    (world.ram.parent / "77-shop").mkdir()
    world.issue()
    assert world.call().returncode == 0
    assert (world.ram.parent / "7-shop" / "pc.ram").exists()


def test_a_huge_domain(world: World) -> None:
    world.issue()
    rest = "<other>" + "x" * (4 * MIB) + "</other>"
    assert world.call(xml=render_xml(rest=rest)).returncode == 0
    assert world.linked.exists()


def test_quotes_of_the_other_kind(world: World) -> None:
    world.issue()
    assert world.call(xml=render_xml(head=' id="7" xmlns:qemu="http://x/"')).returncode == 0
    assert world.linked.exists()


# ---------------------------------------------------------------------- not ours


@pytest.mark.parametrize(
    "words",
    [
        ("prepare", "begin", "-"),
        ("start", "end", "-"),
        ("started", "begin", "-"),
        ("stopped", "end", "-"),
        ("release", "end", "-"),
        ("reconnect", "begin", "-"),
        ("migrate", "begin", "-"),
        ("restore", "begin", "-"),
        ("start",),
    ],
)
def test_other_steps_are_not_its_business(world: World, words: tuple[str, ...]) -> None:
    world.issue()
    assert world.ignored(*words) == ""


def test_other_domains_are_not_its_business(world: World) -> None:
    assert world.ignored() == ""
    world.issue()
    assert world.ignored(xml=render_xml(uuid=UUID.replace("7", "8"))) == ""


@pytest.mark.parametrize(
    "xml",
    [
        b"",
        b"\0" * 70_000,
        b"<domain" * 100_000,
        b"<domain>",
        b"<domain type='kvm' id='7'><name>x</name></domain>",
        render_xml(uuid="../../../../../../etc/passwd/1234567"),
        render_xml(uuid="../" * 12),
        render_xml(uuid="\n" * 36),
        render_xml(uuid="é" * 18),
        "<uuid>é".encode("utf-16"),
        b"x" * (1 << 20),
    ],
    ids=range(11),
)
def test_garbage_stops_nobody(world: World, xml: bytes) -> None:
    world.issue()
    assert world.ignored(xml=xml) == ""


def test_no_input_stops_nobody(world: World) -> None:
    world.issue()
    assert world.ignored(stdin=subprocess.DEVNULL) == ""
    closed = 'exec "$0" "$@" <&-'
    ended = subprocess.run(["sh", "-c", closed, world.hook, NAME, "start", "begin", "-"], check=False)
    assert ended.returncode == 0
    assert subprocess.run([world.hook], stdin=subprocess.DEVNULL, check=False).returncode == 0
    assert world.ticket.exists()


@pytest.mark.parametrize("name", ["a\nb", "../../etc", "$(touch pwned)", "'; touch pwned; '", "-x", "", "ü"])
def test_names_are_only_compared(world: World, name: str, tmp_path: Path) -> None:
    world.issue()
    ended = world.call(name=name, cwd=tmp_path)
    assert ended.returncode == 1
    assert b"the ticket is for 'shop-c1'" in ended.stderr
    assert not world.linked.exists()
    assert not (tmp_path / "pwned").exists()


def test_a_host_without_its_folders_or_its_python(world: World) -> None:
    shutil.rmtree(world.counter)
    assert world.ignored() == ""
    world.counter.write_text("no folder")
    assert world.ignored() == ""
    world.counter.unlink()
    world.counter.mkdir(mode=0o700)
    world.issue()
    text = world.hook.read_text().replace(hook_install.status(world.hooks).python, "/nowhere/python3")
    world.hook.write_text(text)
    assert world.ignored() == ""


def test_python_is_not_even_started_for_others(world: World) -> None:
    world.hook.write_text(world.hook.read_text().replace("import os\n", "raise SystemExit(77)\n"))
    assert world.call().returncode == 0
    (world.counter / f"{UUID}.done").touch()
    (world.counter / f".{UUID}.json.1234").touch()
    assert world.call().returncode == 0
    (world.counter / "anybody.json").touch()
    assert world.call("stopped", "end", "-").returncode == 0
    assert world.call().returncode == 77


def test_what_the_shell_lets_through_python_looks_at_again(world: World) -> None:
    world.issue()
    words: list[str | Path] = [
        sys.executable,
        hook_program.__file__,
        str(world.counter),
        str(world.image.parent),
        NAME,
        "started",
        "begin",
    ]
    assert subprocess.run(words, input=render_xml(), check=False).returncode == 0
    assert world.ticket.exists() and not world.linked.exists()


# ---------------------------------------------------------------------- what is no ticket


def test_a_ticket_that_others_could_have_written_is_none(world: World) -> None:
    world.issue()
    world.ticket.chmod(0o620)
    assert "not a ticket" in world.ignored()
    world.issue()
    world.counter.chmod(0o777)
    assert "not a ticket" in world.ignored()
    world.counter.chmod(0o700)
    assert world.call().returncode == 0


def test_a_ticket_of_another_owner_is_none(world: World, needs: Needs) -> None:
    needs(root=True)
    world.issue()
    os.chown(world.ticket, 12345, 12345)
    assert "not a ticket" in world.ignored()
    os.chown(world.ticket, 0, 0)
    os.chown(world.counter, 12345, 12345)
    assert "not a ticket" in world.ignored()


def test_a_symbolic_link_is_no_ticket(world: World) -> None:
    world.issue()
    moved = world.ticket.rename(world.folder / "moved.json")
    world.ticket.symlink_to(moved)
    assert world.ignored() == ""
    world.ticket.unlink()
    moved.rename(world.ticket)
    real = world.counter.rename(world.folder / "real")
    world.counter.symlink_to(real)
    assert world.ignored() == ""


def test_a_pipe_is_no_ticket_and_holds_nobody_up(world: World) -> None:
    os.mkfifo(world.ticket, 0o600)
    (world.counter / "other.json").touch()
    assert world.ignored() == ""


@pytest.mark.parametrize(
    "change",
    [
        {"issued_s": time.clock_gettime(time.CLOCK_BOOTTIME) - hook_program.TICKET_LIFE_S - 1},
        {"issued_s": time.clock_gettime(time.CLOCK_BOOTTIME) + 1e6},
        {"boot_id": "11111111-2222-3333-4444-555555555555"},
    ],
    ids=["old", "future", "boot"],
)
def test_a_stale_ticket_is_none(world: World, change: dict[str, Any]) -> None:
    world.issue()
    world.change(**change)
    assert "stale" in world.ignored()
    assert tickets.outcome(world.counter, UUID) is None


# ---------------------------------------------------------------------- ours, but it cannot be


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "{}", "\0"])
def test_a_damaged_ticket(world: World, text: str) -> None:
    world.ticket.touch(0o600)
    world.ticket.write_text(text)
    world.refused()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"uuid": UUID.replace("7", "8")}, "the ticket is for"),
        ({"name": "other"}, "the ticket is for"),
        ({"inode": 1}, "inode of"),
        ({"size_bytes": IMAGE_BYTES + 4096}, "size_bytes of"),
        ({"owner": 54321}, "owner of"),
        ({"image": 7}, ""),
        ({"image": "/etc/passwd"}, "none of the folders"),
        ({"memory_dir": "/nowhere"}, "No such file"),
        ({"issued_s": "now"}, ""),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_word_of_a_ticket_counts(world: World, change: dict[str, Any], reason: str) -> None:
    world.issue()
    world.change(**change)
    assert reason in world.refused()


@pytest.mark.parametrize(
    "key", ["uuid", "name", "image", "size_bytes", "inode", "owner", "memory_dir", "boot_id"]
)
def test_no_word_of_a_ticket_may_be_missing(world: World, key: str) -> None:
    world.issue()
    values = json.loads(world.ticket.read_text())
    del values[key]
    world.ticket.write_text(json.dumps(values))
    assert f"lacks '{key}'" in world.refused()


def test_an_image_outside_of_the_allowed_folders(world: World) -> None:
    outside = world.folder / "hot-too"
    outside.mkdir()
    shutil.copy(world.image, outside / "abc.mem")
    world.issue(outside / "abc.mem")
    assert "none of the folders" in world.refused()
    world.issue()
    world.change(image=f"{world.image.parent}/../hot-too/abc.mem")
    assert "none of the folders" in world.refused()


def test_a_symbolic_link_on_the_way_to_the_image(world: World) -> None:
    real = world.folder / "hot" / "real"
    real.mkdir()
    shutil.copy(world.image, real / "abc.mem")
    ticket = world.issue(real / "abc.mem")
    (world.folder / "hot" / "short").symlink_to(real)
    world.change(image=str(world.folder / "hot" / "short" / "abc.mem"))
    assert "symbolic link" in world.refused()
    (real / "link.mem").symlink_to(real / "abc.mem")
    world.issue(real / "abc.mem")
    world.change(image=str(real / "link.mem"))
    assert "no regular file" in world.refused()
    assert ticket.inode == (real / "abc.mem").stat().st_ino


def test_an_image_that_is_no_file(world: World) -> None:
    world.issue()
    world.image.unlink()
    world.image.mkdir()
    assert "no regular file" in world.refused()
    world.image.rmdir()
    world.image.touch()
    world.issue()
    world.image.unlink()
    assert "No such file" in world.refused()


def test_an_image_that_others_can_change_or_replace(world: World) -> None:
    world.image.chmod(0o602)
    world.issue()
    assert "everybody may write" in world.refused()
    world.image.chmod(0o600)
    world.image.parent.chmod(0o770)
    world.issue()
    assert "others may change what is in hot" in world.refused()
    world.image.parent.chmod(0o1777)  # as /dev/shm is: others can add files, but not touch ours
    world.issue()
    assert world.call().returncode == 0


def test_an_image_in_a_folder_of_somebody_else(world: World, needs: Needs) -> None:
    needs(root=True)
    os.chown(world.image.parent, 12345, 12345)
    world.issue()
    assert "others may change what is in hot" in world.refused()


def test_an_image_of_another_owner_than_the_driver_saw(world: World, needs: Needs) -> None:
    needs(root=True)
    os.chown(world.image, 12345, 12345)
    world.issue()
    os.chown(world.image, 0, 0)
    assert "owner of" in world.refused()
    os.chown(world.image, 12345, 12345)
    world.issue()
    assert world.call().returncode == 0  # QEMU's user has to own it


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("/nowhere")])
def test_what_is_there_already_is_never_replaced(world: World, make: Callable[[Path], None]) -> None:
    make(world.linked)
    before = world.linked.lstat()
    world.issue()
    assert "File exists" in world.refused()
    assert world.linked.lstat() == before


def test_none_or_two_folders_for_one_domain(world: World) -> None:
    other = world.ram.with_name("7-other")
    other.mkdir()
    world.issue()
    assert "2 folders 7-*" in world.refused()
    other.rmdir()
    world.ram.rmdir()
    world.issue()
    assert "0 folders 7-*" in world.refused()
    elsewhere = world.folder / "elsewhere"
    elsewhere.mkdir()
    world.ram.symlink_to(elsewhere)
    world.issue()
    world.refused()
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("head", ["", " id='-1'", " id=''", " id='7/../8'"])
def test_a_domain_without_an_id(world: World, head: str) -> None:
    world.issue()
    ended = world.call(xml=render_xml(head=head))
    assert ended.returncode == 1
    assert b"no domain id" in ended.stderr


def test_a_ticket_that_cannot_be_settled_leaves_no_link(world: World) -> None:
    """The driver would not learn of it."""
    world.issue()
    (world.counter / f"{UUID}.done").mkdir()
    (world.counter / f"{UUID}.failed").mkdir()
    ended = world.call()
    assert ended.returncode == 1
    assert b"cannot be written down" in ended.stderr
    assert not world.linked.exists()
    assert sorted(path.name for path in world.counter.iterdir()) == [f"{UUID}.done", f"{UUID}.failed"]


# ---------------------------------------------------------------------- the program itself


def test_it_is_what_old_pythons_understand_and_needs_nothing_else() -> None:
    tree = ast.parse(Path(hook_program.__file__).read_text(), feature_version=(3, 8))
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or "."] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    assert imported <= set(sys.stdlib_module_names)


def test_the_installed_file_is_both_languages(world: World) -> None:
    text = world.hook.read_text()
    compile(text, "liveclone", "exec")
    shell, quoted, _ = text.partition("\n':'''")
    assert quoted
    assert subprocess.run(["sh", "-n", "-c", shell], check=False).returncode == 0
    assert stat.S_IMODE(world.hook.stat().st_mode) == 0o755
