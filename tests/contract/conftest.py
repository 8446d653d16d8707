"""The labs: every contract test runs over each hypervisor."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from .children import Children, open_children
from .lab import FakeLab, Lab
from .stories import pytest_pyfunc_call as pytest_pyfunc_call


@pytest.fixture(scope="session")
def children() -> Iterator[Children]:
    """Return a server that carries out jobs in processes that may be killed."""
    with open_children() as server:
        yield server


@pytest.fixture(params=["fake"])
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """Return the hypervisor under test, with nothing running."""
    hot = Path(os.environ["LIVECLONE_HOT"]).with_name(f"contract-{secrets.token_hex(4)}")
    hot.mkdir()
    lab = FakeLab(tmp_path / "lab", hot)
    lab.home.mkdir()
    yield lab
    assert lab.processes() == []
