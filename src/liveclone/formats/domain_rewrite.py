"""stub"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CloneSpec:
    """What is the clone's own.

    `disks` maps each target ("vda") to path and format; read-only ones and drives may be left out and stay the source's.
    `channels` maps names of virtio-serial ports to sockets; "" or left out: libvirt chooses. `console_log` is a file for
    the output of the first serial port. `metadata` is one element of the caller's own namespace, as XML.
    """

    name: str
    uuid: str
    disks: Mapping[str, tuple[str, str]]
    genid: str = ""
    channels: Mapping[str, str] = field(default_factory=dict)
    console_log: str = ""
    nvram: str = ""
    private_memory: bool = False
    metadata: str = ""


def rewrite_saved(xml: str, spec: CloneSpec) -> str:
    raise NotImplementedError


def render_definition(xml: str, spec: CloneSpec, nics: Sequence[str]) -> str:
    raise NotImplementedError


def nic_for_clone(nic_xml: str, mac: str) -> str:
    raise NotImplementedError


def render_snapshot(disks: Mapping[str, str], memory: str = "", others: Sequence[str] = ()) -> str:
    raise NotImplementedError
