"""Build an image for this home: `images` makes it and knows no machines; what stands on an image is seen to here."""

from __future__ import annotations

from ..images.build import build_image
from ..images.spec import ImageSpec
from ..model.image import Image
from . import remove
from .context import Context


async def build(ctx: Context, spec: ImageSpec, *, fresh: bool = False) -> Image:
    """Return the image that `spec` asks for; one of the same recipe is built once.

    Args:
        fresh: build it anew, from what the archive holds today; the image that has the name, if any, goes when the new
            one is complete.

    Raises:
        Conflict: the name belongs to another recipe, or (with `fresh`) something stands on the image that would go.
        And what `build_image` raises. What was there is there still.
    """
    return await build_image(
        spec,
        ctx.layout.images,
        ctx.progress,
        fresh=fresh,
        replace=fresh,
        before_replacing=lambda: remove.check_image_unused(ctx, spec.name, "building it anew"),
    )
