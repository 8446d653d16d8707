"""The initramfs and what is taken out of a kernel's package, on bytes made for the purpose."""

from __future__ import annotations

import gzip
import lzma
import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from liveclone.errors import Unsupported
from liveclone.formats import cpio
from liveclone.images import initramfs, kernel


def read_archive(data: bytes) -> list[tuple[str, int, bytes]]:
    """Read a newc archive as the kernel does."""
    found: list[tuple[str, int, bytes]] = []
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        at += 110 + name_size
        at += -at % 4
        if name == "TRAILER!!!":
            assert not any(data[at:])
            return found
        found.append((name, mode, data[at : at + size]))
        at += size + -size % 4


entries = st.lists(
    st.builds(
        cpio.file,
        st.text("abcdefgh/._-ä", min_size=1, max_size=20),
        st.binary(max_size=50),
        st.sampled_from([0o644, 0o755]),
    ),
    max_size=8,
)


@given(entries)
def test_an_archive_is_read_back(files: list[cpio.Entry]) -> None:
    data = cpio.render_archive(files)
    assert read_archive(data) == [(entry.name, entry.mode, entry.data) for entry in files]
    assert len(data) % 512 == 0
    assert data == cpio.render_archive(files)


def test_the_initrd_has_all_that_its_script_uses() -> None:
    data = initramfs.render_initrd(b"busybox", [("virtio_blk.ko", b"one"), ("virtio_net.ko", b"two")])
    names = {name: (mode, content) for name, mode, content in read_archive(data)}
    assert names["init"][0] & 0o111
    assert names["bin/busybox"] == (0o100755, b"busybox")
    assert names["modules/order"][1] == b"virtio_blk.ko\nvirtio_net.ko\n"
    assert names["modules/virtio_net.ko"][1] == b"two"
    assert names["dev/console"][0] == 0o020600
    assert {"dev", "root"} <= set(names)
    order = list(names)
    assert all(order.index(name.split("/")[0]) < order.index(name) for name in names if "/" in name)


DEP = """\
kernel/drivers/block/virtio_blk.ko.xz:
kernel/drivers/net/net_failover.ko.xz: kernel/net/core/failover.ko.xz
kernel/net/core/failover.ko.xz:
kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/net/net_failover.ko.xz kernel/net/core/failover.ko.xz
kernel/drivers/char/hw_random/virtio-rng.ko.xz:
kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/fs/mbcache.ko.xz
kernel/fs/jbd2/jbd2.ko.xz:
kernel/fs/mbcache.ko.xz:
"""
BUILTIN = "kernel/drivers/virtio/virtio_pci.ko\nkernel/drivers/char/virtio_console.ko\n"


def test_modules_come_after_those_they_need() -> None:
    order = kernel.resolve_modules(initramfs.WANTED, initramfs.OPTIONAL, DEP, BUILTIN)
    names = [path.rpartition("/")[2].removesuffix(".ko.xz") for path in order]
    assert sorted(names) == sorted(
        ["virtio_blk", "jbd2", "mbcache", "ext4", "failover", "net_failover", "virtio_net", "virtio-rng"]
    )
    for later, earlier in [("ext4", "jbd2"), ("virtio_net", "net_failover"), ("net_failover", "failover")]:
        assert names.index(earlier) < names.index(later)


def test_a_kernel_without_a_module_that_is_needed_is_refused() -> None:
    with pytest.raises(Unsupported, match="virtio_blk"):
        kernel.resolve_modules(["virtio_blk"], [], "", BUILTIN)
    assert kernel.resolve_modules(["virtio_pci"], ["button"], "", BUILTIN) == []


def test_a_kernel_without_vmgenid_is_refused() -> None:
    good = "CONFIG_A=y\nCONFIG_VMGENID=y\nCONFIG_VIRTIO_BLK=m\n"
    kernel.check_config(good, "linux-image-cloud-amd64")
    kernel.check_config(good.replace("VMGENID=y", "VMGENID=m"), "linux-image-amd64")
    for bad in ("", good.replace("CONFIG_VMGENID=y", "# CONFIG_VMGENID is not set"), "CONFIG_VMGENID=yes\n"):
        with pytest.raises(Unsupported) as caught:
            kernel.check_config(bad, "linux-image-cloud-amd64")
        assert caught.value.code == "no-vmgenid"
        assert "--kernel" in caught.value.next_step


def elf(*segments: tuple[int, bytes]) -> bytes:
    """Return a 64-bit ELF file of program headers (type, content) alone."""
    offset = 64 + 56 * len(segments)
    headers, contents = b"", b""
    for kind, content in segments:
        headers += struct.pack(
            "<IIQQQQQQ", kind, 0, offset + len(contents), 0, 0, len(content), len(content), 4
        )
        contents += content
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    return (
        ident
        + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
        + headers
        + contents
    )


def note(name: bytes, kind: int, content: bytes) -> bytes:
    def pad(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    return struct.pack("<III", len(name), len(content), kind) + pad(name) + pad(content)


NOTES = note(b"Linux\0", 256, b"x") + note(b"GNU\0", 3, b"build-id.") + note(b"Xen\0", 18, bytes(8))
VMLINUX = elf((1, b"text"), (4, NOTES))


def bzimage(payload: bytes) -> bytes:
    setup = bytearray(5 * 512)
    setup[0x1F1] = 4
    setup[0x202:0x206] = b"HdrS"
    setup[0x206:0x208] = b"\x0f\x02"
    stub = b"stub" * 10
    struct.pack_into("<II", setup, 0x248, len(stub), len(payload))
    return bytes(setup) + stub + payload + b"after"


PACKED = {
    "zstd": zstandard.ZstdCompressor().compress(VMLINUX),
    "xz": lzma.compress(VMLINUX),
    "gzip": gzip.compress(VMLINUX),
}


@pytest.mark.parametrize("packing", PACKED)
def test_the_kernel_is_unpacked(packing: str) -> None:
    size = struct.pack("<I", len(VMLINUX))  # the kernel's build appends it to every payload
    assert kernel.find_vmlinux(bzimage(PACKED[packing] + size)) == VMLINUX


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"MZ" + bytes(2000),
        bzimage(b"\x04\x22\x4d\x18 lz4"),
        bzimage(lzma.compress(elf((1, b"text")))),
        bzimage(lzma.compress(elf((4, note(b"Xen\0", 6, b"linux"))))),
        bzimage(lzma.compress(b"no ELF at all")),
    ],
)
def test_a_kernel_that_qemu_cannot_start_directly_stays_packed(image: bytes) -> None:
    assert kernel.find_vmlinux(image) is None


def test_modules_are_unpacked() -> None:
    assert kernel.unpack_module("a.ko", b"plain") == b"plain"
    assert kernel.unpack_module("a.ko.xz", lzma.compress(b"plain")) == b"plain"
    assert kernel.unpack_module("a.ko.zst", zstandard.ZstdCompressor().compress(b"plain")) == b"plain"
    assert kernel.unpack_module("a.ko.gz", gzip.compress(b"plain")) == b"plain"


def test_a_static_program_is_told_from_one_that_needs_libraries() -> None:
    assert initramfs.is_static(elf((1, b"text")))
    assert not initramfs.is_static(elf((1, b"text"), (3, b"/lib64/ld-linux-x86-64.so.2\0")))
    assert not initramfs.is_static(b"#!/bin/sh\n")
