"""What is sealed comes back; what was forged, changed, cut off or exchanged is refused before it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveclone.errors import Corrupt, Refused
from liveclone_nova import seal, state_file
from liveclone_nova.seal import HEAD_BYTES, Description, Part

from .states import (
    FOREIGN_KEY,
    KEY,
    OLD_KEY,
    PAGES,
    RAM_BYTES,
    STATE,
    describe,
    make_identity,
    make_memory,
    make_state,
)


def fetch(data: bytes, folder: Path, keys: tuple[bytes, ...] = (KEY,), piece: int = 5000) -> Description:
    folder.mkdir()
    pieces = (data[at : at + piece] for at in range(0, len(data), piece))
    return state_file.fetch(pieces, folder, keys, lambda description: None)


def refused(data: bytes, tmp_path: Path, keys: tuple[bytes, ...] = (KEY,)) -> str:
    with pytest.raises(Corrupt) as error:
        fetch(data, tmp_path / "fetched", keys)
    assert not (tmp_path / "fetched" / state_file.MEMORY).exists()
    return error.value.code


@pytest.mark.parametrize("piece", [1000, HEAD_BYTES, 1 << 20])
def test_what_was_written_comes_back_with_its_holes(tmp_path: Path, piece: int) -> None:
    data = make_state(tmp_path / "made")
    description = fetch(data, tmp_path / "fetched", piece=piece)
    assert description.state_image == STATE
    assert description.size_bytes == len(data)
    assert sorted(found.name for found in (tmp_path / "fetched").iterdir()) == ["head", "memory", "state"]
    memory = tmp_path / "fetched" / state_file.MEMORY
    assert memory.read_bytes() == (tmp_path / "made" / "ram").read_bytes()
    assert memory.stat().st_blocks * 512 < RAM_BYTES / 4
    assert (tmp_path / "fetched" / state_file.DEVICE_STATE).read_bytes() == b"device state" * 1000
    assert len(data) < RAM_BYTES / 4, "holes and zeros take no room in the image either"


def test_a_key_that_was_exchanged_opens_what_it_sealed(tmp_path: Path) -> None:
    data = make_state(tmp_path / "made", key=OLD_KEY)
    assert fetch(data, tmp_path / "fetched", (KEY, OLD_KEY)).state_image == STATE


@pytest.mark.parametrize("keys", [(FOREIGN_KEY,), ()], ids=["another", "none"])
def test_without_the_key_nothing_opens_it(tmp_path: Path, keys: tuple[bytes, ...]) -> None:
    assert refused(make_state(tmp_path / "made"), tmp_path, keys) == "bad-seal"


def test_a_word_of_the_description_that_was_changed_breaks_the_seal(tmp_path: Path) -> None:
    data = make_state(tmp_path / "made")
    assert b'"memory_mb": 4' in data
    assert refused(data.replace(b'"memory_mb": 4', b'"memory_mb": 8'), tmp_path) == "bad-seal"


def test_a_seal_of_another_description_does_not_fit(tmp_path: Path) -> None:
    one, other = make_state(tmp_path / "one"), make_state(tmp_path / "other", vcpus=2)
    line = one.index(b"\n")
    assert refused(one[:line] + other[line:], tmp_path) == "bad-seal"


@pytest.mark.parametrize("at", [HEAD_BYTES, HEAD_BYTES + 11_999, HEAD_BYTES + 12_000, -1])
def test_a_byte_of_a_part_that_was_changed_is_seen(tmp_path: Path, at: int) -> None:
    data = bytearray(make_state(tmp_path / "made"))
    data[at] ^= 1
    assert refused(bytes(data), tmp_path) == "damaged-state"


@pytest.mark.parametrize("kept", [HEAD_BYTES, HEAD_BYTES + 100, -1])
def test_one_that_ends_early_is_seen(tmp_path: Path, kept: int) -> None:
    assert refused(make_state(tmp_path / "made")[:kept], tmp_path) == "damaged-state"


def test_one_that_is_no_longer_than_a_word_is_seen(tmp_path: Path) -> None:
    assert refused(b"liveclone", tmp_path) == "damaged-state"


def test_something_behind_its_end_is_seen(tmp_path: Path) -> None:
    assert refused(make_state(tmp_path / "made") + b"\0", tmp_path) == "damaged-state"


def test_parts_of_two_states_do_not_go_together(tmp_path: Path) -> None:
    one = make_state(tmp_path / "one")
    other = tmp_path / "two"
    other.mkdir()
    (other / "device").write_bytes(b"another gue." * 1000)
    make_memory(other / "ram")
    state_file.write(other / "image", other / "device", other / "ram", KEY, describe)
    assert (
        refused(one[:HEAD_BYTES] + (other / "image").read_bytes()[HEAD_BYTES:], tmp_path) == "damaged-state"
    )


@pytest.mark.parametrize("data", [b"QFI\xfb", b"\0", b"liveclone-nova-state 1 "])
def test_any_other_image_is_no_state(tmp_path: Path, data: bytes) -> None:
    assert refused(data * (HEAD_BYTES // len(data) + 1), tmp_path) == "not-a-state"


def test_no_more_is_asked_for_than_a_head_that_is_believed_allows(tmp_path: Path) -> None:
    """Whoever offers an endless image fills no disk."""
    asked = []

    def endless() -> Iterator[bytes]:
        while True:
            asked.append(1)
            yield bytes(1000)

    (tmp_path / "fetched").mkdir()
    with pytest.raises(Corrupt):
        state_file.fetch(endless(), tmp_path / "fetched", [KEY], lambda description: None)
    assert len(asked) == -(-HEAD_BYTES // 1000)
    assert not list((tmp_path / "fetched").iterdir())


def test_what_is_not_wanted_is_not_fetched(tmp_path: Path) -> None:
    data, asked = make_state(tmp_path / "made"), []

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(data), HEAD_BYTES):
            asked.append(at)
            yield data[at : at + HEAD_BYTES]

    def check(description: Description) -> None:
        raise KeyError(description.disk_image)

    (tmp_path / "fetched").mkdir()
    with pytest.raises(KeyError):
        state_file.fetch(pieces(), tmp_path / "fetched", [KEY], check)
    assert asked == [0]


@pytest.mark.parametrize("ram_bytes", [RAM_BYTES - 4096, RAM_BYTES + 4096])
def test_memory_of_another_size_is_refused(tmp_path: Path, ram_bytes: int) -> None:
    data = make_state(tmp_path / "made", ram_bytes=ram_bytes)
    with pytest.raises(Corrupt, match="another size"):
        fetch(data, tmp_path / "fetched")


def test_the_digest_is_the_one_that_glance_computes(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"disk")
    assert state_file.describe(path) == Part(size_bytes=4, digest=hashlib.sha512(b"disk").hexdigest())


def test_the_last_page_and_the_first_are_in_the_memory(tmp_path: Path) -> None:
    fetch(make_state(tmp_path / "made"), tmp_path / "fetched")
    memory = (tmp_path / "fetched" / state_file.MEMORY).read_bytes()
    assert all(memory[number * 4096 :].startswith(text) for number, text in PAGES.items())
    assert memory.count(b"\0") == RAM_BYTES - 4096 * len(PAGES)


def test_the_longest_description_fits_its_place() -> None:
    part = Part(size_bytes=1 << 60, digest="f" * 128)
    texts = dict.fromkeys(("hypervisor", "machine_type", "cpu", "host_cpu", "project", "source"), "x" * 100)
    longest = describe(part, part, disk=part, identity=make_identity(50), **texts)
    head = seal.render_head(longest, KEY)
    assert len(head) == HEAD_BYTES
    assert seal.parse_head(head, [KEY]) == longest


def test_a_guest_that_reports_without_end_cannot_be_described() -> None:
    part = Part(size_bytes=1, digest="f" * 128)
    with pytest.raises(Refused, match="too long"):
        seal.render_head(describe(part, part, identity=make_identity(1000)), KEY)
