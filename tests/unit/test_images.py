"""Specifications, their digests, what goes into a guest, and the library: all without a build."""

from __future__ import annotations

import asyncio
import datetime
import functools
import tarfile
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from liveclone.errors import Conflict, Corrupt, LivecloneError, NotFound, Refused, Unsupported
from liveclone.host.apt_sources import Mirror, Source
from liveclone.images import build, importing, library, rootfs, system
from liveclone.images.library import ImageLibrary
from liveclone.images.spec import ImageSpec, Secret, parse_copy
from liveclone.model.image import Image
from liveclone.model.machine import Boot
from liveclone.units import GIB, MIB

MIRROR = Mirror(Source("https://mirror.example/debian", ("trixie",), ("main",)))


def in_loop(test: Callable[[Path], Coroutine[None, None, None]]) -> Callable[[Path], None]:
    """Let a test be a coroutine, in an event loop of its own."""

    @functools.wraps(test)
    def run(tmp_path: Path) -> None:
        asyncio.run(test(tmp_path))

    return run


def image(folder: Path, name: str, recipe: str = "r", day: int = 1) -> Image:
    return Image(
        name=name,
        created_at=datetime.datetime(2026, 1, day, tzinfo=datetime.UTC),
        disk=str(folder / name / "disk.qcow2"),
        disk_bytes=GIB,
        boot=Boot(),
        recipe=recipe,
    )


def add(images: ImageLibrary, value: Image, *, replace: bool = False) -> None:
    parts = images.new_folder(value.name)
    (parts / library.DISK).write_bytes(value.recipe.encode())
    images.add(value, parts, replace=replace)


# The specification


@pytest.mark.parametrize(
    "spec",
    [
        ImageSpec(name="../x"),
        ImageSpec(name="x", suite="trixie main"),
        ImageSpec(name="x", suite="--help"),
        ImageSpec(name="x", packages=("nginx", "$(id)")),
        ImageSpec(name="x", packages=("-o",)),
        ImageSpec(name="x", kernel=""),
        ImageSpec(name="x", disk_bytes=512 * MIB),
        ImageSpec(name="x", disk_bytes=GIB + 1),
        ImageSpec(name="x", cmdline="a\nb"),
        ImageSpec(name="x", root_password=Secret("a\nb")),
        ImageSpec(name="x", root_password=Secret("")),
        ImageSpec(name="x", files=((Path("/etc/hostname"), "etc/x"),)),
        ImageSpec(name="x", files=((Path("/etc/hostname"), "/etc/../x"),)),
        ImageSpec(name="x", files=((Path("/etc/hostname"), "/"),)),
    ],
)
def test_what_has_no_meaning_is_refused(spec: ImageSpec) -> None:
    with pytest.raises(Refused):
        spec.check()


@pytest.mark.parametrize(
    "spec",
    [ImageSpec(name="x", files=((Path("/no/such"), "/x"),)), ImageSpec(name="x", script=Path("/no/such"))],
)
def test_files_must_be_there(spec: ImageSpec) -> None:
    with pytest.raises(NotFound, match="/no/such"):
        spec.check()


def test_ordinary_specifications_pass() -> None:
    ImageSpec(name="x").check()
    ImageSpec(name="x", packages=("libstdc++6", "nginx=1.22.1-9", "python3/trixie", "gcc:amd64")).check()


def test_the_recipe_follows_everything_but_name_and_mirror(tmp_path: Path) -> None:
    app, script = tmp_path / "app", tmp_path / "script"
    app.mkdir()
    (app / "a").write_text("one")
    script.write_text("#!/bin/sh\n")
    spec = ImageSpec(name="x", files=((app, "/opt/app"),), script=script, packages=("b", "a"))
    digest = spec.digest("agent")
    assert (
        ImageSpec(**{**vars(spec), "name": "y", "mirror": "http://other.example"}).digest("agent") == digest
    )
    assert ImageSpec(**{**vars(spec), "packages": ("a", "b", "a")}).digest("agent") == digest
    changes = {
        "suite": "forky",
        "packages": ("a",),
        "disk_bytes": 8 * GIB,
        "files": ((app, "/opt/other"),),
        "script": None,
        "cmdline": "debug",
        "root_password": Secret("x"),
        "kernel": "linux-image-amd64",
    }
    others = {ImageSpec(**{**vars(spec), name: value}).digest("agent") for name, value in changes.items()}
    others |= {spec.digest("another agent")}
    (app / "a").write_text("two")
    others |= {spec.digest("agent")}
    (app / "a").chmod(0o755)
    others |= {spec.digest("agent")}
    (app / "link").symlink_to("a")
    others |= {spec.digest("agent")}
    script.write_text("#!/bin/sh\nexit\n")
    others |= {spec.digest("agent")}
    assert len(others) == len(changes) + 5
    assert digest not in others


def test_a_password_is_not_printed() -> None:
    spec = ImageSpec(name="x", root_password=Secret("hunter2"))
    assert "hunter2" not in f"{spec} {spec!r} {spec.root_password}"


def test_what_to_copy_is_written_as_host_and_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_copy("app:/opt/app") == (Path("app"), "/opt/app")
    assert parse_copy("app/x:/opt/") == (Path("app/x"), "/opt/x")
    monkeypatch.chdir(tmp_path)
    assert parse_copy("app") == (Path("app"), f"{tmp_path}/app")
    for bad in ("app:opt", "app:/../x", "app:/"):
        with pytest.raises(Refused):
            parse_copy(bad if bad != "app:/" else "/:/")


# What is built


def test_the_command_to_build_with(tmp_path: Path) -> None:
    spec = ImageSpec(name="x", packages=("nginx",))
    argv = rootfs.render_mmdebstrap(spec, MIRROR, tmp_path / "it's", tmp_path / "root.tar", root=True)
    assert argv[argv.index("mmdebstrap") + 1] == "--mode=root"
    packages = (
        next(word for word in argv if word.startswith("--include=")).removeprefix("--include=").split(",")
    )
    assert {"nginx", "ca-certificates", "linux-image-cloud-amd64", "systemd-sysv", "python3"} <= set(packages)
    assert f"--customize-hook=upload '{tmp_path}/it'\\''s' /.liveclone.tar" in argv
    assert argv[-3:] == ["trixie", str(tmp_path / "root.tar"), "-"]
    plain = rootfs.render_mmdebstrap(spec, MIRROR, tmp_path / "p", tmp_path / "root.tar", root=False)
    assert "unshare" not in plain and "--mode=unshare" in plain
    for words in (argv, plain):
        assert words[0] == "setpriv" and words[1].startswith("--pdeathsig=")


def test_the_payload_belongs_to_root_and_has_what_the_guest_needs(tmp_path: Path) -> None:
    app = tmp_path / "app"
    (app / "sub").mkdir(parents=True)
    (app / "sub" / "run").write_text("#!/bin/sh\n")
    (app / "sub" / "run").chmod(0o750)
    (app / "again").hardlink_to(app / "sub" / "run")
    (app / "link").symlink_to("sub/run")
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    spec = ImageSpec(
        name="x", files=((app, "/opt/app"), (script, "/etc/s")), script=script, root_password=Secret("pw")
    )
    rootfs.write_payload(spec, tmp_path / "payload.tar")
    with tarfile.open(tmp_path / "payload.tar") as archive:
        members = {member.name: member for member in archive}

        def content(name: str) -> bytes:
            file = archive.extractfile(name)
            assert file is not None
            return file.read()

        assert {(member.uid, member.gid) for member in members.values()} == {(0, 0)}
        assert not any(name.startswith("/") for name in members)
        assert content("opt/app/again") == content("opt/app/sub/run") == b"#!/bin/sh\n"
        assert members["opt/app/sub/run"].mode == 0o750
        assert members["opt/app/link"].linkname == "sub/run"
        assert content("etc/s") == b"#!/bin/sh\n"
        assert content("etc/hostname") == b"liveclone\n"
        assert content("usr/lib/liveclone/agent.pyz").startswith(b"PK")
        assert b"WantedBy=" in content("etc/systemd/system/liveclone-agent.service")
        assert members["var/lib/dbus/machine-id"].linkname == "/etc/machine-id"
        assert members["etc/systemd/system/systemd-firstboot.service"].linkname == "/dev/null"
        for event in ("prepare", "cloned", "resumed"):
            assert members[f"etc/liveclone/hooks.d/{event}"].isdir()
        build_files = {name for name in members if name.startswith(system.BUILD.lstrip("/"))}
        assert build_files == {".liveclone/setup", ".liveclone/script", ".liveclone/password"}
        assert members[".liveclone/password"].mode == 0o600
        assert f"rm -rf {system.BUILD}\n" in content(".liveclone/setup").decode()


def test_no_password_no_login(tmp_path: Path) -> None:
    rootfs.write_payload(ImageSpec(name="x"), tmp_path / "payload.tar")
    with tarfile.open(tmp_path / "payload.tar") as archive:
        assert ".liveclone/password" not in archive.getnames()


@in_loop
async def test_a_recipe_that_is_there_is_returned_at_once(tmp_path: Path) -> None:
    images = ImageLibrary(tmp_path)
    spec = ImageSpec(name="x", mirror="http://unreachable.example")
    add(images, image(tmp_path, "x", recipe=build.recipe(spec)))
    told: list[str] = []
    found = await build.build_image(spec, tmp_path, lambda phase, fraction: told.append(phase))
    assert found == images.load("x")
    assert told == []


@in_loop
async def test_a_name_is_not_taken_from_another_recipe(tmp_path: Path) -> None:
    images = ImageLibrary(tmp_path)
    add(images, image(tmp_path, "x", recipe="another"))
    with pytest.raises(Conflict) as caught:
        await build.build_image(ImageSpec(name="x"), tmp_path)
    assert caught.value.code == "image-exists"
    assert images.load("x").recipe == "another"


def test_a_missing_tool_is_named_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(rootfs._ENV, "PATH", str(tmp_path))
    for program, package in (
        ("mmdebstrap", "mmdebstrap"),
        ("mke2fs", "e2fsprogs"),
        ("qemu-img", "qemu-utils"),
    ):
        with pytest.raises(Unsupported) as caught:
            rootfs.check_host()
        assert (caught.value.code, caught.value.on) == ("missing-tool", program)
        assert caught.value.next_step == f"apt install {package}"
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)


@in_loop
async def test_a_build_that_cannot_begin_leaves_nothing(tmp_path: Path) -> None:
    for spec in (ImageSpec(name="x", disk_bytes=1), ImageSpec(name="x", script=tmp_path / "none")):
        with pytest.raises(LivecloneError):
            await build.build_image(spec, tmp_path / "images")
    assert not (tmp_path / "images").exists()


# The library


def test_images_are_listed_by_age_and_half_made_ones_are_not(tmp_path: Path) -> None:
    images = ImageLibrary(tmp_path)
    assert images.list() == []
    add(images, image(tmp_path, "b", day=1))
    add(images, image(tmp_path, "a", day=2))
    images.new_folder("c")
    (tmp_path / "d").mkdir()
    assert [found.name for found in images.list()] == ["b", "a"]


def test_an_image_that_is_not_there_is_named_with_those_spelt_alike(tmp_path: Path) -> None:
    images = ImageLibrary(tmp_path)
    with pytest.raises(NotFound, match="no image debian") as caught:
        images.load("debian")
    assert "image build" in caught.value.next_step
    add(images, image(tmp_path, "debian"))
    with pytest.raises(NotFound) as caught:
        images.load("debain")
    assert "debian" in caught.value.next_step
    for hostile in ("../debian", "", "x" * 300, ".debian"):
        with pytest.raises(Refused):
            images.load(hostile)


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    images = ImageLibrary(tmp_path)
    add(images, image(tmp_path, "x"))
    (tmp_path / "x" / "manifest.json").write_text("{")
    with pytest.raises(Corrupt, match="manifest"):
        images.load("x")


def test_a_name_is_given_once_unless_it_may_be_replaced(tmp_path: Path) -> None:
    images = ImageLibrary(tmp_path)
    add(images, image(tmp_path, "x", recipe="old"))
    with pytest.raises(Conflict):
        add(images, image(tmp_path, "x", recipe="new"))
    assert (tmp_path / "x" / library.DISK).read_bytes() == b"old"
    add(images, image(tmp_path, "x", recipe="new"), replace=True)
    assert images.load("x").recipe == "new"
    assert (tmp_path / "x" / library.DISK).read_bytes() == b"new"


@in_loop
async def test_removing_leaves_nothing_but_the_lock(tmp_path: Path) -> None:
    images = ImageLibrary(tmp_path)
    add(images, image(tmp_path, "x"))
    add(images, image(tmp_path, "y"))
    await images.remove("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.lock", "y"]
    with pytest.raises(NotFound):
        await images.remove("x")


@in_loop
async def test_what_a_dead_build_left_goes_with_the_next(tmp_path: Path) -> None:
    images = ImageLibrary(tmp_path)
    left, other = images.new_folder("x"), images.new_folder("x-2")
    (left / "big").write_bytes(b"x")
    async with images.hold("x", "building image x"):
        assert not left.exists()
        assert other.exists()


@in_loop
async def test_one_builds_and_the_next_waits(tmp_path: Path) -> None:
    images = ImageLibrary(tmp_path)
    order: list[str] = []
    first_is_in = asyncio.Event()

    async def first() -> None:
        async with images.hold("x", "building image x"):
            first_is_in.set()
            with pytest.raises(Conflict, match="building image x"):
                async with images.hold("x", "removing image x", deadline_s=0):
                    order.append("never")
            order.append("first")

    async def second() -> None:
        await first_is_in.wait()
        async with images.hold("x", "building image x", deadline_s=20):
            order.append("second")

    async with asyncio.TaskGroup() as group:
        group.create_task(first())
        group.create_task(second())
    assert order == ["first", "second"]


# Disks from elsewhere


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"KDMV", "vmdk"),
        (b"vhdxfile", "vhdx"),
        (b"\xfd7zXZ\0", "unpack it first"),
        (b"\x28\xb5\x2f\xfd", "unpack it first"),
        (bytes(0x8001) + b"CD001", "CD"),
        (b"short", "no disk"),
    ],
)
def test_what_is_no_disk_is_refused_with_its_remedy(tmp_path: Path, start: bytes, words: str) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(start.ljust(600_000, b"\0"))
    with pytest.raises(Refused) as caught:
        importing.inspect(path)
    assert words in f"{caught.value.message} {caught.value.next_step}"


def test_a_boot_sector_is_code_and_a_signature() -> None:
    assert importing.has_boot_code(b"\xeb\x63".ljust(510, b"\0") + b"\x55\xaa")
    assert not importing.has_boot_code(bytes(510) + b"\x55\xaa")  # a partition table alone, as on UEFI disks
    assert not importing.has_boot_code(b"\xeb\x63".ljust(512, b"\0"))
    assert not importing.has_boot_code(b"")
