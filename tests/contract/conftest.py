"""The labs: every contract test runs over each hypervisor."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.machines import build_images

from .children import Children, open_children
from .lab import FakeLab, Lab, QemuLab, Shot, make_seed
from .stories import pytest_pyfunc_call as pytest_pyfunc_call


@pytest.fixture(scope="session")
def children() -> Iterator[Children]:
    """Return a server that carries out jobs in processes that may be killed."""
    with open_children() as server:
        yield server


@pytest.fixture(scope="session")
def qemu_seed(
    needs: Callable[..., None], cache_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shot]:
    """Return a machine that QEMU booted, captured, from which each test goes on."""
    needs("qemu-system-x86_64", "mmdebstrap", "mke2fs", root=True)
    image = build_images(cache_folder)["light"]
    hot = Path(os.environ["LIVECLONE_HOT"]).with_name("contract-seed")
    hot.mkdir()
    yield asyncio.run(make_seed(tmp_path_factory.mktemp("seed"), hot, image))
    shutil.rmtree(hot)


@pytest.fixture(params=["fake", pytest.param("qemu", marks=pytest.mark.machine)])
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """Return the hypervisor under test, with nothing running."""
    hot = Path(os.environ["LIVECLONE_HOT"]).with_name(f"contract-{secrets.token_hex(4)}")
    home = tmp_path / "lab"
    hot.mkdir()
    home.mkdir()
    fake = request.param == "fake"
    lab = FakeLab(home, hot) if fake else QemuLab(home, hot, request.getfixturevalue("qemu_seed"))
    yield lab
    assert lab.processes() == []
