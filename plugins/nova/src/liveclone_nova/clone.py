"""A server from a live snapshot's image: restored into the instant of the snapshot, instead of booted.

    spawn ── open_clone: may it be? is the state this cloud's own, of this very image, and for this host? fetch it
               └─ Nova: disk from the image, description, host's side of the cards
                    └─ _create_guest ── Clone.start: restore, no card ── run ── identity, verified ── cards

Only in the first build of a server. Rebuilt, evacuated, unshelved it boots from its disk as any other: the memory would
not go with what has been written since. What does not fit is ImageUnacceptable, with which Nova aborts the build and tries
no other host; never is a server booted that should have been restored.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid as uuids
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nova import context as nova_context
from nova import exception, objects
from nova.compute import vm_states
from nova.virt.libvirt import driver as nova_libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging

from liveclone.drivers.base import RestorePlan
from liveclone.drivers.libvirt import access, restore, split
from liveclone.drivers.libvirt.link import Link, open_link
from liveclone.drivers.libvirt.registry import DomainRef
from liveclone.errors import LivecloneError, StoreError
from liveclone.formats.domain_rewrite import CloneSpec
from liveclone.model.machine import Boot, Hardware, Memory, MemorySource
from liveclone_nova import (
    capture,
    clone_xml,
    conf,
    domains,
    fitting,
    identity,
    parameters,
    properties,
    states,
    traits,
)
from liveclone_nova.seal import Description
from liveclone_nova.states import State
from liveclone_nova.vifs import Vifs

LOG = logging.getLogger(__name__)

_TIE = f"image_{properties.STATE}"  # in a server's system metadata


def is_clone(instance: objects.Instance) -> bool:
    """Tell whether a server that is being spawned is to be restored: its image says so, and it has never run."""
    is_new = instance.vm_state == vm_states.BUILDING and instance.launched_at is None
    return is_new and bool(instance.system_metadata.get(_TIE))


@contextlib.contextmanager
def open_clone(
    driver: nova_libvirt_driver.LibvirtDriver,
    context: nova_context.RequestContext,
    instance: objects.Instance,
    network_info: Any,
) -> Iterator[Clone]:
    """Check whether the server can be restored here, and fetch what it takes; it is kept here in the block.

    Raises:
        ImageUnacceptable: it cannot be. ComputeResourcesUnavailable: there is no room here. Nothing was done.
    """
    with ExitStack() as held:
        with _explained(instance):
            if reasons := capture.find_host_obstacles():
                raise _unacceptable(instance, reasons)
            wanted = _wanted(driver, context, instance)
            host = domains.host_of(driver)

            def check(description: Description) -> None:
                problems = fitting.find_problems(description, wanted, host)
                if problems := [*identity.find_problems(description), *problems]:
                    raise _unacceptable(instance, problems)
                parameters.parameters_of(instance)  # refuses some

            state = held.enter_context(states.use(driver._image_api, context, wanted.state_image, check))
        yield Clone(driver, context, instance, network_info, state)


def _wanted(
    driver: nova_libvirt_driver.LibvirtDriver,
    context: nova_context.RequestContext,
    instance: objects.Instance,
) -> fitting.Wanted:
    state_image = str(instance.system_metadata[_TIE])
    if not instance.image_ref:
        raise _unacceptable(instance, ["it boots from a volume, and its image was a live snapshot"])
    try:
        uuids.UUID(state_image)
    except ValueError:
        raise _unacceptable(instance, [f"{properties.STATE} is no image's id"]) from None
    return fitting.Wanted(
        image_id=instance.image_ref,
        state_image=state_image,
        image=driver._image_api.get(context, instance.image_ref),
        memory_mb=instance.flavor.memory_mb,
        vcpus=instance.flavor.vcpus,
        root_gb=instance.flavor.root_gb,
    )


@dataclass(frozen=True)
class Clone:
    """A server for which all is ready but its disk and its description, which Nova makes."""

    driver: nova_libvirt_driver.LibvirtDriver
    context: nova_context.RequestContext
    instance: objects.Instance
    network_info: Any
    state: State

    def start(self, xml: str, *, pause: bool) -> libvirt_guest.Guest:
        """Restore the server, give it its identity, then its cards.

        Args:
            xml: Nova's description of it.
            pause: leave it standing still with its cards; else it runs.

        Raises:
            ImageUnacceptable: it cannot be restored, or is not verified. Or what Nova raises. No domain is left.
        """
        with ExitStack() as failed:
            cards = Vifs(self.driver, self.context, self.instance)
            with _explained(self.instance):
                spec = clone_xml.plan(split.read_header(self.state.device_state).xml, xml)
                self.driver.cpu_api.power_up_for_instance(self.instance)
                asyncio.run(self._with_link(lambda link: self._restore(link, spec, xml)))
                failed.callback(lambda: asyncio.run(self._with_link(self._end)))
                is_verified = self._settle(cards)
            guest = self.driver._host.get_guest(self.instance)
            if is_verified and pause:
                guest.pause()
            elif not is_verified:
                for vif in self.network_info or ():
                    cards.attach(vif)
                if not pause:
                    guest.resume()
            failed.pop_all()
        traits.forget(self.instance.system_metadata)
        return guest

    def _settle(self, cards: Vifs) -> bool:
        """Let it run and become a machine of its own, with its cards; False, and nothing is done, if it cannot."""
        found = self.state.description.identity
        if found is None:
            identity.mark_unverified(self.context, self.instance, self.state.description)
            return False
        settling = identity.Settling(
            driver=self.driver,
            context=self.context,
            instance=self.instance,
            identity=found,
            folder=self._folder(),
            state=self.state.folder,
            network_info=self.network_info,
            attach=cards.attach,
        )
        asyncio.run(settling.carry_out())
        return True

    async def _with_link(self, work: Callable[[Link], Awaitable[None]]) -> None:
        link = await open_link(self.driver._host._uri, self.instance.name)
        try:
            await work(link)
        finally:
            await link.close()

    async def _restore(self, link: Link, spec: CloneSpec, xml: str) -> None:
        plan = RestorePlan(
            machine_id=self.instance.uuid,
            name=spec.name,
            folder=self._folder(),  # `domain.json` in it says whether the memory is shared, and why not
            hardware=Hardware(ram_bytes=self.state.description.ram_bytes),
            boot=Boot(),
            disk=Path(next(iter(spec.disks.values()))[0]),
            memory=Memory(path=str(self.state.memory), source=MemorySource.PRIVATE_DISK),
            device_state=self.state.device_state,
            ignore_shared=False,
        )
        allowed = await access.find(link, [conf.folder("states")])
        await restore.start(link, plan, self._ref(), spec, allowed, lambda text: clone_xml.adapt(text, xml))

    async def _end(self, link: Link) -> None:
        await restore.forget(link, self._ref())

    def _folder(self) -> Path:
        return Path(libvirt_utils.get_instance_path(self.instance))

    def _ref(self) -> DomainRef:
        return DomainRef(uri=self.driver._host._uri, uuid=self.instance.uuid, name=self.instance.name)


@contextlib.contextmanager
def _explained(instance: objects.Instance) -> Iterator[None]:
    """Raise what ends the build: on all hosts, or, where this one lacks the room, on this host alone."""
    try:
        yield
    except LivecloneError as error:
        LOG.error("The server cannot be restored: %s", error.fields(), instance=instance)
        if isinstance(error, StoreError):
            raise exception.ComputeResourcesUnavailable(reason=error.message) from error
        raise _unacceptable(instance, [error.message]) from error
    except (exception.ImageNotFound, exception.ImageNotAuthorized) as error:
        raise _unacceptable(
            instance, [f"its state is not there, or not for this project: {error}"]
        ) from error


def _unacceptable(instance: objects.Instance, reasons: Sequence[str]) -> exception.ImageUnacceptable:
    return exception.ImageUnacceptable(image_id=instance.image_ref or "", reason="; ".join(reasons))
