"""The first snapshot of a machine, by handover, as its clients, its guest and the host see it."""

from __future__ import annotations

import json
from pathlib import Path

from liveclone.host import process
from liveclone.model.identity import ItemStatus
from liveclone.model.machine import Machine, MemorySource
from liveclone.model.snapshot import CaptureMethod
from tests.machines import Lab, Ticks
from tests.vm.conftest import LINES, Story


def test_the_source_goes_on_in_another_process(story: Story) -> None:
    assert story.snapshot.capture.method is CaptureMethod.HANDOVER
    assert story.before.process != story.after.process
    assert not process.is_alive(story.before.process)
    assert process.is_alive(story.after.process)
    assert story.before.memory and story.after.memory
    assert story.before.memory.source is MemorySource.SHARED_HOT
    assert story.after.memory.source is MemorySource.PRIVATE_HOT
    # Nothing was copied: the image is the very file that the source's RAM was.
    assert story.snapshot.hot is not None
    assert story.snapshot.hot.path == story.after.memory.path
    assert story.snapshot.hot.inode == Path(story.after.memory.path).stat().st_ino == story.ram_inode


def test_an_open_connection_goes_on_in_order(story: Story) -> None:
    # `Ticks` has seen each number once, in order, over one connection; here only that it did go on.
    assert story.lines_before == LINES
    assert story.lines_after >= 2 * LINES


def test_mac_and_addresses_stay(lab: Lab, story: Story, source: Machine) -> None:
    assert story.after.nics == story.before.nics
    assert story.app_after["mac"] == story.app_before["mac"] == story.before.nics[0].mac
    assert story.before.nics[0].address in lab.shell(source, "ip -br -4 address")


def test_memory_goes_on(story: Story) -> None:
    assert story.app_after["token"] == story.app_before["token"]
    assert story.app_after["hostname"] == story.app_before["hostname"] == "web"
    assert story.app_after["machine_id"] == story.app_before["machine_id"]
    assert story.app_after["host_key"] == story.app_before["host_key"]


def test_the_guest_did_not_boot_again(lab: Lab, source: Machine, story: Story) -> None:
    assert story.boot_after == story.boot_before
    assert float(lab.shell(source, "cut -d' ' -f1 /proc/uptime")) > story.uptime_before_s


def test_the_pause_was_measured_by_qemu(story: Story) -> None:
    assert 0 < story.snapshot.capture.pause_ns < 10**10
    assert story.snapshot.capture.pause_ns < story.snapshot.capture.until_clonable_ns


def test_the_source_has_a_new_generation(lab: Lab, story: Story) -> None:
    before, after = story.before.generation, story.after.generation
    assert after.counter == before.counter + 1
    assert after.uuid != before.uuid
    assert story.generation_after == {"counter": after.counter, "uuid": after.uuid}
    assert story.snapshot.source_generation == before.uuid
    assert story.vmgenid_before != story.vmgenid_after


def test_the_sources_entropy_was_renewed(lab: Lab, story: Story, source: Machine) -> None:
    evidence = lab.ctx.evidence(story.snapshot.id).load(source.id)
    assert evidence is not None
    (rng,) = [item for item in evidence.items if item.item == "rng"]
    assert rng.status is ItemStatus.CHANGED
    assert rng.before and rng.after and rng.before != rng.after
    observed = {item.item: item.before for item in story.snapshot.items}
    assert rng.after != observed["rng"]
    assert story.app_after["random"] != story.app_before["random"]


def test_the_disk_goes_on_in_a_layer_of_its_own(lab: Lab, story: Story, source: Machine) -> None:
    assert story.after.disk != story.before.disk
    assert story.after.layers[0] == story.snapshot.id
    assert lab.shell(source, "cat /var/lib/written /var/lib/new") == "later\nnew"
    layers = lab.qmp(source, "query-block")[0]["inserted"]["image"]
    assert layers["filename"] == story.after.disk
    assert layers["backing-image"]["filename"] == str(
        lab.ctx.layout.snapshot(story.snapshot.id) / "disk.qcow2"
    )


def test_new_connections_reach_it(lab: Lab, source: Machine, story: Story) -> None:
    async def read() -> str:
        ticks = await Ticks.open(lab, source)
        await ticks.more(3)
        await ticks.close()
        return ticks.token

    assert lab.wait(read()) == story.app_before["token"]


def test_the_manifest_on_disk_says_all_that(lab: Lab, story: Story) -> None:
    """What a person or a program reads in the file is the same as what the product says."""
    folder = lab.ctx.layout.snapshot(story.snapshot.id)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["name"] == "warm"
    assert manifest["hardware"]["hypervisor"].startswith("qemu ")
    assert manifest["device_state"]["size_bytes"] == (folder / "state").stat().st_size
    assert manifest["capture"]["method"] == "handover"
