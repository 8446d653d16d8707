"""A machine as it stands in its manifest: what it is, where its parts are, which process runs it."""

from __future__ import annotations

import datetime
import enum

from .base import Value
from .disk import Disk
from .identity import Generation
from .network import NetworkKind, Nic, Port


class MachineState(enum.Enum):
    """What a machine is doing, as observed now (never stored)."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    STARTING = "starting"  # a process exists and has not begun to run the guest
    CRASHED = "crashed"  # the process exists and the guest cannot go on (internal error, panic)

    @property
    def has_process(self) -> bool:
        return self is not MachineState.STOPPED


class Acceleration(enum.Enum):
    KVM = "kvm"
    TCG = "tcg"


class ProcessRef(Value, frozen=True, kw_only=True):
    """A process of the host that cannot be mistaken for a later one with the same number.

    `start_ticks` is field 22 of /proc/PID/stat, `boot_id` the host's, so that a reused pid or a reboot shows.
    """

    pid: int
    start_ticks: int
    boot_id: str


class Hardware(Value, frozen=True, kw_only=True):
    """What the guest sees. A snapshot's hardware must be given to its clones to the letter."""

    ram_bytes: int
    vcpus: int = 1
    machine_type: str = ""  # as resolved by the hypervisor, e.g. pc-q35-10.0
    cpu: str = ""
    acceleration: Acceleration = Acceleration.TCG
    hypervisor: str = ""  # "qemu 10.0.2"; family decides what may be loaded
    vmgenid: bool = True  # the device by which a guest's kernel sees for itself that it is a copy


class MemorySource(enum.Enum):
    """What a machine's RAM is mapped from; decides which ways of capture there are."""

    SHARED_HOT = "shared-hot"  # its own file on tmpfs, mapped shared: handover
    PRIVATE_HOT = "private-hot"  # a snapshot's image on tmpfs, mapped private: background
    PRIVATE_DISK = "private-disk"  # a sealed image on a disk, mapped private: stream
    ANONYMOUS = "anonymous"  # the hypervisor's own affair: stream


class Memory(Value, frozen=True, kw_only=True):
    path: str  # empty for anonymous memory
    source: MemorySource


class Boot(Value, frozen=True, kw_only=True):
    """How the machine starts from cold: kernel and initrd of its image, or the disk's own loader (empty)."""

    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""


class Machine(Value, frozen=True, kw_only=True):
    """The manifest of a machine, `machines/ID/manifest.json`."""

    id: str
    name: str
    created_at: datetime.datetime
    driver: str
    hardware: Hardware
    image: str  # name of the image it was made from, for people
    boot: Boot
    disk: str  # path of the topmost layer, the only one this machine writes
    disk_bytes: int
    disks: tuple[Disk, ...] = ()  # all of them, `disk` first, where the hypervisor has names for them
    layers: tuple[str, ...] = ()  # ids of the snapshots whose frozen layers lie under `disk`, nearest first
    memory: Memory | None = None  # None while stopped
    process: ProcessRef | None = None
    port_process: ProcessRef | None = None  # forwards published ports on a bridge
    network: NetworkKind
    nics: tuple[Nic, ...] = ()
    ports: tuple[Port, ...] = ()
    generation: Generation
    clone_of: str = ""  # snapshot id
    domain: str = ""  # libvirt's UUID of it
    adopted: bool = False  # it was there before: its disks and its definition are its owner's
    quarantined: bool = False  # its evidence was not verified: never gets a NIC
    labels: dict[str, str] = {}
