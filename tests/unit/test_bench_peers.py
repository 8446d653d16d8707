"""Peers of live clones (bench/peers): how they are found, what is an answer, what is told of those without values."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import pytest
from rich.console import Console

from bench import series
from bench.lab import Lab
from bench.peers import app, base, kinds, table
from bench.peers.base import Expected, Peer, State
from bench.peers.kinds import load_peers
from bench.peers.kinds.virsh_restore import rename
from bench.peers.measure import _Size
from bench.recording import Recorder
from bench.table import render as render_all
from liveclone.errors import GuestError, HypervisorError, Refused
from liveclone.host.machine import cpus

TOKEN, INDEX = "0123456789abcdef" * 2, "f" * 64
ANOTHER = """
from bench.peers.kinds.cold_boot import ColdBoot


class PEER(ColdBoot):
    name = "another"
    order = 15
"""
SAVED = """<domain type="qemu"><name>source</name><uuid>11111111-1111-4111-8111-111111111111</uuid><devices>
<disk type="file"><source file="/source.qcow2"/><backingStore/><target dev="vda"/></disk>
<interface type="user"><mac address="52:54:00:00:00:01"/></interface>
<channel type="unix"><source mode="bind" path="/run/1-source"/><target type="virtio" name="a"/></channel>
</devices></domain>"""


def test_each_file_of_kinds_is_a_peer_with_a_name_of_its_own() -> None:
    files = list(Path(kinds.__path__[0]).glob("[!_]*.py"))
    names = [peer.name for peer in load_peers()]
    assert len(set(names)) == len(names) == len(files)


def test_adding_a_peer_is_adding_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "another_one.py").write_text(ANOTHER)
    before = [peer.name for peer in load_peers()]
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path)])
    after = [peer.name for peer in load_peers()]
    assert after == [before[0], "another", *before[1:]]


def test_peers_are_chosen_by_name_in_their_order_and_others_are_refused() -> None:
    peers = load_peers()
    chosen = [peer.name for peer in base.choose(peers, ("cold-boot", "liveclone"))]
    assert chosen == ["liveclone", "cold-boot"]
    assert base.choose(peers, ()) == peers
    with pytest.raises(ValueError, match="there is no docker"):
        base.choose(peers, ("docker",))


@pytest.mark.parametrize("expected", [Expected(INDEX), Expected(INDEX, TOKEN)])
def test_an_answer_must_have_the_index_and_the_token(expected: Expected) -> None:
    assert app.check({"index": INDEX, "token": TOKEN, "words": 1}, expected, "one") == TOKEN
    for wrong in ({"index": "e" * 64, "token": TOKEN}, {"index": INDEX, "token": "x"}, {"index": INDEX}, {}):
        with pytest.raises(GuestError) as raised:
            app.check(wrong, expected, "one")
        assert raised.value.code == "wrong-answer"


def test_a_copy_of_a_warm_one_must_have_its_token() -> None:
    with pytest.raises(GuestError):
        app.check({"index": INDEX, "token": TOKEN[::-1]}, Expected(INDEX, TOKEN), "one")


class Broken(Peer):
    """It can be opened, and what it starts fails."""

    name, words, order = "broken", "", 0
    obstacle = ""

    async def find_obstacle(self, lab: Lab) -> str:
        return self.obstacle

    async def find_version(self, lab: Lab) -> str:
        return "broken 1.0"

    @contextlib.asynccontextmanager
    async def open(self, lab: Lab, ram_mib: int) -> AsyncIterator[State]:
        yield Nothing()


class Nothing(State):
    expected = Expected(INDEX)
    make_s, pause_ms, touched_mib = 2.0, 3.0, 400.0

    async def start(self, count: int, reached: base.Reached) -> None:
        raise HypervisorError("it does not start", seen="no such\n device")

    async def end(self) -> None:
        pass


def measure(peer: Peer) -> Recorder:
    recorder = Recorder({"cpus": 2})
    plan = SimpleNamespace(clones=2)
    lab = cast("Lab", SimpleNamespace(recorder=recorder, plan=plan, say=lambda text: None))
    asyncio.run(_Size(lab, peer, 512, (1, 16), limit_s=100).measure())
    return recorder


def test_what_cannot_be_measured_is_told_with_its_reason_and_without_values(tmp_path: Path) -> None:
    peer = Broken()
    peer.obstacle = "it is not installed"
    entries = measure(peer).entries()
    series.save(entries, tmp_path / "peers.json")
    assert series.load(tmp_path / "peers.json") == entries
    assert [(entry.dimensions["clones"], entry.values) for entry in entries] == [(1, []), (16, [])]
    assert {entry.dimensions["obstacle"] for entry in entries} == {"it is not installed"}
    told = "not measured: broken (512 MiB, one; 512 MiB, 16 at once): it is not installed"
    assert told in text_of(table.render(entries))
    text_of(render_all(entries))  # by `./dev bench --from` too


def test_one_that_fails_keeps_what_was_measured_before() -> None:
    entries = measure(Broken()).entries()
    values = {entry.series: entry.values for entry in entries if entry.values}
    assert values == {"peer_make": [2.0], "peer_pause": [3.0]}
    left = [entry for entry in entries if not entry.values]
    assert {entry.dimensions["obstacle"] for entry in left} == {"it does not start: no such device"}
    assert {entry.dimensions["version"] for entry in entries} == {"broken 1.0"}


def test_many_at_once_are_left_out_where_they_would_take_too_long() -> None:
    size = _Size(cast("Lab", None), Broken(), 512, (1, 16), limit_s=100)
    size._check_limit(1, 1e6)
    size._check_limit(16, 99 * cpus() / 16)
    with pytest.raises(Refused, match="16 at once would take some 101 s"):
        size._check_limit(16, 101 * cpus() / 16)


def test_the_table_has_a_row_for_each_peer_and_size() -> None:
    recorder = Recorder({})
    about: dict[str, Any] = {"touched_mib": 400.0, "peer": "fast", "version": "fast 2.0"}
    for value in (1.0, 2.0, 4.0):
        recorder.add("peer_ready", "s", value, ram_mib=512, clones=1, **about)
        recorder.add("peer_ready", "s", value * 10, ram_mib=512, clones=16, **about)
        recorder.add("peer_memory", "MiB", value * 100, ram_mib=512, clones=16, **about)
        recorder.add("peer_ready", "s", value, ram_mib=4096, clones=1, **about)
    recorder.add("peer_make", "s", 0.5, ram_mib=512, clones=0, **about)
    first, second = table.rows(recorder.entries())
    assert (first.peer, first.ram_mib, second.ram_mib) == ("fast", 512, 4096)
    assert list(table._cells(first)) == (
        ["512", "400", "0.500", "", "2.00", "1.00", "4.00", "10.0", "20.0", "40.0", "200"]
    )
    assert second.many is None
    assert "fast: fast 2.0" in text_of(table.render(recorder.entries()))


def test_a_copied_save_image_is_another_domains_with_the_same_cards(tmp_path: Path) -> None:
    drive = tmp_path / "copy.qcow2"
    root = ElementTree.fromstring(rename(SAVED, "copy", drive))
    assert root.findtext("name") == "copy"
    assert root.findtext("uuid") not in ("", "11111111-1111-4111-8111-111111111111")
    assert [one.attrib for one in root.iterfind("devices/disk/source")] == [{"file": str(drive)}]
    assert root.find("devices/disk/backingStore") is None
    assert root.find("devices/channel/source") is None
    mac = root.find("devices/interface/mac")
    assert mac is not None
    assert mac.attrib == {"address": "52:54:00:00:00:01"}


def text_of(shown: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()
