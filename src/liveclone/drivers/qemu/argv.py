"""The QEMU command line of a machine.

Nothing is left to QEMU's defaults: `-nodefaults`, every device named, so that the devices of a snapshot and
of its clones are the same by construction. NICs are absent here: they are plugged at run time, into root
ports that always exist (q35 with ACPI hotplug: visible in the guest in 65-80 ms; native PCIe hotplug needs 6 s to unplug).

    pcie.0 ── 02 virtio-blk (disk0)   03 virtio-serial (agent, exec)   04 virtio-rng
           └─ 10 root port nic0       11 root port nic1
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...model.machine import Acceleration, Boot, Hardware
from ...model.network import Nic, Port

BINARY = "qemu-system-x86_64"
RAM = "pc.ram"  # the name that libvirt uses too, so that a memory image means the same everywhere
DISK = "disk0"
NIC_SLOTS = 2
SOCKETS = ("qmp", "agent", "exec", "console")

# Seccomp: all that QEMU offers to forbid. QEMU runs nothing, changes no user and no scheduling here.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

# In this order in the device state; a snapshot records it and a clone must have the same.
DEVICES = (
    "pcie-root-port,id=port0,bus=pcie.0,addr=0x10,chassis=1,slot=1",
    "pcie-root-port,id=port1,bus=pcie.0,addr=0x11,chassis=2,slot=2",
    f"virtio-blk-pci,id=vda,bus=pcie.0,addr=0x2,drive={DISK},serial=liveclone-disk",
    "virtio-serial-pci,id=serial0,bus=pcie.0,addr=0x3,max_ports=4",
    "virtserialport,bus=serial0.0,nr=1,chardev=agent,id=agentport,name=org.liveclone.agent.0",
    "virtserialport,bus=serial0.0,nr=2,chardev=exec,id=execport,name=org.liveclone.exec.0",
    "virtio-rng-pci,id=rng0,bus=pcie.0,addr=0x4,rng=entropy",
    "vmgenid,guid=auto,id=generation",
)


def devices_of(hardware: Hardware) -> tuple[str, ...]:
    """Return the devices of a machine; only VMGENID may be missing."""
    return tuple(device for device in DEVICES if hardware.vmgenid or not device.startswith("vmgenid,"))


def disk_node(chain: Sequence[tuple[Path, str]], name: str = DISK) -> dict[str, Any]:
    """Return the blockdev of a disk: its layers with their formats, the top one first.

    QEMU drops a file's page cache when it takes a disk over that another process may have written: the whole image's, for
    each clone anew, and in a handover's pause (20 ms for a small Debian). Here both are on one host and see one cache.
    What is below the last layer of `chain`, QEMU finds in that one's header.
    """
    (path, layer_format), *below = chain
    node: dict[str, Any] = {
        "driver": layer_format,
        "file": {"driver": "file", "filename": str(path), "discard": "unmap", "drop-cache": False},
    }
    if below:
        node["backing"] = disk_node(below, "")
    # Zeros that the guest writes over free blocks (guest/clean.py) take no room.
    return {"node-name": name, "discard": "unmap", "detect-zeroes": "unmap", **node} if name else node


def render_argv(
    *,
    name: str,
    hardware: Hardware,
    boot: Boot,
    disk: Sequence[tuple[Path, str]],
    ram: Path,
    ram_shared: bool,
    read_only_ram: bool,
    incoming: bool,
    socket_fds: dict[str, int],
    console_log: Path,
) -> list[str]:
    """Return the whole command line.

    Args:
        disk: its layers, see `disk_node`.
        ram_shared: True for a machine whose RAM is its own file; False maps a memory image copy-on-write.
        read_only_ram: open the image read-only too (QEMU 8.2), so that this process cannot write it at all.
        incoming: wait for device state and stand still afterwards, instead of booting.
        socket_fds: listening sockets, inherited, by name (see SOCKETS).
    """
    kvm = hardware.acceleration is Acceleration.KVM
    memory = f"memory-backend-file,id={RAM},size={hardware.ram_bytes}B,mem-path={_escape(ram)}"
    memory += ",share=on" if ram_shared else ",share=off"
    if read_only_ram and not ram_shared:
        memory += ",readonly=on,rom=off"
    argv = [
        BINARY,
        *("-name", f"guest={_escape(name)},debug-threads=on"),
        *("-nodefaults", "-no-user-config"),
        *("-display", "none"),
        *("-sandbox", SANDBOX),
        *("-machine", f"{hardware.machine_type},memory-backend={RAM},usb=off,vmport=off,dump-guest-core=off"),
        *("-accel", "kvm" if kvm else "tcg,thread=multi"),
        *("-cpu", hardware.cpu),
        *("-m", f"{hardware.ram_bytes}B"),
        *("-smp", str(hardware.vcpus)),
        *("-object", memory),
        *("-object", "rng-random,id=entropy,filename=/dev/urandom"),
        *("-rtc", "base=utc,clock=host"),
    ]
    for socket_name in SOCKETS:
        extra = f",logfile={_escape(console_log)},logappend=on" if socket_name == "console" else ""
        argv += [
            "-chardev",
            f"socket,id={socket_name},fd={socket_fds[socket_name]},server=on,wait=off{extra}",
        ]
    argv += ["-mon", "chardev=qmp,mode=control", "-serial", "chardev:console"]
    if boot.kernel:
        argv += ["-kernel", boot.kernel, "-append", boot.cmdline]
        if boot.initrd:
            argv += ["-initrd", boot.initrd]
    argv += ["-blockdev", json.dumps(disk_node(disk))]
    for device in devices_of(hardware):
        argv += ["-device", device]
    if incoming:
        argv += ["-incoming", "defer", "-S"]
    return argv


def render_netdev(nic: Nic, ports: tuple[Port, ...], tap_name: str | None) -> dict[str, Any]:
    """Return the arguments of `netdev_add`: a tap that was handed over, or QEMU's user network."""
    if tap_name is not None:
        return {"type": "tap", "id": f"net-{nic.id}", "fd": tap_name, "vhost": False}
    forwards = [f"tcp:{p.host_ip}:{p.host_port}-{nic.ip}:{p.guest_port}" for p in ports]
    prefix = nic.address.partition("/")[2]
    return {
        "type": "user",
        "id": f"net-{nic.id}",
        "ipv6": False,
        "net": f"{nic.gateway}/{prefix}",
        "host": nic.gateway,
        "dns": nic.dns,
        "hostfwd": [{"str": forward} for forward in forwards],
    }


def render_nic(nic: Nic, slot: int) -> dict[str, Any]:
    """Return the arguments of `device_add`. No option ROM: nothing boots from a network here."""
    return {
        "driver": "virtio-net-pci",
        "id": nic.id,
        "bus": f"port{slot}",
        "netdev": f"net-{nic.id}",
        "mac": nic.mac,
        "romfile": "",
    }


def _escape(value: object) -> str:
    """Double commas, as QEMU's option parser wants them."""
    return str(value).replace(",", ",,")
