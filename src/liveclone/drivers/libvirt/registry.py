"""Which domain of which libvirt a machine is: a small file in the machine's folder, and how it is found again.

machines/ID/domain.json     written before the domain exists, so whatever a death leaves can be found
machines/ID/nics/nic0.xml   how a NIC was that is unplugged just now, or that a clone is to get
"""

from __future__ import annotations

import contextlib
import uuid as uuids
from pathlib import Path

import libvirt
import msgspec

from ...errors import Interrupted, NotFound
from ...host import files, process
from ...ids import check_name
from ...model.base import Value
from ...model.machine import MachineState, ProcessRef
from .link import Link

FILE = "domain.json"
NICS = "nics"
GONE, MOVED = "no-domain", "migrated"  # codes of errors


class DomainRef(Value, frozen=True, kw_only=True):
    """A domain. `adopted`: it was there before us, so its definition and its disks are not ours to take away.

    `why_full`: why a clone was not started on the memory image itself; empty for one that was.
    """

    uri: str
    uuid: str
    name: str
    adopted: bool = False
    why_full: str = ""


def make_ref(uri: str, name: str) -> DomainRef:
    return DomainRef(uri=uri, uuid=str(uuids.uuid4()), name=name)


def write(folder: Path, ref: DomainRef) -> None:
    files.write_atomic(folder / FILE, msgspec.json.encode(ref))


def read(folder: Path) -> DomainRef | None:
    """Return the machine's domain, None for one that never came so far."""
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=DomainRef)
    except FileNotFoundError:
        return None


def keep_nic(folder: Path, nic_id: str, xml: str) -> None:
    """Remember how a NIC is, so that it can be plugged again the same."""
    (folder / NICS).mkdir(mode=0o700, exist_ok=True)
    files.write_atomic(folder / NICS / f"{check_name(nic_id, 'NIC')}.xml", xml.encode())


def read_nic(folder: Path, nic_id: str) -> str:
    """Return how the NIC was; empty for one that libvirt never had."""
    try:
        return (folder / NICS / f"{check_name(nic_id, 'NIC')}.xml").read_text()
    except FileNotFoundError:
        return ""


def not_running(name: str, tried: str, seen: str) -> NotFound:
    return NotFound(
        f"{name} does not run",
        code="not-running",
        tried=tried,
        on=name,
        seen=seen,
        next_step=f"liveclone start {name}",
    )


def ended(name: str, tried: str, seen: str) -> Interrupted:
    return Interrupted(
        f"{name} has ended",
        code="hypervisor-gone",
        tried=tried,
        on=name,
        seen=seen,
        next_step=f"liveclone start {name}",
    )


async def find(link: Link, ref: DomainRef) -> libvirt.virDomain:
    """Return the domain, running or not.

    Raises:
        NotFound: libvirt does not have it (code "no-domain").
    """
    try:
        return await link.call("finding the domain", link.connection.lookupByUUIDString, ref.uuid)
    except NotFound as error:
        raise _away(ref, GONE, f"{ref.name} is not on this host any more", error.seen) from error


async def check_here(link: Link, ref: DomainRef, domain: libvirt.virDomain) -> None:
    """See that a domain that does not run here has not gone to another host, where it may run.

    Raises:
        NotFound: it has, and nothing of it may be touched (code "migrated"). libvirt forgets that when it starts anew.
    """
    state = await link.call("asking for its state", domain.state)
    if tuple(state) == (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED):
        raise _away(ref, MOVED, f"{ref.name} was migrated to another host", "libvirt: shut off (migrated)")


def _away(ref: DomainRef, code: str, message: str, seen: str) -> NotFound:
    there = f"if it runs on another host: liveclone adopt {ref.name} there"
    forget = f"liveclone remove {ref.name} forgets it here, and touches nothing of it"
    back = "virsh migrate brings it back"
    return NotFound(
        message,
        code=code,
        tried="finding the domain",
        on=ref.name,
        seen=seen,
        source_state="not here, not touched",
        next_step=f"{there}; {forget}; {back}" if ref.adopted else f"{back}; its disk is in its folder here",
    )


async def find_running(link: Link, ref: DomainRef) -> tuple[libvirt.virDomain, ProcessRef]:
    """Return the domain and its QEMU.

    Raises:
        NotFound: it does not run (code "not-running"), or is not here (as `find` and `check_here`).
    """
    domain = await find(link, ref)
    found = find_process(ref.uuid) if await link.call("looking at the domain", domain.isActive) else None
    if found is None:
        await check_here(link, ref, domain)
        raise not_running(ref.name, "finding its QEMU", "the domain is shut off")
    return domain, found


def find_process(uuid: str) -> ProcessRef | None:
    """Return the QEMU that runs a domain: libvirt starts each with the domain's UUID on its command line."""
    for pid, line in process.find(f"-uuid {uuid}"):
        with contextlib.suppress(NotFound):
            if "qemu" in line.partition(" ")[0]:
                return process.ref(pid)
    return None


# virDomainState in our words.
STATES = {
    libvirt.VIR_DOMAIN_RUNNING: MachineState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: MachineState.RUNNING,
    libvirt.VIR_DOMAIN_PMSUSPENDED: MachineState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: MachineState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: MachineState.RUNNING,
    libvirt.VIR_DOMAIN_SHUTOFF: MachineState.STOPPED,
    libvirt.VIR_DOMAIN_CRASHED: MachineState.CRASHED,
    libvirt.VIR_DOMAIN_NOSTATE: MachineState.STARTING,
}
