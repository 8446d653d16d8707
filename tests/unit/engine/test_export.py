"""A snapshot as one file: who may have it, what comes out of it in another home, and that a hostile one does nothing."""

from __future__ import annotations

import asyncio
import io
import secrets
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import blake3
import pytest
import zstandard

from liveclone.engine import capacity, export, importing, remove, run, seal
from liveclone.engine.snapshot_plan import Scrubbing
from liveclone.errors import Corrupt, LivecloneError, NotFound, Refused, Unsupported
from liveclone.formats import qcow2
from liveclone.identity.signature import HostKey
from liveclone.model import base
from liveclone.model.export import Index, Member, SignedIndex
from liveclone.model.machine import MemorySource
from liveclone.model.snapshot import Snapshot, SnapshotState

from .world import IMAGE, World

Files = dict[str, bytes]
Names = ("manifest.json", "key", "state", "disk.qcow2", "memory")


@pytest.fixture
def elsewhere(world: World, tmp_path: Path) -> Iterator[World]:
    """A second home, without a machine."""
    other = World(tmp_path / "elsewhere", world.hot.with_name(f"elsewhere-{secrets.token_hex(4)}"))
    yield other
    assert other.processes() == []
    shutil.rmtree(other.hot, ignore_errors=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    return folder / "clean.lcs"


async def take(world: World, name: str = "clean") -> Snapshot:
    """Take a scrubbed snapshot of a machine with something on its disk, sealed."""
    await run.run(world.ctx, run.Request(image=IMAGE, name="web", ram_bytes=run.LEAST_RAM))
    await world.write("web", "/srv/data", "seventeen")
    await world.snapshot("web", "below")
    taken = await world.snapshot("web", name, scrub=Scrubbing())
    return await asyncio.to_thread(seal.seal, world.ctx, taken.id)


def check_empty(world: World) -> None:
    layout = world.ctx.layout
    locks = (layout.home / "locks").glob("snapshot-*")
    assert [*layout.snapshots.iterdir(), *layout.hot.iterdir(), *locks] == []


async def test_clones_start_in_another_home(world: World, elsewhere: World, file: Path) -> None:
    taken = await take(world)
    written = await export.export(world.ctx, "clean", file)
    assert written.unproven == ""
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(file.parent.iterdir()) == [file]
    await world.remove_all()

    imported = await importing.import_(elsewhere.ctx, file)
    found = imported.snapshot
    assert (imported.key, imported.is_own) == (written.key, False)
    assert (found.name, found.state, found.layers, found.source) == (
        "clean",
        SnapshotState.SEALED,
        (),
        taken.source,
    )
    assert found.id != taken.id
    assert found.memory.digest == taken.memory.digest
    assert found == elsewhere.ctx.snapshots.load(found.id)
    (clone,) = await elsewhere.clone("clean")
    assert clone.error is None
    assert clone.machine is not None and clone.machine.memory is not None
    assert clone.machine.memory.source is MemorySource.PRIVATE_HOT
    assert await elsewhere.read(clone.name, "/srv/data") == "seventeen"
    assert clone.evidence is not None and clone.evidence.verified
    assert await elsewhere.find_faults() == []
    # Of the file itself nothing is needed any more, and a clone outlives the snapshot.
    file.unlink()
    await remove.remove_snapshot(elsewhere.ctx, "clean")
    assert await elsewhere.read(clone.name, "/srv/data") == "seventeen"
    await elsewhere.remove_all()


async def test_the_same_home_may_have_it_twice(world: World, file: Path) -> None:
    await take(world)
    await export.export(world.ctx, "clean", file)
    with pytest.raises(Refused) as refused:
        await importing.import_(world.ctx, file)
    assert refused.value.code == "name-taken"
    again = await importing.import_(world.ctx, file, "again")
    assert again.is_own
    assert await world.find_faults() == []
    await world.remove_all()


async def test_without_room_on_tmpfs_clones_map_the_sealed_image(
    world: World, elsewhere: World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await take(world)
    await export.export(world.ctx, "clean", file)
    await world.remove_all()

    def refuse(*_: object) -> None:
        raise Refused("full", code="hot-full")

    monkeypatch.setattr(capacity, "check_hot", refuse)
    imported = await importing.import_(elsewhere.ctx, file)
    assert imported.snapshot.hot is None
    (clone,) = await elsewhere.clone("clean")
    assert clone.error is None
    assert clone.machine is not None and clone.machine.memory is not None
    assert clone.machine.memory.source is MemorySource.PRIVATE_DISK
    image = elsewhere.ctx.layout.snapshot(imported.snapshot.id) / "memory"
    assert image.stat().st_blocks * 512 < image.stat().st_size // 2, "its holes were filled"
    await elsewhere.remove_all()


async def test_what_is_not_proven_needs_somebody_who_knows(world: World, file: Path) -> None:
    await world.run("web")
    taken = await world.snapshot("web", "plain")
    await asyncio.to_thread(seal.seal, world.ctx, taken.id)
    with pytest.raises(Refused) as refused:
        await export.export(world.ctx, "plain", file)
    assert refused.value.code == "not-proven"
    assert list(file.parent.iterdir()) == []
    written = await export.export(world.ctx, "plain", file, i_know=True)
    assert "without --scrub" in written.unproven
    await world.remove_all()


async def test_no_file_is_overwritten(world: World, file: Path) -> None:
    await take(world)
    file.write_text("mine")
    with pytest.raises(Refused) as refused:
        await export.export(world.ctx, "clean", file)
    assert refused.value.code == "file-exists"
    assert file.read_text() == "mine"
    with pytest.raises(NotFound):
        await export.export(world.ctx, "clean", file / "no" / "folder")
    await world.remove_all()


async def test_one_of_a_libvirt_domain_stays(world: World, file: Path) -> None:
    taken = await take(world)
    world.ctx.snapshots.save(taken.replace(driver="libvirt"))
    with pytest.raises(Unsupported):
        await export.export(world.ctx, "clean", file)
    assert list(file.parent.iterdir()) == []
    world.ctx.snapshots.save(taken)
    await world.remove_all()


async def test_a_damaged_part_is_not_exported(world: World, file: Path) -> None:
    """The hot image is good, and the sealed copy is what would go out."""
    taken = await take(world)
    memory = world.ctx.layout.snapshot(taken.id) / "memory"
    memory.chmod(0o600)
    with memory.open("r+b") as image:
        image.seek(memory.stat().st_size // 2)
        image.write(b"x")
    with pytest.raises(Corrupt):
        await export.export(world.ctx, "clean", file)
    assert list(file.parent.iterdir()) == []
    assert await world.find_faults() == []
    await world.remove_all()


@pytest.mark.parametrize("point", ["export.collected", "import.read"])
async def test_a_failure_leaves_nothing(
    world: World, elsewhere: World, file: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from liveclone import trace

    await take(world)
    monkeypatch.setattr(trace, "_faults", {point: "raise"})
    if point == "import.read":
        await export.export(world.ctx, "clean", file)
    with pytest.raises(LivecloneError) as failed:
        await (
            export.export(world.ctx, "clean", file)
            if point == "export.collected"
            else importing.import_(elsewhere.ctx, file)
        )
    assert failed.value.code == "fault-injected"
    assert list(file.parent.iterdir()) == ([] if point == "export.collected" else [file])
    assert await world.find_faults() == []
    check_empty(elsewhere)
    await world.remove_all()


@pytest.mark.parametrize("operation", ["export", "import"])
async def test_a_cancelled_one_leaves_nothing(
    world: World, elsewhere: World, file: Path, operation: str
) -> None:
    await take(world)
    if operation == "import":
        await export.export(world.ctx, "clean", file)
    subject = world.ctx if operation == "export" else elsewhere.ctx
    loop = asyncio.get_running_loop()
    seen = []

    def stop(step: str, fraction: float | None = None) -> None:
        if fraction and step.endswith("memory"):
            seen.append(step)
            loop.call_soon_threadsafe(task.cancel)

    subject.progress = stop
    task: asyncio.Task[object] = asyncio.ensure_future(
        export.export(world.ctx, "clean", file)
        if operation == "export"
        else importing.import_(elsewhere.ctx, file)
    )
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 0 < len(seen) < 100
    assert list(file.parent.iterdir()) == ([] if operation == "export" else [file])
    assert await world.find_faults() == []
    check_empty(elsewhere)
    await world.remove_all()


# ---------------------------------------------------------------------- files from anybody


def unpack(file: Path) -> Files:
    with file.open("rb") as packed:
        data = zstandard.ZstdDecompressor().stream_reader(packed).read()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]


def pack(
    files: Files, path: Path, *, infos: dict[str, tarfile.TarInfo] | None = None, more: bytes = b""
) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            info = (infos or {}).get(name) or tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    path.write_bytes(zstandard.ZstdCompressor(level=1).compress(data.getvalue() + more))


def sign(files: Files, folder: Path, **sizes: int) -> Files:
    """Return the files with an index that a stranger has signed."""
    members = tuple(
        Member(name=name, size_bytes=sizes.get(name, len(data)), digest=blake3.blake3(data).hexdigest())
        for name, data in files.items()
        if name != "index.json"
    )
    index = base.builtins(Index(exported_at=base.now(), snapshot="clean", members=members))
    key = HostKey(folder / "stranger.key", folder / "stranger.lock")
    return {"index.json": base.encode(SignedIndex(index=index, signature=key.sign(index)))} | files


def manifest(files: Files, **changes: object) -> Files:
    found = base.decode(files["manifest.json"], Snapshot, "manifest.json")
    return files | {"manifest.json": base.encode(found.replace(**changes))}


def hardware(files: Files, **changes: object) -> Files:
    found = base.decode(files["manifest.json"], Snapshot, "manifest.json")
    return manifest(files, hardware=found.hardware.replace(**changes))


def boot(files: Files, **changes: object) -> Files:
    found = base.decode(files["manifest.json"], Snapshot, "manifest.json")
    return manifest(files, boot=found.boot.replace(**changes))


def renamed(files: Files, old: str, new: str) -> Files:
    return {new if name == old else name: data for name, data in files.items()}


def on_another_file(files: Files) -> Files:
    size_bytes = qcow2.parse_header(files["disk.qcow2"]).size_bytes
    return files | {"disk.qcow2": qcow2.render_overlay("/etc/shadow", "raw", size_bytes)}


# Each well signed, by a stranger.
FORGED: dict[str, Callable[[Files], Files]] = {
    "a path upwards": lambda files: renamed(files, "key", "../key"),
    "an absolute path": lambda files: renamed(files, "key", "/tmp/key"),
    "one more file": lambda files: files | {"evil": b"x"},
    "one file less": lambda files: {name: data for name, data in files.items() if name != "key"},
    "a short key": lambda files: files | {"key": b"x" * 31},
    "no manifest": lambda files: files | {"manifest.json": b"{}"},
    "no disk": lambda files: files | {"disk.qcow2": b"x" * 4096},
    "a disk on another file": on_another_file,
    "a larger disk": lambda files: manifest(files, disk_bytes=1 << 40),
    "other RAM": lambda files: hardware(files, ram_bytes=4096),
    "options in the machine type": lambda files: hardware(files, machine_type="q35,firmware=/etc/shadow"),
    "a file in the model": lambda files: hardware(files, cpu="max,x=/etc/shadow"),
    "many processors": lambda files: hardware(files, vcpus=1 << 40),
    "a kernel of ours": lambda files: boot(files, kernel="/boot/vmlinuz"),
    "half a command line": lambda files: boot(files, cmdline="a\0b"),
    "a name that is none": lambda files: manifest(files, name="../x"),
    "many NICs": lambda files: manifest(files, nics=("a", "b")),
    "another driver": lambda files: manifest(files, driver="libvirt"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files of a good export."""
    home = tmp_path_factory.mktemp("good")
    world = World(home / "home", Path("/dev/shm") / f"good-{secrets.token_hex(4)}")
    file = home / "clean.lcs"

    async def make() -> None:
        taken = await take(world)
        await asyncio.to_thread(seal.seal, world.ctx, taken.id)
        await export.export(world.ctx, "clean", file)
        await world.remove_all()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seal, "start", lambda ctx, snapshot: None)
        asyncio.run(make())
    asyncio.run(world.aclose())
    return unpack(file)


async def refuse(world: World, file: Path) -> LivecloneError:
    """Import what cannot be imported; nothing may be left of it."""
    before = sorted(file.parent.parent.rglob("*"))
    with pytest.raises(LivecloneError) as refused:
        await importing.import_(world.ctx, file)
    assert isinstance(refused.value, Corrupt | Refused | Unsupported)
    assert refused.value.next_step
    check_empty(world)
    assert sorted(file.parent.parent.rglob("*")) == before
    return refused.value


async def test_a_strangers_good_one_is_taken(elsewhere: World, good: Files, file: Path) -> None:
    """Otherwise all those below might be refused for another reason."""
    pack(sign({name: good[name] for name in Names}, file.parent), file)
    imported = await importing.import_(elsewhere.ctx, file)
    assert imported.snapshot.name == "clean"
    await elsewhere.remove_all()


@pytest.mark.parametrize("forged", FORGED)
async def test_a_forged_one_is_refused(elsewhere: World, good: Files, file: Path, forged: str) -> None:
    pack(sign(FORGED[forged]({name: good[name] for name in Names}), file.parent), file)
    await refuse(elsewhere, file)


async def test_more_than_there_is_room_for_is_refused_before_it_is_read(
    elsewhere: World, good: Files, file: Path
) -> None:
    files = sign({name: good[name] for name in Names}, file.parent, memory=1 << 60)
    pack({"index.json": files["index.json"]}, file)
    assert (await refuse(elsewhere, file)).code == "disk-full"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
async def test_one_that_is_cut_off_is_refused(
    elsewhere: World, good: Files, file: Path, share: float
) -> None:
    pack(good, file)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    assert (await refuse(elsewhere, file)).code == "bad-export"


@pytest.mark.parametrize("name", ["index.json", *Names])
async def test_a_changed_byte_is_found(elsewhere: World, good: Files, file: Path, name: str) -> None:
    data = bytearray(good[name])
    data[len(data) // 2] ^= 1
    pack(good | {name: bytes(data)}, file)
    assert isinstance(await refuse(elsewhere, file), Corrupt)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"x", b"L"]
)
async def test_no_member_is_anything_but_a_file(
    elsewhere: World, good: Files, file: Path, kind: bytes
) -> None:
    info = tarfile.TarInfo("key")
    info.type, info.linkname = kind, "/etc/shadow"
    pack(good, file, infos={"key": info})
    assert (await refuse(elsewhere, file)).code == "bad-export"


@pytest.mark.parametrize(
    "data",
    [b"", b"no archive at all", b'{"index": ' + b"[" * 200_000, bytes(2 << 20)],
    ids=["empty", "text", "deep", "zeros"],
)
async def test_what_is_no_export_is_refused(elsewhere: World, file: Path, data: bytes) -> None:
    file.write_bytes(data)
    assert (await refuse(elsewhere, file)).code == "bad-export"
    pack({"index.json": data}, file)
    assert isinstance(await refuse(elsewhere, file), Corrupt)


async def test_an_index_that_was_changed_after_its_signing_is_refused(
    elsewhere: World, good: Files, file: Path
) -> None:
    signed = base.decode(good["index.json"], SignedIndex, "index.json")
    changed = signed.replace(index=signed.index | {"snapshot": "another"})
    pack(good | {"index.json": base.encode(changed)}, file)
    assert (await refuse(elsewhere, file)).seen == "its index is not what was signed"


async def test_nothing_may_follow(elsewhere: World, good: Files, file: Path) -> None:
    pack(good, file, more=b"x")
    assert (await refuse(elsewhere, file)).code == "bad-export"


async def test_a_file_that_is_not_there(elsewhere: World, file: Path) -> None:
    with pytest.raises(NotFound):
        await importing.import_(elsewhere.ctx, file)
    check_empty(elsewhere)
