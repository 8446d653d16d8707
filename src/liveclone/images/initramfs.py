"""The guest's first file system: a static busybox, a few modules and a script of ten lines.

    kernel ── /init: /dev, insmod in order, mount /dev/vda writable ── switch_root ──> /sbin/init on the disk

Debian's own initramfs takes seconds under emulation, because it serves any machine; this one serves ours. The root file
system is mounted for writing at once (ext4 replays its journal), so nothing has to remount it later. Not compressed:
unpacking it in the guest costs more than reading it (70 ms against 150 ms with gzip), and QEMU maps it from the page cache.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from ..errors import Unsupported
from ..formats import cpio

# What a machine has (drivers/qemu/argv.py) and its root file system: the kernel must have them, built in or not.
WANTED = ("virtio_pci", "virtio_blk", "virtio_console", "ext4")
# NICs are plugged into a running guest, so their driver is there before the first snapshot; `button` and `evdev` are
# how a guest hears the power button; the rest is used where the kernel has it as a module.
OPTIONAL = ("button", "crc32c_generic", "evdev", "failover", "virtio_net", "virtio_rng", "vmgenid")

INIT = """\
#!/bin/busybox sh
# Starts the system on /dev/vda. Anything that goes wrong is said on the console, and the machine ends.
B=/bin/busybox
give_up() {
    echo "liveclone: $1"
    $B poweroff -f
}
$B mount -t devtmpfs dev /dev || give_up "no /dev"
while read -r module; do
    $B insmod /modules/$module || echo "liveclone: $module cannot be loaded"
done </modules/order
tries=0
until [ -b /dev/vda ]; do
    tries=$((tries + 1))
    [ $tries -gt 100 ] && give_up "no disk /dev/vda"
    $B sleep 0.1
done
$B mount -t ext4 -o rw /dev/vda /root || give_up "the file system on /dev/vda cannot be mounted"
$B mount --move /dev /root/dev
exec $B switch_root /root /sbin/init
"""


def render_initrd(busybox: bytes, modules: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the archive for QEMU's -initrd.

    Args:
        busybox: a static program with mount, insmod, switch_root and sh.
        modules: names and plain contents, in the order in which they are loaded.
    """
    folders = [cpio.directory(name) for name in ("bin", "dev", "modules", "root")]
    return cpio.render_archive(
        [
            *folders,
            cpio.character_device("dev/console", 5, 1),  # the kernel opens it before /init mounts anything
            cpio.file("bin/busybox", busybox, 0o755),
            cpio.file("init", INIT.encode(), 0o755),
            cpio.file("modules/order", "".join(f"{name}\n" for name, _ in modules).encode()),
            *(cpio.file(f"modules/{name}", data) for name, data in modules),
        ]
    )


def load_busybox(candidates: Sequence[Path] = (Path("/bin/busybox"), Path("/usr/bin/busybox"))) -> bytes:
    """Return the host's busybox.

    Raises:
        Unsupported: there is none, or it needs libraries (code "missing-tool").
    """
    seen = "there is none"
    for path in candidates:
        if path.is_file():
            data = path.read_bytes()
            if is_static(data):
                return data
            seen = f"{path} needs libraries that the initramfs does not have"
    raise Unsupported(
        "a static busybox is needed for the guest's initramfs",
        code="missing-tool",
        tried="reading busybox",
        on=", ".join(map(str, candidates)),
        seen=seen,
        next_step="apt install busybox-static",
    )


def is_static(program: bytes) -> bool:
    """Tell whether an ELF program runs without an interpreter (no PT_INTERP segment)."""
    if program[:5] != b"\x7fELF\x02":
        return False
    offset = struct.unpack_from("<Q", program, 32)[0]
    size, count = struct.unpack_from("<HH", program, 54)
    return all(struct.unpack_from("<I", program, offset + index * size)[0] != 3 for index in range(count))
