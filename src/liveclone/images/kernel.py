"""The guest's kernel, taken out of its package: what it can do, which modules it needs, and itself unpacked.

    bzImage = set-up code + stub | payload: compressed vmlinux (ELF)
    vmlinux, if built with CONFIG_PVH, is started by QEMU directly

The unpacked kernel is what machines boot: under emulation the guest need not unpack it (0.35 s), and QEMU maps it from
the page cache where it copies a bzImage into its own heap (11 MiB less for each clone, QEMU 10.0). In exchange the
kernel's text is not moved to a random address, which the stub does (KASLR); its data still are. Sources: kernel
documents x86/boot and x86/pvh; modules.dep(5).
"""

from __future__ import annotations

import bz2
import lzma
import re
import struct
import zlib
from collections.abc import Callable, Iterable

from ..errors import Unsupported

_HEADER_MAGIC = 0x202  # "HdrS"
_PROTOCOL_WITH_PAYLOAD = 0x0208  # boot protocol 2.08, Linux 2.6.26
_ELF = b"\x7fELF"
_PHYS32_ENTRY = 18  # XEN_ELFNOTE_PHYS32_ENTRY: where QEMU starts a PVH kernel


def check_config(config: str, kernel: str) -> None:
    """See that a kernel tells its guest when it has become another machine.

    Args:
        config: text of /boot/config-VERSION.
        kernel: its package, for the message.

    Raises:
        Unsupported: no VMGENID (code "no-vmgenid"): clones would draw the same random numbers.
    """
    for option, meaning in (
        ("CONFIG_VMGENID", "learns that it was cloned"),
        ("CONFIG_VIRTIO_BLK", "has our disk"),
    ):
        if not re.search(rf"^{option}=[ym]$", config, re.MULTILINE):
            raise Unsupported(
                f"{kernel} of this suite is built without {option}, by which a guest {meaning}",
                code="no-vmgenid" if "VMGENID" in option else "no-virtio",
                tried="reading the kernel's configuration",
                on=kernel,
                seen=f"{option} is not set",
                next_step="use suite trixie or later, or another kernel: --kernel linux-image-amd64",
            )


def resolve_modules(wanted: Iterable[str], optional: Iterable[str], dep: str, builtin: str) -> list[str]:
    """Return the files of the modules to load, each after those it needs.

    Args:
        wanted: names of modules; one that is built in needs no file.
        optional: as `wanted`, but a kernel may lack them.
        dep, builtin: text of modules.dep and modules.builtin.

    Raises:
        Unsupported: the kernel has a wanted module in neither form.
    """
    needs = {path: rest.split() for path, _, rest in (line.partition(":") for line in dep.splitlines())}
    files = {_module_name(path): path for path in needs}
    inside = {_module_name(path) for path in builtin.split()}
    order: list[str] = []

    def add(path: str) -> None:
        for needed in reversed(needs[path]):  # modules.dep lists the innermost last
            if needed not in order:
                add(needed)
        if path not in order:
            order.append(path)

    optional = set(optional)
    for name in (*wanted, *sorted(optional)):
        if name in files:
            add(files[name])
        elif name not in inside and name not in optional:
            raise Unsupported(
                f"the kernel has no {name}",
                code="no-virtio",
                tried="looking for the modules that a machine starts with",
                on=name,
                seen="in neither modules.dep nor modules.builtin",
                next_step="use another kernel: --kernel linux-image-amd64",
            )
    return order


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def unpack_module(name: str, data: bytes) -> bytes:
    """Return the plain module of a file that may be packed (.ko, .ko.xz, .ko.zst, .ko.gz)."""
    packing = name.rpartition(".ko")[2]
    return data if not packing else _UNPACK[packing](data)


def find_vmlinux(bzimage: bytes) -> bytes | None:
    """Return the ELF kernel inside a bzImage, if QEMU can start it; else None, and the bzImage is booted."""
    if len(bzimage) < 0x260 or bzimage[_HEADER_MAGIC : _HEADER_MAGIC + 4] != b"HdrS":
        return None
    setup_sectors, protocol = bzimage[0x1F1] or 4, int.from_bytes(bzimage[0x206:0x208], "little")
    if protocol < _PROTOCOL_WITH_PAYLOAD:
        return None
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = bzimage[start : start + length]
    for magic, packing in _MAGICS.items():
        if payload.startswith(magic):
            kernel = _UNPACK[packing](payload)
            return kernel if has_pvh_entry(kernel) else None
    return None


def has_pvh_entry(kernel: bytes) -> bool:
    """Tell whether an ELF kernel has the note by which QEMU finds its 32-bit entry point."""
    if kernel[:4] != _ELF or kernel[4] != 2:
        return False
    header_offset = struct.unpack_from("<Q", kernel, 32)[0]
    size, count = struct.unpack_from("<HH", kernel, 54)
    for index in range(count):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", kernel, header_offset + index * size)
        if kind == 4 and _has_note(kernel[offset : offset + length]):  # PT_NOTE
            return True
    return False


def _has_note(notes: bytes) -> bool:
    at = 0
    while at + 12 <= len(notes):
        name_length, length, kind = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + name_length]
        if kind == _PHYS32_ENTRY and name == b"Xen\0":
            return True
        at += 12 + name_length + -name_length % 4 + length + -length % 4
    return False


def _unpack_zstd(data: bytes) -> bytes:
    import zstandard  # only builds need it

    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


def _unpack_gzip(data: bytes) -> bytes:
    # The stub's payload ends with its unpacked size, which gzip.decompress would take for another member.
    return zlib.decompressobj(wbits=31).decompress(data)


_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    ".zst": _unpack_zstd,
    ".xz": lambda data: lzma.LZMADecompressor().decompress(data),
    ".gz": _unpack_gzip,
    ".bz2": lambda data: bz2.BZ2Decompressor().decompress(data),
}
_MAGICS = {b"\x28\xb5\x2f\xfd": ".zst", b"\xfd7zXZ\0": ".xz", b"\x1f\x8b": ".gz", b"BZh": ".bz2"}
