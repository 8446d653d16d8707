"""stub"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DomainDisk:
    """A disk, a CD drive or a floppy drive. `path` is empty for an empty drive, and for what is no file or block device."""

    target: str
    bus: str
    device: str
    source_type: str
    path: str
    format: str
    readonly: bool
    shareable: bool


@dataclass(frozen=True)
class DomainNic:
    """A network card; `xml` is the <interface> that gives the guest the same card at the same place when attached."""

    id: str
    mac: str
    kind: str
    source: str
    model: str
    alias: str
    xml: str


@dataclass(frozen=True)
class DomainChannel:
    """A virtio-serial port with a name. `path` is the host's socket, `state` "connected" or "disconnected" if running."""

    name: str
    kind: str
    path: str
    state: str


@dataclass(frozen=True)
class DomainConsole:
    """A serial port or console: where its output goes (`kind` "pty", "file", ...; `path`), and a `log` besides."""

    kind: str
    path: str
    log: str


@dataclass(frozen=True)
class Domain:
    name: str
    uuid: str
    id: int | None
    kind: str
    genid: str
    ram_bytes: int
    vcpus: int
    arch: str
    machine_type: str
    cpu: str
    emulator: str
    firmware: str
    nvram: str
    kernel: str
    initrd: str
    cmdline: str
    disks: tuple[DomainDisk, ...]
    nics: tuple[DomainNic, ...]
    channels: tuple[DomainChannel, ...]
    consoles: tuple[DomainConsole, ...]
    has_virtio_serial: bool


def parse_domain(xml: str) -> Domain:
    raise NotImplementedError
