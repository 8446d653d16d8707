"""A collection of objects: names claimed once, half-made things not listed, found by name, id or the beginning of an id."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from liveclone.errors import Conflict, Corrupt, NotFound, Refused
from liveclone.model.base import Value
from liveclone.store.objects import Objects
from tests.contract.children import run_at_once

EPOCH = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


class Thing(Value, frozen=True, kw_only=True):
    id: str
    name: str
    created_at: datetime.datetime = EPOCH
    colour: str = "red"


def make(folder: Path) -> Objects[Thing]:
    return Objects(folder / "things", Thing, "machine", folder / "lock")


@pytest.fixture
def things(tmp_path: Path) -> Objects[Thing]:
    (tmp_path / "things").mkdir()
    return make(tmp_path)


def test_an_object_is_made_listed_loaded_saved_and_removed(things: Objects[Thing]) -> None:
    made = Thing(id="aaaaaaaaaaaa", name="web")
    folder = things.create(made)
    assert folder == things.folder(made.id) and folder.is_dir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert things.list() == [made]
    assert things.load(made.id) == things.find("web") == made
    things.save(made.replace(colour="blue"))
    assert things.load(made.id).colour == "blue"
    (folder / "disk").touch()
    things.remove(made.id)
    assert things.list() == []
    assert not folder.exists()
    things.remove(made.id)


def test_objects_are_listed_oldest_first(things: Objects[Thing]) -> None:
    for number, hour in enumerate((3, 1, 2)):
        later = EPOCH + datetime.timedelta(hours=hour)
        things.create(Thing(id=f"{number:012x}", name=f"n{hour}", created_at=later))
    assert [thing.name for thing in things.list()] == ["n1", "n2", "n3"]


def test_a_name_is_claimed_once(things: Objects[Thing]) -> None:
    things.create(Thing(id="aaaaaaaaaaaa", name="web"))
    with pytest.raises(Conflict) as caught:
        things.create(Thing(id="bbbbbbbbbbbb", name="web"))
    assert (caught.value.code, caught.value.seen) == ("name-taken", "id aaaaaaaaaaaa")
    assert not things.folder("bbbbbbbbbbbb").exists()
    things.remove("aaaaaaaaaaaa")
    things.create(Thing(id="bbbbbbbbbbbb", name="web"))


@pytest.mark.parametrize("name", ["", "../x", "x" * 300, "a/b", ".", "Web", "a\0", "a\n"])
def test_a_hostile_name_makes_nothing(things: Objects[Thing], tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused) as caught:
        things.create(Thing(id="aaaaaaaaaaaa", name=name))
    assert caught.value.code == "bad-name"
    assert list((tmp_path / "things").iterdir()) == []
    with pytest.raises(NotFound) as missing:
        things.find(name)
    assert len(missing.value.message) < 100


def test_an_id_or_its_beginning_finds_an_object(things: Objects[Thing]) -> None:
    first, second = Thing(id="abcdef000000", name="web"), Thing(id="abcd11000000", name="db")
    things.create(first)
    things.create(second)
    assert things.find("abcdef000000") == first
    assert things.find("abcde") == first
    assert things.find("abcd1") == second
    with pytest.raises(Conflict) as caught:
        things.find("abcd")
    assert caught.value.code == "ambiguous"
    assert "web" in caught.value.seen and "db" in caught.value.seen
    with pytest.raises(NotFound):
        things.find("ab")  # too short to be meant


def test_a_name_counts_before_an_id(things: Objects[Thing]) -> None:
    things.create(Thing(id="abc000000000", name="web"))
    things.create(Thing(id="ddd000000000", name="abc000000000"))
    assert things.find("abc000000000").id == "ddd000000000"


def test_what_is_missing_is_told_with_its_neighbours(things: Objects[Thing]) -> None:
    with pytest.raises(NotFound) as caught:
        things.find("web")
    assert (caught.value.code, caught.value.next_step) == ("no-machine", "liveclone list")
    things.create(Thing(id="aaaaaaaaaaaa", name="webserver"))
    with pytest.raises(NotFound) as caught:
        things.find("websrver")
    assert caught.value.next_step == "did you mean webserver?"
    with pytest.raises(NotFound) as caught:
        things.load("cccccccccccc")
    assert caught.value.code == "no-machine"


def test_the_half_made_is_not_listed(things: Objects[Thing], tmp_path: Path) -> None:
    (tmp_path / "things" / "eeeeeeeeeeee").mkdir()
    (tmp_path / "things" / "ffffffffffff").mkdir()
    (tmp_path / "things" / "ffffffffffff" / ".manifest.json.1234").write_text("{")
    (tmp_path / "things" / "stray").touch()
    assert things.list() == []
    with pytest.raises(NotFound):
        things.load("eeeeeeeeeeee")


@pytest.mark.parametrize("content", [b"", b"{", b'{"id": 7, "name": "web"}', b"\xff\xfe", b"null"])
def test_a_manifest_that_cannot_be_read_is_corrupt(things: Objects[Thing], content: bytes) -> None:
    folder = things.create(Thing(id="aaaaaaaaaaaa", name="web"))
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(Corrupt) as caught:
        things.load("aaaaaaaaaaaa")
    assert str(folder) in caught.value.on
    # Also when something else is looked for: it may be the owner of what another operation would sweep away.
    with pytest.raises(Corrupt):
        things.list()


def test_every_byte_of_a_manifest_counts(things: Objects[Thing]) -> None:
    """Also those that are as good to read afterwards: another digit, another letter."""
    path = things.create(Thing(id="aaaaaaaaaaaa", name="web")) / "manifest.json"
    data = path.read_bytes()
    for at in range(len(data)):
        for bit in (0x01, 0x20, 0x80):
            path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            with pytest.raises(Corrupt) as caught:
                things.load("aaaaaaaaaaaa")
            assert (caught.value.code, caught.value.on) == ("bad-manifest", str(path))
    path.write_bytes(data)
    assert things.load("aaaaaaaaaaaa").name == "web"


def test_a_manifest_is_replaced_whole(things: Objects[Thing], monkeypatch: pytest.MonkeyPatch) -> None:
    made = Thing(id="aaaaaaaaaaaa", name="web")
    folder = things.create(made)

    def die(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("liveclone.host.files.os.fsync", die)
    with pytest.raises(KeyboardInterrupt):
        things.save(made.replace(colour="blue"))
    monkeypatch.undo()
    assert things.load(made.id) == made
    assert folder.joinpath("manifest.json").exists()


def test_of_many_processes_one_gets_the_name(things: Objects[Thing], tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from tests.unit.test_objects import Thing, make\n"
        "from liveclone.errors import Conflict\n"
        "things = make(Path(sys.argv[1]))\n"
        "begin()\n"
        "for number in range(15):\n"
        "    try: things.create(Thing(id=sys.argv[2] * 8 + f'{number:04}', name=f'name-{number}')); print(number)\n"
        "    except Conflict: pass\n"
    )
    outputs = run_at_once(program, [[str(tmp_path), letter] for letter in "abc"])
    claimed = [int(number) for output in outputs for number in output.split()]
    assert sorted(claimed) == list(range(15))
    assert len(things.list()) == 15
