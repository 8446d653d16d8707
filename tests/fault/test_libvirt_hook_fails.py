"""The hook is missing, old, failing, or not noticed by libvirtd: the clone comes up the full way, and says why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveclone.drivers.libvirt import hook_install
from liveclone.engine import views
from liveclone.model.snapshot import Snapshot
from tests.fault.domains import Shop
from tests.machines import check_clear


@pytest.fixture
def hook(shop: Shop) -> Iterator[Path]:
    """The hook as it is installed; afterwards it is as it was, and libvirtd knows it."""
    path = shop.libvirtd.hooks / "qemu.d" / hook_install.NAME
    text, mode = path.read_text(), path.stat().st_mode
    yield path
    path.write_text(text)
    path.chmod(mode)


def started(shop: Shop, taken: Snapshot) -> str:
    """Start a clone, whose guest must be there, and return how it says that it came up."""
    clone = shop.lab.clone(taken, names=["doomed"])
    assert shop.lab.shell(clone, "cat /root/note") == "then"
    detail = shop.lab.wait(views.show_machine(shop.lab.ctx, clone.id))
    shop.lab.remove(clone)
    shop.check()
    assert json.dumps(detail.started)
    return detail.started


def test_installed_and_noticed(shop: Shop, taken: Snapshot) -> None:
    assert started(shop, taken) == "constant"


def test_missing(shop: Shop, taken: Snapshot, hook: Path) -> None:
    hook.unlink()
    assert started(shop, taken) == "full (libvirt's hook is absent: liveclone libvirt install-hook)"


def test_old(shop: Shop, taken: Snapshot, hook: Path) -> None:
    hook.write_text(hook.read_text() + "# of another version\n")
    assert started(shop, taken) == "full (libvirt's hook is old: liveclone libvirt install-hook)"


def test_failing_whatever_it_is_asked(shop: Shop, taken: Snapshot, hook: Path) -> None:
    """libvirt then starts no domain at all: there is no other way, and the error says whose fault it is."""
    hook.write_text("#!/bin/sh\necho this hook is broken >&2; exit 1\n")
    (result,) = shop.lab.results(taken, names=["doomed"])
    assert result.error is not None
    check_clear(result.error, source_state="not touched")
    assert "this hook is broken" in result.error.seen
    assert result.error.next_step == "liveclone libvirt hook-status"
    shop.check()
    assert shop.find_left() == []


def test_failing_for_an_image_that_it_cannot_link(
    shop: Shop, taken: Snapshot, hook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt's folder of RAM files is on another file system than it says, so the hook finds nowhere to link to."""
    from liveclone.drivers.libvirt import constant

    monkeypatch.setattr(constant, "memory_dir", lambda: shop.disks / "nowhere")
    told = started(shop, taken)
    assert told.startswith("full ("), told
    assert "nowhere" in told, told


def test_not_noticed(shop: Shop, taken: Snapshot, hook: Path) -> None:
    """libvirtd looked for hooks when it started, and found none then."""
    text, mode = hook.read_text(), hook.stat().st_mode
    hook.unlink()
    shop.libvirtd.restart()
    shop.connect()
    hook.write_text(text)
    hook.chmod(mode)
    try:
        assert started(shop, taken) == "full (libvirt did not run the hook: reload libvirtd)"
    finally:
        shop.libvirtd.restart()
        shop.connect()
    assert started(shop, taken) == "constant"
