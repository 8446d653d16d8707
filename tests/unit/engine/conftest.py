"""A world for each test of the engine."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveclone.engine import refill, seal
from tests.contract.children import Children, open_children
from tests.contract.stories import pytest_pyfunc_call as pytest_pyfunc_call

from .world import World, without_refilling, without_sealing


@pytest.fixture(scope="session")
def children() -> Iterator[Children]:
    """Return a server that carries out commands which may be killed."""
    with open_children() as server:
        yield server


@pytest.fixture
def sealing() -> None:
    """Ask for it in a test in which snapshots are sealed in the background, as they are for users."""


@pytest.fixture
def refilling() -> None:
    """Ask for it in a test in which pools are filled again in the background, as they are for users."""


@pytest.fixture
def keys() -> None:
    """Ask for it in a test whose guests need SSH host keys."""


@pytest.fixture
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    """Return an empty home with an image."""
    hot = Path(os.environ["LIVECLONE_HOT"]).with_name(f"engine-{secrets.token_hex(4)}")
    if "sealing" not in request.fixturenames:
        monkeypatch.setattr(seal, "start", seal.start)  # put back afterwards
        without_sealing()
    if "refilling" not in request.fixturenames:
        monkeypatch.setattr(refill, "start", refill.start)
        without_refilling()
    world = World(tmp_path / "home", hot, keys="keys" in request.fixturenames)
    yield world
    assert world.processes() == []
