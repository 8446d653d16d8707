"""An image is built anew when that is asked for, and never from under a machine; what makes the parts is replaced here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from liveclone.engine import image
from liveclone.errors import Conflict
from liveclone.images import build, library
from liveclone.images.spec import ImageSpec
from liveclone.model.base import now
from liveclone.model.image import Image
from liveclone.model.machine import Boot
from liveclone.units import GIB

from .world import IMAGE, World


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let builds take no time; return what is on the disk of each."""
    built: list[str] = []

    async def make(spec: ImageSpec, key: str, images: Any, parts: Path, *rest: Any) -> Image:
        built.append(f"build {len(built) + 1}")
        (parts / library.DISK).write_text(built[-1])
        disk = images.folder(spec.name) / library.DISK
        return Image(
            name=spec.name, created_at=now(), disk=str(disk), disk_bytes=GIB, boot=Boot(), recipe=key
        )

    monkeypatch.setattr(build, "_build", make)
    return built


async def test_the_same_recipe_is_built_once_unless_it_shall_be_fresh(
    world: World, builds: list[str]
) -> None:
    spec = ImageSpec(name="x")
    first = await image.build(world.ctx, spec)
    assert await image.build(world.ctx, spec) == first
    assert builds == ["build 1"]
    again = await image.build(world.ctx, spec, fresh=True)
    assert again.recipe == first.recipe
    assert Path(again.disk).read_text() == "build 2"
    assert world.ctx.images.load("x") == again
    other = ImageSpec(name="x", packages=("nginx",))
    with pytest.raises(Conflict):
        await image.build(world.ctx, other)
    assert (await image.build(world.ctx, other, fresh=True)).recipe != again.recipe
    assert (await image.build(world.ctx, ImageSpec(name="y"), fresh=True)).name == "y"
    await world.remove_all()


async def test_an_image_that_is_in_use_is_not_built_anew(world: World, builds: list[str]) -> None:
    before = world.ctx.images.load(IMAGE)
    await world.run("web")
    with pytest.raises(Conflict) as caught:
        await image.build(world.ctx, ImageSpec(name=IMAGE), fresh=True)
    assert (caught.value.code, caught.value.seen) == ("image-in-use", "web")
    assert builds == []
    assert world.ctx.images.load(IMAGE) == before
    await world.remove_all()


async def test_an_image_that_came_into_use_meanwhile_stays(
    world: World, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, make = world.ctx.images.load(IMAGE), build._build

    async def make_slowly(*args: Any) -> Image:
        await world.run("web")
        return await make(*args)

    monkeypatch.setattr(build, "_build", make_slowly)
    with pytest.raises(Conflict):
        await image.build(world.ctx, ImageSpec(name=IMAGE), fresh=True)
    assert builds == ["build 1"]
    assert world.ctx.images.load(IMAGE) == before
    assert not list(world.ctx.layout.images.glob(f".{IMAGE}.*/"))
    await world.check_runs("web")
    await world.remove_all()
