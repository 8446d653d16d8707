"""Installing the hook, and the driver's side of its tickets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from liveclone.drivers.libvirt import hook_install, tickets
from liveclone.drivers.libvirt.hook_install import HookState
from liveclone.drivers.libvirt.hook_program import TICKET_LIFE_S
from liveclone.errors import Conflict, Corrupt, NotFound, Refused, StoreError, Unsupported
from tests.conftest import Needs

UUID = "7c2f2d6c-9f2d-4b1e-8d1c-2f4f3a5b6c7d"


@pytest.fixture
def hooks(tmp_path: Path) -> Path:
    (tmp_path / "libvirt").mkdir()
    return tmp_path / "libvirt" / "hooks"


def test_install_status_remove(hooks: Path, tmp_path: Path) -> None:
    assert hook_install.status(hooks).state is HookState.ABSENT
    assert not hook_install.remove(hooks)
    installed = hook_install.install(hooks, images=[tmp_path / "hot"], tickets=tmp_path / "tickets")
    assert installed == hook_install.status(hooks)
    assert installed.state is HookState.CURRENT and installed.state.is_ours
    assert (installed.images, installed.tickets) == ((str(tmp_path / "hot"),), str(tmp_path / "tickets"))
    assert installed.accepts(tmp_path / "hot" / "home") and not installed.accepts(tmp_path / "hot2")
    assert [path.name for path in (hooks / "qemu.d").iterdir()] == ["liveclone"]
    assert hook_install.remove(hooks)
    assert hook_install.status(hooks).state is HookState.ABSENT
    assert not hook_install.status(hooks).accepts(tmp_path / "hot")


def test_to_install_again_keeps_the_folders(hooks: Path, tmp_path: Path) -> None:
    hook_install.install(hooks, images=[tmp_path / "b"])
    again = hook_install.install(hooks, images=[tmp_path / "a", tmp_path / "b"])
    assert again.images == (str(tmp_path / "a"), str(tmp_path / "b"))


def test_the_mode_does_not_hang_on_the_umask(hooks: Path) -> None:
    old = os.umask(0o077)
    try:
        status = hook_install.install(hooks)
    finally:
        os.umask(old)
    assert status.state is HookState.CURRENT
    assert Path(status.path).stat().st_mode & 0o777 == 0o755


def test_what_is_old_or_changed_is_ours_and_is_replaced(hooks: Path, tmp_path: Path) -> None:
    path = Path(hook_install.install(hooks, images=[tmp_path / "hot"]).path)
    good = path.read_text()
    for text in (
        good + "# changed\n",
        good.replace("exit 0", "exit 1"),
        "\n".join(good.splitlines()[:3]) + "\n",
        "\n".join([*good.splitlines()[:2], "# damaged", "rest"]),
    ):
        path.write_text(text)
        found = hook_install.status(hooks)
        assert found.state is HookState.OLD and found.state.is_ours, text
        assert not found.accepts(tmp_path / "hot")
        assert hook_install.install(hooks, images=[tmp_path / "hot"]).state is HookState.CURRENT
        assert path.read_text() == good


def test_a_hook_of_another_version_with_the_same_program_is_current(
    hooks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_install, "__version__", "0.0.9")
    hook_install.install(hooks)
    monkeypatch.undo()
    found = hook_install.status(hooks)
    assert (found.state, found.version) == (HookState.CURRENT, "0.0.9")


@pytest.mark.parametrize(
    "text", ["", "#!/bin/sh\nexit 0\n", "#!/bin/sh\n# liveclone's\n\n\n", "\0\xff\n" * 9]
)
def test_a_file_that_is_not_ours_is_left_alone(hooks: Path, text: str) -> None:
    path = hooks / "qemu.d" / "liveclone"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    path.chmod(0o755)
    found = hook_install.status(hooks)
    assert found.state is HookState.FOREIGN and not found.state.is_ours
    for action in (hook_install.install, hook_install.remove):
        with pytest.raises(Conflict) as caught:
            action(hooks)
        assert caught.value.code == "foreign-hook"
    assert path.read_text() == text


def test_a_link_or_a_folder_is_not_ours(hooks: Path, tmp_path: Path) -> None:
    made = Path(hook_install.install(hooks).path)
    moved = made.rename(tmp_path / "moved")
    made.symlink_to(moved)
    assert hook_install.status(hooks).state is HookState.FOREIGN
    made.unlink()
    made.mkdir()
    assert hook_install.status(hooks).state is HookState.FOREIGN
    with pytest.raises(Conflict):
        hook_install.install(hooks)


def test_what_libvirt_cannot_run_or_others_can_write_is_said(hooks: Path, needs: Needs) -> None:
    path = Path(hook_install.install(hooks).path)
    for mode, words in ((0o644, "not executable"), (0o775, "others may write"), (0o757, "others may write")):
        path.chmod(mode)
        found = hook_install.status(hooks)
        assert found.state is HookState.UNUSABLE and words in found.seen
    assert hook_install.install(hooks).state is HookState.CURRENT
    needs(root=True)
    os.chown(path, 12345, 12345)
    assert "owner 12345" in hook_install.status(hooks).seen
    assert hook_install.install(hooks).state is HookState.CURRENT


def test_a_python_that_has_gone_is_said(hooks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python3"
    python.symlink_to("/bin/true")
    monkeypatch.setattr(hook_install, "_PYTHONS", ("/nowhere", str(python)))
    assert hook_install.install(hooks).python == str(python)
    python.unlink()
    assert hook_install.status(hooks).seen == f"{python} is gone"
    python.symlink_to("/bin/false")  # one that is too old
    with pytest.raises(Unsupported) as caught:
        hook_install.install(hooks)
    assert caught.value.code == "no-python"


def test_whether_libvirt_looks_into_the_folder(hooks: Path) -> None:
    assert not hook_install.install(hooks).noticed
    other = hooks / "qemu.d" / "other"
    other.touch(0o644)
    assert not hook_install.status(hooks).noticed
    other.chmod(0o755)
    assert hook_install.status(hooks).noticed
    other.unlink()
    (hooks / "qemu").touch(0o755)
    assert hook_install.status(hooks).noticed


def test_without_libvirt_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        hook_install.install(tmp_path / "libvirt" / "hooks")
    assert caught.value.code == "no-libvirt"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a'b", "a:b", "a\nb", "a\\b", 'a"b', "a$b", "ü"])
def test_a_folder_that_the_shell_would_misread(hooks: Path, tmp_path: Path, name: str) -> None:
    for settings in ({"images": [tmp_path / name]}, {"tickets": tmp_path / name}):
        with pytest.raises(Refused) as caught:
            hook_install.install(hooks, **settings)
        assert caught.value.code == "bad-folder"
    with pytest.raises(Refused):
        hook_install.install(hooks, images=[Path("/")])
    assert hook_install.status(hooks).state is HookState.ABSENT


def test_a_folder_that_cannot_be_made(hooks: Path) -> None:
    hooks.touch()
    with pytest.raises(StoreError):
        hook_install.install(hooks)


# ---------------------------------------------------------------------- tickets, the driver's side


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "abc.mem"
    path.write_bytes(bytes(8192))
    return path


def issue(folder: Path, image: Path) -> tickets.Ticket:
    return tickets.issue(folder, uuid=UUID, name="shop", image=image, memory_dir=image.parent)


def test_a_ticket_says_what_the_image_is(tmp_path: Path, image: Path) -> None:
    folder = tmp_path / "run" / "tickets"
    (tmp_path / "link").symlink_to(image)
    ticket = issue(folder, tmp_path / "link")
    seen = image.stat()
    assert (ticket.image, ticket.inode, ticket.size_bytes) == (str(image), seen.st_ino, 8192)
    assert ticket.owner == os.geteuid()
    assert folder.stat().st_mode & 0o777 == 0o700
    (path,) = folder.iterdir()
    assert path.name == f"{UUID}.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["name"] == "shop"
    assert tickets.outcome(folder, UUID) is None


def test_a_new_ticket_knows_no_old_outcome(tmp_path: Path, image: Path) -> None:
    for kind in ("done", "failed"):
        (tmp_path / f"{UUID}.{kind}").write_text('{"link": "/x", "how": "hard"}')
        issue(tmp_path, image)
        assert tickets.outcome(tmp_path, UUID) is None
    tickets.withdraw(tmp_path, UUID)
    assert [path.name for path in tmp_path.iterdir()] == ["abc.mem"]
    tickets.withdraw(tmp_path, UUID)


def test_outcomes(tmp_path: Path) -> None:
    (tmp_path / f"{UUID}.done").write_text('{"link": "/x/pc.ram", "how": "hard", "inode": 3}')
    outcome = tickets.outcome(tmp_path, UUID.upper())
    assert outcome is not None and outcome.done and outcome.how == "hard"
    (tmp_path / f"{UUID}.done").rename(tmp_path / f"{UUID}.failed")
    with pytest.raises(Corrupt):
        tickets.outcome(tmp_path, UUID)
    (tmp_path / f"{UUID}.failed").write_text('{"reason": "no such file"}')
    assert tickets.outcome(tmp_path, UUID) == tickets.Outcome(reason="no such file")
    (tmp_path / f"{UUID}.failed").write_text("{")
    with pytest.raises(Corrupt):
        tickets.outcome(tmp_path, UUID)
    assert tickets.outcome(tmp_path / "nowhere", UUID) is None


def test_no_ticket_for_an_image_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        issue(tmp_path / "tickets", tmp_path / "abc.mem")
    assert caught.value.code == "no-memory-image"
    assert list((tmp_path / "tickets").iterdir()) == []


def test_no_ticket_in_a_folder_that_others_may_write(tmp_path: Path, image: Path) -> None:
    folder = tmp_path / "tickets"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(Conflict) as caught:
        issue(folder, image)
    assert caught.value.code == "unsafe-folder"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("uuid", ["", "x", "../" * 12, UUID + "0", UUID[:-1] + "/"])
def test_what_is_no_uuid_names_no_file(tmp_path: Path, image: Path, uuid: str) -> None:
    with pytest.raises(Refused):
        tickets.withdraw(tmp_path, uuid)
    with pytest.raises(Refused):
        tickets.issue(tmp_path, uuid=uuid, name="x", image=image, memory_dir=tmp_path)


def test_a_sweep_takes_what_nobody_waits_for(tmp_path: Path, image: Path) -> None:
    folder = tmp_path / "tickets"
    issue(folder, image)
    fresh = json.loads((folder / f"{UUID}.json").read_text())
    old = fresh | {"issued_s": fresh["issued_s"] - TICKET_LIFE_S - 5}
    other_boot = fresh | {"boot_id": "another"}
    for name, values in {
        "1.json": old,
        "2.done": old,
        "3.failed": other_boot,
        "4.done": fresh,
    }.items():
        (folder / name).write_text(json.dumps(values))
    (folder / ".half.json.1").write_text("{")
    (folder / ".old.json.1").write_text("{")
    os.utime(folder / ".old.json.1", (0, 0))
    assert tickets.sweep(folder) == [".old.json.1", "1.json", "2.done", "3.failed"]
    assert sorted(path.name for path in folder.iterdir()) == [".half.json.1", "4.done", f"{UUID}.json"]
    assert tickets.sweep(tmp_path / "nowhere") == []
