"""Make the golden files again: streams/capture.py [--qemu PROGRAM | --versions | --libvirt URI [--folder FOLDER]]

Each is what a real QEMU, or a real libvirt with --libvirt, wrote of a machine of 16 MiB; golden/golden.json says by
which versions, and the SHA-256 of pc.ram as QEMU's own memory file had it after the machine was stopped. The machine
runs ten bytes of firmware that count up a word at 0x8000 for ever: a page that is sent again. Besides, six pages of
text lie at 0x200000. Private parts: none, so nothing has to be cut out.

Another QEMU's files begin with its version, and have the devices too that libvirt gives a machine without being asked.
It need not be installed: a package's content anywhere will do (dpkg-deb -x), as no firmware of its own is used.

With --versions: machines of the types of earlier versions (pc-q35-8.0), with the same devices, written by the present QEMU,
and one of its own version to compare them with. It writes them so that a host which has that version could load them; how
that version itself would write them it does not show.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

PAGE = 4096
RAM_BYTES = 16 * 1024 * 1024
GOLDEN = Path(__file__).with_name("golden")
QEMU = "qemu-system-x86_64"
VERSIONS = (
    *("pc-q35-8.0", "pc-q35-8.2", "pc-q35-9.0", "pc-q35-9.2", "pc-q35-10.0"),
    *("pc-i440fx-8.2", "pc-i440fx-9.2", "pc-i440fx-10.0"),
)
FORMATS = ("raw", "zstd", "gzip", "bzip2", "xz", "lzop", "sparse")

DOMAIN = """<domain type='qemu'><name>golden</name><uuid>11111111-1111-4111-8111-111111111111</uuid>
<memory unit='MiB'>16</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><loader readonly='yes' type='rom'>{firmware}</loader></os>
<features><acpi/></features><genid>22222222-2222-4222-8222-222222222222</genid>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<controller type='usb' model='none'/><controller type='virtio-serial' index='0'/><memballoon model='none'/>
</devices></domain>"""


def firmware(size: int) -> bytes:
    """Return a ROM image: xor ax,ax; mov ds,ax; again: inc word [0x8000]; jmp again."""
    rom = bytearray(size)
    start = size - 65536
    rom[start : start + 10] = bytes.fromhex("31c08ed8ff060080ebfa")
    rom[-16:-13] = b"\xe9" + ((-(65536 - 16 + 3)) & 0xFFFF).to_bytes(
        2, "little"
    )  # where the processor begins
    return bytes(rom)


def text() -> bytes:
    return b"".join(
        (b"liveclone page %d " % number * 200)[: PAGE - 8].ljust(PAGE, b".") for number in range(6)
    )


# What libvirt adds to a machine that it starts, and what virt-install asks for.
DEVICES = {
    "pc": "piix3-usb-uhci,addr=1.2 isa-serial,chardev=n0 virtio-serial-pci,id=v virtserialport,bus=v.0,chardev=n1,"
    "name=org.qemu.guest_agent.0 usb-tablet ide-cd,drive=c AC97,audiodev=a virtio-balloon-pci i6300esb pvpanic",
    "q35": "pcie-root-port,id=p1,chassis=1,addr=8.0,multifunction=on pcie-root-port,id=p2,chassis=2,addr=8.1 "
    "qemu-xhci,bus=p1 isa-serial,chardev=n0 virtio-serial-pci,id=v,bus=p2 virtserialport,bus=v.0,chardev=n1,"
    "name=org.qemu.guest_agent.0 usb-tablet virtio-scsi-pci,id=s scsi-hd,bus=s.0,drive=c ide-cd,bus=ide.0,drive=e "
    "ich9-intel-hda hda-duplex,audiodev=a virtio-balloon-pci i6300esb pvpanic-pci",
}


class Qmp:
    """The smallest client that will do: one question, one answer, events left aside."""

    def __init__(self, argv: list[str]) -> None:
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.read()
        self.call("qmp_capabilities")

    def read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "QEMU has ended"
        return json.loads(line)

    def call(self, name: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        self.process.stdin.flush()
        while True:
            answer = self.read()
            if "error" in answer:
                raise RuntimeError(answer["error"]["desc"])
            if "return" in answer:
                return answer["return"]

    def migrate(self, uri: str, *capabilities: str) -> None:
        self.call(
            "migrate-set-capabilities",
            capabilities=[{"capability": name, "state": True} for name in ("events", *capabilities)],
        )
        self.call("migrate", uri=uri)
        while (event := self.read()).get("data", {}).get("status") not in ("completed", "failed"):
            pass
        assert event["data"]["status"] == "completed", self.call("query-migrate")


def machine(folder: Path, kind: str, memory: str) -> list[str]:
    (folder / "text").write_bytes(text())
    (folder / "bios").write_bytes(firmware(65536))
    (folder / "flash").write_bytes(firmware(262144))
    (folder / "variables").write_bytes(b"variables".ljust(131072, b"\xff"))
    argv = [QEMU, "-nodefaults", "-display", "none", "-accel", "tcg", "-qmp", "stdio", "-m", "16M"]
    argv += ["-machine", f"{kind},memory-backend=pc.ram", "-object", f"{memory},id=pc.ram,size=16M"]
    argv += [
        "-device",
        f"loader,file={folder / 'text'},addr=0x200000,force-raw=on",
        "-device",
        "vmgenid,guid=auto",
    ]
    argv += ["-device", "VGA,vgamem_mb=1,romfile=", "-device", "virtio-rng-pci"]
    for number in range(2):
        argv += ["-blockdev", f"driver=null-co,node-name=d{number},size=1048576"]
        argv += ["-device", f"virtio-blk-pci,drive=d{number}", "-device", "virtio-net-pci,romfile="]
    if "q35" not in kind:
        return [*argv, "-bios", str(folder / "bios")]
    for unit, name in enumerate(("flash", "variables")):
        argv += ["-drive", f"if=pflash,unit={unit},format=raw,readonly=on,file={folder / name}"]
    return argv


def more_devices(kind: str) -> list[str]:
    argv = ["-audiodev", "none,id=a", "-chardev", "null,id=n0", "-chardev", "null,id=n1"]
    for name in "ce":
        argv += ["-blockdev", f"driver=null-co,node-name={name},size=1048576,read-only=on"]
    for device in DEVICES["q35" if "q35" in kind else "pc"].split():
        argv += ["-device", device]
    return argv


def capture(name: str, kind: str, *capabilities: str, program: str = QEMU) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        ram, stream = folder / "ram", folder / "stream"
        # What is written to while the snapshot is taken cannot be compared afterwards, and must be anonymous memory.
        compare = "background-snapshot" not in capabilities
        memory = f"memory-backend-file,mem-path={ram},share=on" if compare else "memory-backend-ram"
        argv = machine(folder, kind, memory)
        if program != QEMU or kind in VERSIONS:
            argv = [program, *argv[1:], *more_devices(kind)]
        qmp = Qmp(argv)
        try:
            version = qmp.call("query-version")["qemu"]
            if program != QEMU:
                name = f"{version['major']}.{version['minor']}-{name}"
            is_old = (version["major"], version["minor"]) < (8, 2)  # knows no file:
            uri = f"exec:cat >{stream}.part && mv {stream}.part {stream}" if is_old else f"file:{stream}"
            qmp.migrate(uri, *capabilities)
            qmp.call("quit")
            while not stream.exists():
                time.sleep(0.01)
        finally:
            qmp.process.kill()
            qmp.process.wait()
        keep(name, stream)
        about = {"qemu": f"{version['major']}.{version['minor']}.{version['micro']}", "machine": kind}
        if compare:
            about["ram_sha256"] = hashlib.sha256(ram.read_bytes()).hexdigest()
        return {name: about}


def keep(name: str, file: Path) -> None:
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / f"{name}.xz").write_bytes(lzma.compress(file.read_bytes(), preset=9 | lzma.PRESET_EXTREME))


def capture_libvirt(uri: str, place: str) -> dict[str, Any]:
    """Save one domain in every format; it is restored in between and never runs again, so its memory stays."""

    def virsh(*words: str) -> str:
        return subprocess.run(
            ["virsh", "-q", "-c", uri, *words], check=True, capture_output=True, text=True
        ).stdout

    about = {"versions": virsh("version").strip()}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "bios").write_bytes(firmware(65536))
        (folder / "domain").write_text(DOMAIN.format(firmware=folder / "bios"))
        virsh("create", str(folder / "domain"))
        for form in FORMATS:
            try:
                virsh("save", "golden", str(folder / form), "--image-format", form)
                keep(f"libvirt-{form}", folder / form)
                found[f"libvirt-{form}"] = about
                virsh("restore", str(folder / form), "--paused")
            except subprocess.CalledProcessError as error:
                print(form, error.stderr)
            except FileNotFoundError as error:
                print(form, error)
        virsh("destroy", "golden")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--qemu", metavar="PROGRAM", default=QEMU)
    parser.add_argument("--versions", action="store_true", help="machines of earlier versions' types")
    parser.add_argument("--libvirt", metavar="URI")
    parser.add_argument(
        "--folder", default="/var/lib/libvirt", help="where libvirt can write; seen in the XML"
    )
    arguments = parser.parse_args()
    uri = arguments.libvirt
    file = GOLDEN / "golden.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    if uri:
        known |= capture_libvirt(uri, arguments.folder)
    elif arguments.versions:
        for kind in VERSIONS:
            known |= capture(kind, kind)
    else:
        for name, kind, capabilities in (
            ("i440fx-bios", "pc", ()),
            ("q35-flash", "q35", ()),
            ("q35-mapped-ram", "q35", ("mapped-ram",)),
            ("i440fx-background", "pc", ("background-snapshot",)),
        ):
            try:
                known |= capture(name, kind, *capabilities, program=arguments.qemu)
            except (RuntimeError, AssertionError) as error:
                print(name, error)
    file.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
