"""Start a clone: a save image of its own, made of the snapshot's, and given to libvirt.

    constant    header with the clone's XML | stream without pages    RAM: the memory image, by the hook
    full        header with the clone's XML | stream with all pages   where the hook is not installed, or cannot link

Both are the same domain afterwards. Its definition, from which it starts next time, has no trick in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import uuid as uuids
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import libvirt

from ... import trace
from ...errors import Conflict, HypervisorError, NotFound, StoreError
from ...formats import domain_rewrite, domain_xml, libvirt_save
from ...host import files, process
from ..base import RestorePlan
from . import constant, nics, nvram, registry, split, tickets
from .access import Access, grant_layers
from .link import Link
from .registry import DomainRef

DISK = "vda"
# What the guest's devices have in its RAM is not there then either, so that most such starts fail by themselves.
_NOT_RUN = "libvirt did not run the hook: reload libvirtd"


async def restore(
    link: Link, plan: RestorePlan, console_log: Path, access: Access
) -> tuple[DomainRef, libvirt.virDomain]:
    """Start the clone; it stands still when this returns.

    Raises:
        Conflict: there is a domain of that name. Refused: QEMU cannot come to its files. HypervisorError: libvirt refused
        it. No domain is left.
    """
    header = split.read_header(plan.device_state)
    ref = registry.make_ref(link.uri, plan.name)
    source = domain_xml.parse_domain(header.xml)
    for nic in source.nics:
        registry.keep_nic(plan.folder, nics.id_of(nic), nic.xml)
    return ref, await start(link, plan, ref, _specify(plan, source, ref, console_log), access)


async def start(
    link: Link,
    plan: RestorePlan,
    ref: DomainRef,
    spec: domain_rewrite.CloneSpec,
    access: Access,
    adapt: Callable[[str], str] = lambda xml: xml,
) -> libvirt.virDomain:
    """Start the clone as the domain `ref` with what is its own by `spec`; it stands still when this returns.

    Args:
        adapt: has the last word on both of its descriptions, that in the save image and the definition.

    Raises:
        As `restore`, and what `adapt` raises. No domain is left.
    """
    await check_name_is_free(link, plan.name)
    header = split.read_header(plan.device_state)
    image = Path(plan.memory.path)
    await asyncio.to_thread(access.grant, image, write=True)
    layers = await grant_layers(access, [Path(path) for path, _ in spec.disks.values()])
    spec = dataclasses.replace(
        spec, layers={target: layers[Path(path)] for target, (path, _) in spec.disks.items()}
    )
    if spec.nvram:
        form = domain_xml.parse_domain(header.xml).nvram_format
        await asyncio.to_thread(nvram.write, plan.device_state, Path(spec.nvram), form)
    saved = _Saved(header, spec, adapt)
    obstacle = await asyncio.to_thread(constant.find_obstacle, link.uri, image)
    async with AsyncExitStack() as failed:
        failed.push_async_callback(forget, link, ref)
        if not obstacle:
            obstacle = await _restore_constant(link, plan, saved, ref)
        if obstacle:
            ref = ref.replace(why_full=obstacle)
            registry.write(plan.folder, ref)
            await _load(link, plan, saved, whole=True)
        trace.at("clone.loaded")
        try:
            domain = await registry.find(link, ref)
            definition = adapt(domain_rewrite.render_definition(header.xml, spec, ()))
            await link.call("defining", link.connection.defineXML, definition)
        except (HypervisorError, NotFound) as error:
            if registry.find_process(ref.uuid) is None:
                raise registry.ended(plan.name, error.tried, error.seen) from error
            raise
        failed.pop_all()
    return domain


@dataclasses.dataclass(frozen=True)
class _Saved:
    """The save image of a clone, but for the stream: the snapshot's header, and how its XML becomes the clone's."""

    original: libvirt_save.SaveHeader
    spec: domain_rewrite.CloneSpec
    adapt: Callable[[str], str]

    def render(self, *, private: bool) -> bytes:
        spec = dataclasses.replace(self.spec, private_memory=private)
        xml = self.adapt(domain_rewrite.rewrite_saved(self.original.xml, spec))
        return libvirt_save.render_header(dataclasses.replace(self.original, xml=xml, data_bytes=0))


async def _restore_constant(link: Link, plan: RestorePlan, saved: _Saved, ref: DomainRef) -> str:
    """Start the clone on the memory image itself; return why that could not be, and then no domain is left."""
    registry.write(plan.folder, ref)
    with constant.ticket(ref, Path(plan.memory.path)) as outcome:
        try:
            await _load(link, plan, saved, whole=False)
        except HypervisorError as error:
            found = outcome()
            return (found.reason if found else _NOT_RUN) or error.seen
        found = outcome()
        if found is not None and found.done:
            return ""
        await forget(link, ref)  # it stands still, and its RAM is zeros
        return found.reason if found else _NOT_RUN


async def _load(link: Link, plan: RestorePlan, saved: _Saved, *, whole: bool) -> None:
    """Give libvirt a save image: the device state behind another header, or the whole stream."""
    save = Path(plan.memory.path).with_name(f"{plan.machine_id}.{secrets.token_hex(4)}.save")
    header = saved.render(private=not whole)
    try:
        await asyncio.to_thread(_write, save, header, saved.original, plan, whole)
        trace.at("clone.started")
        await link.call(
            "restoring", link.connection.restoreFlags, str(save), None, libvirt.VIR_DOMAIN_SAVE_PAUSED
        )
    finally:
        save.unlink(missing_ok=True)


async def check_name_is_free(link: Link, name: str) -> None:
    """Raise Conflict if libvirt has a domain of that name."""
    try:
        await link.call("looking for a domain of that name", link.connection.lookupByName, name)
    except NotFound:
        return
    raise Conflict(
        f"libvirt has a domain named {name} already",
        code="name-taken",
        tried="naming a domain",
        on=name,
        next_step="choose another name",
    )


async def forget(link: Link, ref: DomainRef) -> None:
    """End a domain and take its definition and its ticket away; one that is not there is no error."""
    with contextlib.suppress(StoreError):
        tickets.withdraw(tickets.FOLDER, ref.uuid)
    with contextlib.suppress(NotFound):
        domain = await registry.find(link, ref)
        with contextlib.suppress(libvirt.libvirtError):
            domain.destroy()
        flags = (
            libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        )
        with contextlib.suppress(libvirt.libvirtError):  # one that was never defined is gone with its process
            domain.undefineFlags(flags)
    left = registry.find_process(ref.uuid)
    if left is not None:  # libvirt does not know of it: it died when it had just started it
        await process.end(left)


def _specify(
    plan: RestorePlan, source: domain_xml.Domain, ref: DomainRef, console_log: Path
) -> domain_rewrite.CloneSpec:
    logs = any(console.log for console in source.consoles)
    return domain_rewrite.CloneSpec(
        name=ref.name,
        uuid=ref.uuid,
        genid=str(uuids.uuid4()) if source.genid else "",
        disks={one.target: (one.path, one.format) for one in plan.disks} or {DISK: (str(plan.disk), "qcow2")},
        console_log=str(console_log) if logs else "",
        nvram=str(plan.folder / nvram.FILE) if source.nvram else "",
    )


def _write(
    save: Path, header: bytes, original: libvirt_save.SaveHeader, plan: RestorePlan, whole: bool
) -> None:
    try:
        with plan.device_state.open("rb") as state, save.open("xb") as target:
            save.chmod(0o600)
            target.write(header)
            state.seek(original.stream_offset)
            stream = state.read()
            for piece in _join(stream, Path(plan.memory.path)) if whole else [stream]:
                target.write(piece)
    except OSError as error:
        raise files.explain(error, "writing a save image", save) from error


def _join(stream: bytes, image: Path) -> Iterator[memoryview]:
    """Return the stream with all pages of the memory image, a piece at a time."""
    from ...formats import stream_join  # numpy

    with image.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        pages = files.read_data(file.fileno(), size)
        yield from stream_join.join(stream, pages, size_bytes=size, block=split.RAM)
