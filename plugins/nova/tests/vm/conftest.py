"""Small real guests under Nova's own libvirt driver, and a libvirtd of the run's own (tests/libvirtd.py of liveclone).

All of it ends with the last test of this folder: others of the same process have a Nova that nobody has changed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .cloud import Cloud

ROOT = Path(__file__).resolve().parents[4]


def _load_libvirtd() -> Any:
    """Return liveclone's tests/libvirtd.py: its package has the name that this one has here."""
    spec = importlib.util.spec_from_file_location("liveclone_tests_libvirtd", ROOT / "tests" / "libvirtd.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def guest_image() -> Any:
    """Return liveclone's test image, of which the guests have the kernel and its modules; built once, then cached."""
    from liveclone.images.build import build_image
    from liveclone.images.spec import ImageSpec

    cache = Path(os.environ.get("LIVECLONE_DEV_CACHE") or ROOT / ".dev" / "cache")
    return asyncio.run(build_image(ImageSpec(name="nova-test"), cache / "images", replace=True))


@pytest.fixture(scope="package")
def run_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="liveclone-nova-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="package")
def libvirtd(run_folder: Path) -> Iterator[Any]:
    from liveclone.drivers.libvirt import hook_install

    hooks = run_folder / "libvirt" / "etc" / "hooks"
    hooks.mkdir(parents=True)
    hook_install.install(hooks, images=[run_folder / "instances" / "liveclone" / "states"])
    cache = Path(os.environ.get("LIVECLONE_DEV_CACHE") or ROOT / ".dev" / "cache")
    with _load_libvirtd().Libvirtd(run_folder / "libvirt", cache=cache / "libvirt") as daemon:
        yield daemon


@pytest.fixture(scope="package")
def cloud(run_folder: Path, guest_image: Any, request: pytest.FixtureRequest) -> Iterator[Cloud]:
    missing = [
        tool for tool in ("libvirtd", "qemu-system-x86_64", "qemu-img", "nsenter") if not shutil.which(tool)
    ]
    missing += ["root"] if os.geteuid() else []
    if missing:
        pytest.skip(f"missing here: {', '.join(missing)}")
    daemon = request.getfixturevalue("libvirtd")
    from nova import objects
    from nova.virt import images

    from .cloud import Cloud, take_the_place_of_nova
    from .guest import make_initrd

    patch = pytest.MonkeyPatch()
    take_the_place_of_nova(patch)
    made = Cloud(run_folder, daemon.uri, daemon.pid)
    initrd = make_initrd(Path(guest_image.boot.initrd), run_folder / "initrd")
    made.image = made.add_image(made.make_disk(), Path(guest_image.boot.kernel), initrd)
    patch.setattr(objects.Instance, "get_by_uuid", made.load)
    patch.setattr(images, "IMAGE_API", made.images)
    yield made
    made.close()
    patch.undo()


@pytest.fixture(scope="package")
def source(cloud: Cloud) -> Any:
    """A server that has booted, with a token in its memory and another one on its disk."""
    from .guest import WRITE

    source = cloud.spawn()
    cloud.guest(source).run(f"A=token; {WRITE.format('written')}")
    return source
