"""The description of a clone in Nova: the machine of the captured guest, under the identity that Nova gives to a new server.

liveclone takes out of the saved description what was its source's (formats/domain_rewrite.py). Nova has written a whole
description for the new server too; it knows nothing of PCI addresses, of which the guest's memory is full, so of it is taken

    by `plan`       name, uuid, files of the disks, console log, sockets of channels
    by `adapt`      metadata, sysinfo, kernel, initrd and command line, pinning and shares, where the screen listens

and nothing else. Cards come later, by Nova's own methods. Where the two do not describe the same machine, the server is not
started: what Nova would add, the guest in memory has never seen.
"""

from __future__ import annotations

import copy
import uuid as uuids
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from liveclone.errors import Refused
from liveclone.formats import domain_xml, plain_xml
from liveclone.formats.domain_rewrite import CloneSpec
from liveclone.formats.domain_xml import Domain

# Of <domain>; and behind what they may stand, in libvirt's own order.
_NOVAS = ("metadata", "sysinfo", "cputune", "numatune")
_BOOT = ("kernel", "initrd", "cmdline")


def plan(saved: str, novas: str) -> CloneSpec:
    """Return what is the clone's own.

    Args:
        saved: the description in the captured device state. novas: that which Nova wrote for the new server.

    Raises:
        Refused: they describe two machines that differ (code "other-machine"); all differences are named.
    """
    old, new = domain_xml.parse_domain(saved), domain_xml.parse_domain(novas)
    if differences := [*_find_differences(old, new), *_find_screens(saved, novas)]:
        raise Refused(
            "the server is another machine than the captured one: " + ", ".join(differences),
            code="other-machine",
            tried="describing a server for the memory that it starts with",
            on=new.name,
            seen="; ".join(differences),
            next_step="choose flavor and options as those of the captured server",
        )
    known = {channel.name for channel in old.channels}
    logs = [console.log for console in new.consoles if console.log]
    return CloneSpec(
        name=new.name,
        uuid=new.uuid,
        disks={disk.target: (disk.path, disk.format) for disk in new.disks if disk.needs_own},
        channels={channel.name: channel.path for channel in new.channels if channel.name in known},
        console_log=logs[0] if logs else "",
        genid=str(uuids.uuid4()) if old.has_genid else "",
    )


def adapt(rewritten: str, novas: str) -> str:
    """Return a description that liveclone has made for a clone, with what is Nova's in it."""
    root, new = domain_xml.load(rewritten), domain_xml.load(novas)
    for tag in _NOVAS:
        _replace(root, new, tag)
    _set_vcpu(root, new)
    for tag in _BOOT:
        _replace(_need(root, "os"), _need(new, "os"), tag)
    devices = _need(root, "devices")
    screens = iter(_need(new, "devices").findall("graphics"))
    for place, device in enumerate(devices):
        if device.tag == "graphics":
            devices[place] = copy.deepcopy(next(screens))
    return plain_xml.render(root)


def _find_differences(old: Domain, new: Domain) -> Iterator[str]:
    for what, was, is_ in (
        ("bytes of memory", old.ram_bytes, new.ram_bytes),
        ("processors", old.vcpus, new.vcpus),
        ("virtualization", old.kind, new.kind),
        ("architecture", old.arch, new.arch),
        ("firmware", old.firmware, new.firmware),
        ("kernel of its own", bool(old.kernel), bool(new.kernel)),
    ):
        if was != is_:
            yield f"{what}: {was}, now {is_}"
    disks = [{(disk.target, disk.bus, disk.device) for disk in domain.disks} for domain in (old, new)]
    for target, bus, device in sorted(disks[0] ^ disks[1]):
        yield f"{device} {target} on {bus}: " + ("new" if (target, bus, device) in disks[1] else "missing")
    for disk in new.disks:
        if disk.source_type != "file" or not Path(disk.path).is_absolute():
            yield f"disk {disk.target}: it is no file"


def _find_screens(saved: str, novas: str) -> Iterator[str]:
    was, is_ = (
        [screen.get("type", "") for screen in domain_xml.load(xml).iterfind("devices/graphics")]
        for xml in (saved, novas)
    )
    if was != is_:
        yield f"screens: {', '.join(was) or 'none'}, now {', '.join(is_) or 'none'}"


def _replace(parent: Element, new: Element, tag: str) -> None:
    """Give `parent` the child of `new`, in the place of its own; none if `new` has none."""
    old, wanted = parent.find(tag), new.find(tag)
    place = len(parent) if old is None else list(parent).index(old)
    plain_xml.remove_all(parent, tag)
    if wanted is not None:
        parent.insert(place, copy.deepcopy(wanted))


def _set_vcpu(root: Element, new: Element) -> None:
    """Pin the clone's processors where Nova wants them on this host; how many there are is the guest's."""
    own, wanted = _need(root, "vcpu"), _need(new, "vcpu")
    for name in ("cpuset", "placement"):
        own.attrib.pop(name, None)
        if name in wanted.attrib:
            own.set(name, wanted.attrib[name])


def _need(parent: Element, tag: str) -> Element:
    found = parent.find(tag)
    if found is None:
        raise plain_xml.bad_domain(f"it has no <{tag}>")
    return found
