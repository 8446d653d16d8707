"""The labs: every contract test runs over each hypervisor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from liveclone.model.image import Image
from liveclone.model.snapshot import CaptureMethod
from tests.libvirtd import Libvirtd
from tests.machines import build_images

from .children import Children, open_children
from .lab import DebianLab, FakeLab, Lab, LibvirtLab, QemuLab, Shot, make_seed
from .stories import pytest_pyfunc_call as pytest_pyfunc_call


@pytest.fixture(scope="session")
def children() -> Iterator[Children]:
    """Return a server that carries out jobs in processes that may be killed."""
    with open_children() as server:
        yield server


@pytest.fixture(scope="session")
def light_image(needs: Callable[..., None], cache_folder: Path) -> Image:
    needs("qemu-system-x86_64", "mmdebstrap", "mke2fs", root=True)
    return build_images(cache_folder)["light"]


@pytest.fixture(scope="session")
def qemu_seed(light_image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shot]:
    """Return a machine that QEMU booted, captured, from which each test goes on."""
    with _seed(QemuLab, light_image, tmp_path_factory.mktemp("seed")) as shot:
        yield shot


@pytest.fixture(scope="session")
def libvirt_seed(
    libvirtd: Libvirtd, light_image: Image, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shot]:
    """Return the same of a libvirtd of this session's own, which runs as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIVECLONE_LIBVIRT_URI", libvirtd.uri)
        with _seed(LibvirtLab, light_image, tmp_path_factory.mktemp("seed")) as shot:
            yield shot


@contextlib.contextmanager
def _seed(kind: type[DebianLab], image: Image, home: Path) -> Iterator[Shot]:
    hot = Path(os.environ["LIVECLONE_HOT"]).with_name(f"contract-seed-{kind.name}")
    hot.mkdir()
    try:
        yield asyncio.run(make_seed(kind(home, hot, None), image))
    finally:
        shutil.rmtree(hot)


MACHINES = ("qemu", "libvirt")


@pytest.fixture(params=["fake", *(pytest.param(name, marks=pytest.mark.machine) for name in MACHINES)])
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """Return the hypervisor under test, with nothing running."""
    seed = request.getfixturevalue(f"{request.param}_seed") if request.param in MACHINES else None
    hot = Path(os.environ["LIVECLONE_HOT"]).with_name(f"contract-{secrets.token_hex(4)}")
    home = tmp_path / "lab"
    hot.mkdir()
    home.mkdir()
    kinds: dict[str, Callable[[], Lab]] = {
        "fake": lambda: FakeLab(home, hot),
        "qemu": lambda: QemuLab(home, hot, seed),
        "libvirt": lambda: LibvirtLab(home, hot, seed),
    }
    lab = kinds[request.param]()
    yield lab
    assert lab.processes() == []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a hypervisor does not offer: of the ways of capture, libvirt has one."""
    left = [item for item in items if _is_offered(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in left])
    items[:] = left


def _is_offered(item: pytest.Item) -> bool:
    chosen = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    if chosen.get("lab") != "libvirt":
        return True
    method = chosen.get("method") or CaptureMethod(str(chosen.get("point", "stream")).partition(".")[0])
    needed = {method} | {mark.args[0] for mark in item.iter_markers("needs_method")}
    wants_ports = item.get_closest_marker("needs_ports") is not None
    return needed <= set(LibvirtLab.methods) and (LibvirtLab.publishes_ports or not wants_ports)
