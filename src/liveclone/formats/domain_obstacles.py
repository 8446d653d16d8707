"""What of a libvirt domain cannot be cloned, said before anything is touched.

A clone's memory believes in every device that the source had. So each must be there again, in the same state, and must not
be the very same thing. What QEMU itself cannot save is named too, since its refusal would come in the middle of a snapshot.
Here is what stands outside of <devices>; the devices are in `domain_devices`.

Anything not known is an obstacle: libvirt grows, and what nobody thought about is not cloned by chance. docs/libvirt.md has
the table of all elements with what becomes of each. Sources: libvirt's formatdomain documentation and schema (11.3),
QEMU 10.0 (`unmigratable` in VMStateDescription, migration blockers).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from . import domain_xml
from .domain_devices import find_device_obstacles
from .domain_verdict import TAKE_OUT
from .domain_verdict import Obstacle as Obstacle
from .plain_xml import attribute_of, namespace_of, text_of

_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_MACHINE = re.compile(r"(pc|q35|pc-(i440fx|q35)-.+)")
_SOUND = frozenset(
    [
        *("name", "uuid", "hwuuid", "genid", "title", "description", "metadata"),
        *("memory", "currentMemory", "maxMemory", "memoryBacking", "memtune", "numatune"),
        *(
            "vcpu",
            "vcpus",
            "iothreads",
            "iothreadids",
            "defaultiothread",
            "cputune",
            "cpu",
            "features",
            "perf",
        ),
        *("blkiotune", "throttlegroups", "resource", "seclabel", "sysinfo", "os", "clock", "pm", "devices"),
        *("on_poweroff", "on_reboot", "on_crash", "on_lockfailure"),
    ]
)
_OS_SOUND = frozenset(
    [
        "type",
        "firmware",
        "loader",
        "nvram",
        "kernel",
        "initrd",
        "cmdline",
        "boot",
        "bootmenu",
        "bios",
        "smbios",
        "acpi",
    ]
)
_QEMU_SOUND = ("capabilities", "deprecation", "override")  # they change how QEMU is asked, and the front ends


def find_obstacles(xml: str) -> tuple[Obstacle, ...]:
    """Return all that keeps the domain from being cloned; empty: it can be.

    Give the live description: only there libvirt says what a network card amounts to, what lies below a disk, and whether
    one is being copied.

    Raises:
        Corrupt: `xml` is no domain's description ("bad-domain-xml").
    """
    root = domain_xml.load(xml)
    checks = (_check_machine, _check_memory, _check_firmware, _check_rest, find_device_obstacles)
    return tuple(obstacle for check in checks for obstacle in check(root))


def _check_machine(root: Element) -> Iterator[Obstacle]:
    kind, arch = root.get("type", ""), attribute_of(root, "os/type", "arch")
    machine = attribute_of(root, "os/type", "machine")
    if kind not in ("kvm", "qemu"):
        yield Obstacle(f"domain type {kind}", "only QEMU's machines can be cloned", "use type kvm or qemu")
    elif text_of(root, "os/type") != "hvm" or arch not in ("x86_64", "i686"):
        yield Obstacle(f"architecture {arch}", "only x86 guests can be cloned", "use an x86_64 guest")
    elif machine and not _MACHINE.fullmatch(machine):
        yield Obstacle(f"machine type {machine}", "only i440fx and q35 are known", "use machine='q35'")


def _check_memory(root: Element) -> Iterator[Obstacle]:
    if root.find("cpu/numa/cell") is not None:
        why = "with NUMA cells the guest's memory is not one block (pc.ram)"
        yield Obstacle("cpu/numa", why, "take <numa> out of <cpu> with virsh edit")
    if root.find("memoryBacking/hugepages") is not None:
        why = "an image of huge pages cannot be mapped copy-on-write page by page"
        yield Obstacle(
            "memoryBacking/hugepages", why, "nothing, if full clones will do", full_is_possible=True
        )
    if root.find("memoryBacking/locked") is not None:
        why = "locked memory is read in whole, so nothing would be shared"
        yield Obstacle("memoryBacking/locked", why, "nothing, if full clones will do", full_is_possible=True)


def _check_firmware(root: Element) -> Iterator[Obstacle]:
    for child in root.iterfind("os/*"):
        if child.tag not in _OS_SOUND:
            yield Obstacle(f"os/{child.tag}", "liveclone does not know it", TAKE_OUT)
    if (
        attribute_of(root, "os/loader", "type") == "pflash"
        and attribute_of(root, "os/loader", "readonly") == "no"
    ):
        why = "the guest can write its firmware's file, which all clones would share"
        yield Obstacle("os/loader", why, "use a read-only loader with <nvram>")
    nvram = root.find("os/nvram")
    if nvram is not None:
        yield from _check_nvram(root, nvram)


def _check_nvram(root: Element, nvram: Element) -> Iterator[Obstacle]:
    kind, form = nvram.get("type", "file"), nvram.get("format", "raw")
    if kind != "file":
        why = f"the firmware's variables are in no file, but of type {kind!r}"
        yield Obstacle("os/nvram", why, "use a file for <nvram>")
    if form not in ("raw", "qcow2"):
        yield Obstacle("os/nvram", f"its format is {form!r}; only raw and qcow2 are known", TAKE_OUT)
    for inside in (*nvram, *nvram.iterfind("source/*")):
        if inside.tag not in ("source", "seclabel"):
            yield Obstacle(f"os/nvram/{inside.tag}", "liveclone does not know it", TAKE_OUT)
    if not domain_xml.is_efi(root):
        why = (
            "variables without a flash device (<loader type='pflash'>) are not in the memory that is captured"
        )
        yield Obstacle("os/nvram", why, "use a loader of type pflash, or take <nvram> out")


def _check_rest(root: Element) -> Iterator[Obstacle]:
    for child in root:
        prefix, _, name = child.tag.rpartition(":")
        if prefix and namespace_of(child, root) == _QEMU:
            if name == "commandline" and len(child):
                why = "its arguments can be anything, such as devices and files that clones would share"
                yield Obstacle("qemu:commandline", why, "say the same in libvirt's own elements, if they can")
            elif name != "commandline" and name not in _QEMU_SOUND:
                yield Obstacle(child.tag, "liveclone does not know it", TAKE_OUT)
        elif child.tag == "launchSecurity":
            why = "the processor encrypts the guest's memory for this one machine"
            yield Obstacle(f"launchSecurity {child.get('type', '')}".strip(), why, "use a machine without it")
        elif child.tag not in _SOUND:
            yield Obstacle(child.tag, "liveclone does not know it", TAKE_OUT)
