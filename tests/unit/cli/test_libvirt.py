"""The verbs about libvirt's hook; what the hook does is shown in tests/host/test_libvirt_hook.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from liveclone.cli.libvirt import HOOKS
from liveclone.cli.main import SETTINGS, take_settings
from liveclone.drivers.libvirt import hook_install

from .conftest import Home


@pytest.fixture
def hooks(tmp_path: Path) -> Path:
    (tmp_path / "libvirt").mkdir()
    return tmp_path / "libvirt" / "hooks"


def test_install_see_remove(home: Home, hooks: Path, tmp_path: Path) -> None:
    there = ("--hooks-dir", str(hooks))
    ended = home.call("libvirt", "hook-status", *there)
    assert ended.returncode == 12
    assert b"absent" in ended.stdout and b"liveclone libvirt install-hook" in ended.stdout
    said = home.run("libvirt", "install-hook", *there, "--images", str(tmp_path / "more"))
    assert str(home.hot) in said and str(tmp_path / "more") in said
    assert "systemctl reload libvirtd" in said
    assert "hook for libvirt: current" in home.run("libvirt", "hook-status", *there)
    status = home.json("libvirt", "hook-status", *there)
    assert (status["state"], status["fit"], status["hot"]) == ("current", True, str(home.hot))
    assert status["images"] == sorted([str(home.hot), str(tmp_path / "more")])
    assert home.run("libvirt", "hook-status", "--quiet", *there) == "current\n"
    assert home.run("libvirt", "remove-hook", *there) == "the hook is removed\n"
    assert home.json("libvirt", "remove-hook", *there) == {
        "path": str(hooks / "qemu.d" / "liveclone"),
        "removed": False,
    }


def test_where_other_scripts_are_libvirt_needs_no_telling(home: Home, hooks: Path) -> None:
    hooks.mkdir()
    (hooks / "qemu").touch(0o755)
    assert "reload" not in home.run("libvirt", "install-hook", "--hooks-dir", str(hooks))
    status = home.json("libvirt", "install-hook", "--hooks-dir", str(hooks))
    assert status["noticed"] is True
    assert home.run("libvirt", "install-hook", "-q", "--hooks-dir", str(hooks)) == status["path"] + "\n"


def test_a_hook_for_another_home_does_not_fit(home: Home, hooks: Path, tmp_path: Path) -> None:
    there = ("--hooks-dir", str(hooks))
    home.run("libvirt", "install-hook", *there)
    ended = home.call("libvirt", "hook-status", *there, LIVECLONE_HOT=str(tmp_path / "elsewhere"))
    assert ended.returncode == 12
    assert b"does not accept memory images in" in ended.stdout


def test_what_is_not_ours_stays(home: Home, hooks: Path) -> None:
    other = hooks / "qemu.d" / "liveclone"
    other.parent.mkdir(parents=True)
    other.write_text("#!/bin/sh\n")
    for name in ("install-hook", "remove-hook"):
        assert home.fail(5, "libvirt", name, "--hooks-dir", str(hooks))["error"] == "foreign-hook"
    ended = home.call("libvirt", "hook-status", "--hooks-dir", str(hooks))
    assert ended.returncode == 12
    assert b"give it another name" in ended.stdout
    assert other.read_text() == "#!/bin/sh\n"


def test_where_libvirt_is_not(home: Home, tmp_path: Path) -> None:
    fields = home.fail(4, "libvirt", "install-hook", "--hooks-dir", str(tmp_path / "no" / "hooks"))
    assert fields["error"] == "no-libvirt"


def test_the_default_is_said_twice_and_alike() -> None:
    assert HOOKS == hook_install.HOOKS


@pytest.mark.parametrize(
    ("arguments", "left", "settings"),
    [
        (["--driver", "libvirt", "list"], ["list"], {"LIVECLONE_DRIVER": "libvirt"}),
        (["--connect=qemu:///x", "list"], ["list"], {"LIVECLONE_LIBVIRT_URI": "qemu:///x"}),
        (["list", "--driver", "libvirt"], ["list", "--driver", "libvirt"], {}),
        (["--driver"], ["--driver"], {}),
        ([], [], {}),
    ],
)
def test_settings_stand_before_the_verb(
    arguments: list[str], left: list[str], settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SETTINGS.values():
        monkeypatch.setenv(name, "")
    assert take_settings(arguments) == left
    assert {name: os.environ[name] for name in SETTINGS.values() if os.environ[name]} == settings
