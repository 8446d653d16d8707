"""Streams and save images that QEMU and libvirt wrote (streams/golden; made again by streams/capture.py).

By QEMU 7.2 and 10.0. Of the versions in between there are machines of their types (pc-q35-8.2), with the devices that
libvirt gives one, as QEMU 10.0 writes them for hosts that have those versions. It shows that such streams are read, split
and joined, and load (tests/vm/test_split_streams.py). Little in them is of that version: a RAM block more up to 9.0 on q35
(isa-bios), and a shorter section of the balloon. It does not show what QEMU 8 and 9 themselves write, how they send RAM
and order sections, say: for that they would have to make these files (capture.py --qemu).
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liveclone.errors import Corrupt
from liveclone.formats import compression, libvirt_save, stream_block
from liveclone.formats.libvirt_save import SaveFormat
from liveclone.formats.migration_stream import Run, Splitter
from liveclone.units import MIB, PAGE
from tests.unit.test_migration_stream import paint, split

GOLDEN = Path(__file__).with_name("streams") / "golden"
ABOUT = cast(dict[str, dict[str, Any]], json.loads((GOLDEN / "golden.json").read_text()))
STREAMS = sorted(name for name in ABOUT if not name.startswith("libvirt-"))
IMAGES = sorted(name for name in ABOUT if name.startswith("libvirt-"))
EARLIER = [name for name in STREAMS if name == ABOUT[name]["machine"] and not name.endswith("-10.0")]
RAM_BYTES = 16 * MIB


@cache
def load(name: str) -> bytes:
    return lzma.decompress((GOLDEN / f"{name}.xz").read_bytes())


def counter(memory: bytes) -> int:
    """What the machine counts up for ever."""
    return int.from_bytes(memory[0x8000:0x8002], "little")


def split_image(data: bytes, piece: int) -> tuple[Splitter, list[Run]]:
    header = libvirt_save.parse_header(data)
    pieces = (data[at : at + piece] for at in range(header.stream_offset, len(data), piece))
    splitter = Splitter("pc.ram", start=header.stream_offset)
    runs: list[Run] = []
    for part in compression.iter_unpacked(pieces, header.format):
        runs += splitter.feed(part)
    return splitter, runs


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def others(splitter: Splitter, kept: bytes) -> dict[str, str]:
    """Return a digest of every other block, as the page-less stream has it."""
    found = {}
    for name in splitter.blocks:
        if name != "pc.ram":
            block = Splitter(name)
            found[name] = digest(paint(block.feed(kept), block.block_bytes))
    return found


@pytest.mark.parametrize("piece", [4099, 65536, 10**9])
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_of_qemu(name: str, piece: int) -> None:
    stream = load(name)
    splitter, runs = split(stream, [piece] * (len(stream) // piece))
    memory = paint(runs, splitter.block_bytes)
    assert splitter.block_bytes == RAM_BYTES
    assert memory[0x200000:].startswith(b"liveclone page 0 liveclone page 0")
    if expected := ABOUT[name].get("ram_sha256"):
        assert digest(memory) == expected, "the memory as QEMU's own file had it in the end"
    kept = splitter.finish()
    again, none = split(kept)
    same = again.finish() == kept
    assert none == [] and same and splitter.machine.startswith("pc-")
    assert {"virtio-blk", "virtio-net", "vmgenid"} <= {
        word for word in ("virtio-blk", "virtio-net", "vmgenid") if word.encode() in kept
    }


def test_blocks_of_bios_and_of_flash() -> None:
    bios, flash = (split(load(name))[0].blocks for name in ("i440fx-bios", "q35-flash"))
    assert {"pc.ram", "pc.bios"} <= set(bios) and {"pc.ram", "system.flash0", "system.flash1"} <= set(flash)
    assert {name.rsplit("/", 1)[-1] for name in bios} >= {"vga.vram", "tables"}


def test_flash_is_kept_in_the_page_less_stream() -> None:
    for name in ("q35-flash", "q35-mapped-ram"):
        splitter, _ = split(load(name))
        flash = Splitter("system.flash1")
        memory = paint(flash.feed(splitter.finish()), flash.block_bytes)
        assert memory.startswith(b"variables\xff\xff") and memory.endswith(b"\xff"), name


def test_a_page_was_sent_again() -> None:
    """The counter's: so the digest above shows that the last one counts."""
    _, runs = split(load("i440fx-bios"))
    sent = [run for run in runs if run.offset <= 0x8000 < run.offset + run.size_bytes]
    assert len(sent) > 1
    first, last = (counter(paint([run], RAM_BYTES)) for run in (sent[0], sent[-1]))
    assert first != last


def describe(name: str) -> Any:
    """Return what a stream of QEMU 10 says at its end of its devices: versions, fields, subsections."""
    stream = load(name)
    described, _ = json.JSONDecoder().raw_decode(stream[stream.rindex(b'{"configuration"') :].decode())
    return described["devices"]


@pytest.mark.parametrize("name", EARLIER)
def test_a_machine_of_an_earlier_version(name: str) -> None:
    splitter, _ = split(load(name))
    assert splitter.machine == name
    assert ("isa-bios" in splitter.blocks) == name.endswith(("q35-8.0", "q35-8.2", "q35-9.0"))
    same = describe(name) == describe(f"{name.rpartition('-')[0]}-10.0")
    assert not same, "nothing in it is of that version"


@pytest.mark.parametrize("name", IMAGES)
def test_a_save_image_of_libvirt(name: str) -> None:
    data = load(name)
    header = libvirt_save.parse_header(data)
    assert header.format is SaveFormat[name.removeprefix("libvirt-").upper()]
    assert "<name>golden</name>" in header.xml and header.xml.endswith("</domain>\n")
    assert header.cookie.startswith("<cookie>")
    same = libvirt_save.render_header(header) == data[: header.stream_offset]
    assert same
    splitter, runs = split_image(data, 70_001)
    memory = paint(runs, splitter.block_bytes)
    assert counter(memory) > 0 and len(memory) == RAM_BYTES
    assert split(splitter.finish())[1] == []


def test_every_format_of_one_paused_machine_holds_the_same() -> None:
    """All after the first were saved of a machine that was restored and did not run."""
    seen = set()
    for name in IMAGES:
        if name != "libvirt-raw":
            splitter, runs = split_image(load(name), 65536)
            kept = splitter.finish()
            memory = digest(paint(runs, splitter.block_bytes))
            seen.add((memory, *sorted(others(splitter, kept).items())))
    assert len(IMAGES) > 4 and len(seen) == 1


def replace_bit(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def fits(splitter: Splitter, runs: Iterable[Run]) -> bool:
    return all(run.offset % PAGE == 0 and run.offset + run.size_bytes <= splitter.block_bytes for run in runs)


@pytest.mark.parametrize("name", ["i440fx-bios", "q35-flash", "i440fx-background"])
@given(bit=st.integers(0, 10**9), piece=st.integers(1000, 200_000))
@settings(max_examples=40, deadline=None)
def test_a_flipped_bit_of_a_stream(name: str, bit: int, piece: int) -> None:
    stream = load(name)
    changed = replace_bit(stream, bit % (len(stream) * 8))
    try:
        splitter, runs = split(changed, [piece] * (len(changed) // piece))
        kept = splitter.finish()
    except Corrupt:
        return
    assert fits(splitter, runs)
    # The bit lay in what nobody interprets here, a page or a device; or a record went to another page of the block.
    whole, good = split(stream)
    assert len(kept) == len(whole.finish()) or len(good) != len(runs)


@pytest.mark.parametrize("name", ["i440fx-bios", "q35-mapped-ram"])
@given(cut=st.integers(0, 10**9))
@settings(max_examples=40, deadline=None)
def test_a_stream_that_is_cut_off(name: str, cut: int) -> None:
    stream = load(name)
    with pytest.raises(Corrupt):
        split(stream[: cut % len(stream)])[0].finish()


@pytest.mark.parametrize("name", IMAGES)
@given(cut=st.integers(0, 10**9))
@settings(max_examples=15, deadline=None)
def test_a_save_image_that_is_cut_off(name: str, cut: int) -> None:
    data = load(name)
    with pytest.raises(Corrupt):
        split_image(data[: cut % len(data)], 10**6)[0].finish()


@pytest.mark.parametrize("name", ["q35-flash", "7.2-q35-flash"])
def test_the_variables_of_firmware_are_in_the_page_less_stream(name: str) -> None:
    kept, _ = split(load(name))
    state = kept.finish()
    assert stream_block.read_block(state, "system.flash1") == b"variables".ljust(131072, b"\xff")
    assert stream_block.read_block(state, "system.flash0")[:4] != b"vari"
    with pytest.raises(Corrupt, match=r"lacks system\.flash2"):
        stream_block.read_block(state, "system.flash2")
    with pytest.raises(Corrupt):
        stream_block.read_block(state[:-1], "system.flash1")
