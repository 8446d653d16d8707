"""Build a guest image from Debian packages.

    spec ─> recipe ─> in the library? ── yes ─> that image, at once
                          │ no
                          └─> root.tar ─> kernel, initrd │ disk.qcow2 ─> fsync ─> one rename

Nothing is half-made at any time: the parts grow in a hidden folder beside their place, which goes away with whatever fails.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import Corrupt
from ..guest import pack
from ..host import apt_sources, files
from ..model.base import now
from ..model.image import Image
from ..model.machine import Boot
from . import initramfs, kernel, library, rootfs, system
from .library import ImageLibrary
from .spec import ImageSpec

Progress = Callable[[str, float | None], None]

# Part of every recipe: raise it when this package makes another image from the same specification.
BUILDER = "1"


def silent(phase: str, fraction: float | None = None) -> None:
    """Tell nobody."""


def recipe(spec: ImageSpec) -> str:
    """Return the digest of everything that an image is made from."""
    guest = hashlib.sha256(
        repr((system.list_files(), system.SETUP, system.CMDLINE, rootfs.PACKAGES)).encode()
    )
    start = repr((initramfs.INIT, initramfs.WANTED, initramfs.OPTIONAL))
    service = pack.SERVICE.read_text()
    return spec.digest(BUILDER, pack.digest(), service, guest.hexdigest(), start)


async def build_image(
    spec: ImageSpec,
    folder: Path,
    progress: Progress = silent,
    *,
    fresh: bool = False,
    replace: bool = False,
    before_replacing: Callable[[], None] = lambda: None,
) -> Image:
    """Return the image that `spec` asks for, from the library in `folder` if it is there.

    Args:
        folder: the library's folder (`images`).
        progress: told the phase and how far the whole is, 0 to 1.
        fresh: build it even if the same recipe is there; that one goes only with `replace`.
        replace: the image of this name may go; the caller knows that nothing uses it.
        before_replacing: called before the build and again when the old image is about to go; what it raises keeps
            that one.

    Raises:
        Refused, NotFound: the specification has no meaning, or names files that are not there.
        Unsupported: this host lacks a tool or a mirror, or the suite's kernel cannot do it.
        Conflict: the name belongs to another recipe.
        StoreError: a tool failed. Nothing was added in any of these cases.
    """
    spec.check()
    images = ImageLibrary(folder)
    key = recipe(spec)
    async with images.hold(spec.name, f"building image {spec.name}"):
        found = images.find(spec.name)
        if found is not None:
            if found.recipe == key and not fresh:
                return found
            if not replace:
                raise library.taken(spec.name)
            before_replacing()
        parts, scratch = images.new_folder(spec.name), images.new_folder(spec.name)
        try:
            image = await _build(spec, key, images, parts, scratch, progress)
            if found is not None:
                before_replacing()
            images.add(image, parts, replace=replace)
        finally:
            files.remove_tree(scratch)
            files.remove_tree(parts)
        progress("done", 1.0)
        return image


async def _build(
    spec: ImageSpec, key: str, images: ImageLibrary, parts: Path, scratch: Path, progress: Progress
) -> Image:
    begin = time.monotonic()
    rootfs.check_host()
    busybox = initramfs.load_busybox()
    mirror = apt_sources.use_mirror(spec.mirror) if spec.mirror else apt_sources.find_mirror()
    archive = await rootfs.make_tar(spec, mirror, scratch, progress)
    progress("making kernel and initramfs", 0.82)
    vmlinux, initrd = take_kernel(archive, busybox, spec.kernel)
    _write(parts / library.KERNEL, vmlinux)
    _write(parts / library.INITRD, initrd)
    disk = await rootfs.make_disk(archive, spec.disk_bytes, scratch, progress)
    progress("writing to disk", 0.98)
    disk.chmod(0o444)  # a backing file is never written
    files.sync_file(disk)
    disk.rename(parts / library.DISK)
    home = images.folder(spec.name)
    return Image(
        name=spec.name,
        created_at=now(),
        disk=str(home / library.DISK),
        disk_bytes=spec.disk_bytes,
        boot=Boot(
            kernel=str(home / library.KERNEL),
            initrd=str(home / library.INITRD),
            cmdline=" ".join([*system.CMDLINE, *spec.cmdline.split()]),
        ),
        suite=spec.suite,
        packages=tuple(sorted(set(spec.packages))),
        has_agent=True,
        recipe=key,
        took_s=round(time.monotonic() - begin, 1),
    )


def take_kernel(archive: Path, busybox: bytes, package: str) -> tuple[bytes, bytes]:
    """Return kernel and initrd for the guest in `archive`.

    Raises:
        Unsupported: the kernel cannot do what a clone needs.
    """
    with tarfile.open(archive) as tar:
        members = {member.name.removeprefix("./"): member for member in tar}

        def read(path: str) -> bytes:
            file = tar.extractfile(members[path])
            assert file is not None, path
            return file.read()

        version = _newest(members)
        kernel.check_config(read(f"boot/config-{version}").decode(), package)
        folder = next(
            path.removesuffix("/modules.dep")
            for path in members
            if path.endswith(f"lib/modules/{version}/modules.dep")
        )
        order = kernel.resolve_modules(
            initramfs.WANTED,
            initramfs.OPTIONAL,
            read(f"{folder}/modules.dep").decode(),
            read(f"{folder}/modules.builtin").decode(),
        )
        modules = [
            (
                re.sub(r"\.ko.*", ".ko", path.rpartition("/")[2]),
                kernel.unpack_module(path, read(f"{folder}/{path}")),
            )
            for path in order
        ]
        bzimage = read(f"boot/vmlinuz-{version}")
    return kernel.find_vmlinux(bzimage) or bzimage, initramfs.render_initrd(busybox, modules)


def _newest(paths: Iterable[str]) -> str:
    versions = [path.removeprefix("boot/vmlinuz-") for path in paths if path.startswith("boot/vmlinuz-")]
    if not versions:
        raise Corrupt("the guest has no kernel", code="no-kernel", tried="looking for boot/vmlinuz-*")
    return max(
        versions, key=lambda text: [int(part) if part.isdigit() else 0 for part in re.split(r"[.+-]", text)]
    )


def _write(path: Path, data: bytes) -> None:
    files.write_atomic(path, data, mode=0o444)
