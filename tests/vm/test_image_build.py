"""An image with everything that can be asked for, built for real, booted, and looked at from inside."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from liveclone.engine import run
from liveclone.host import process, unix_socket
from liveclone.images import build
from liveclone.images.library import ImageLibrary
from liveclone.images.spec import ImageSpec, Secret
from liveclone.model import base
from liveclone.model.image import Image
from liveclone.model.machine import Machine
from liveclone.units import GIB, MIB
from tests.conftest import Needs
from tests.machines import Lab

SCRIPT = """\
#!/bin/sh
set -eu
test "$(id -u)" = 0
test -x /opt/app/hello
useradd --create-home app
echo "the script ran in $PWD" > /etc/made-by-script
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, cache_folder: Path, needs: Needs) -> Image:
    needs("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mke2fs", root=True)
    folder = tmp_path_factory.mktemp("extras")
    (folder / "app").mkdir()
    (folder / "app" / "hello").write_text("#!/bin/sh\necho hello\n")
    (folder / "app" / "hello").chmod(0o755)
    (folder / "app" / "link").symlink_to("hello")
    (folder / "script").write_text(SCRIPT)
    spec = ImageSpec(
        name="extras",
        packages=("bc",),
        disk_bytes=2 * GIB,
        files=((folder / "app", "/opt/app"), (folder / "app" / "hello", "/bin/greet")),
        script=folder / "script",
        cmdline="liveclone.test=yes",
        root_password=Secret("open sesame"),
    )
    spec = replace(spec, name=f"test-extras-{build.recipe(spec)[:12]}")
    told: list[tuple[str, float | None]] = []
    images = cache_folder / "images"
    was_there = ImageLibrary(images).find(spec.name) is not None
    built = asyncio.run(
        build.build_image(spec, images, lambda phase, fraction: told.append((phase, fraction)))
    )
    fractions = [fraction for _, fraction in told if fraction is not None]
    assert fractions == sorted(fractions)
    assert was_there or {"installing packages", "converting the disk", "done"} <= {phase for phase, _ in told}
    assert [path.name for path in images.glob(f".{spec.name}.*")] == [f".{spec.name}.lock"]
    return built


@pytest.fixture(scope="module")
def machine(lab: Lab, image: Image) -> Iterator[Machine]:
    folder = lab.ctx.layout.images / image.name
    folder.mkdir()
    (folder / "manifest.json").write_bytes(base.encode(image))
    request = run.Request(image=image.name, name="extras", ram_bytes=384 * MIB)
    machine = lab.wait(run.run(lab.ctx, request))
    yield machine
    lab.remove(machine)


def test_what_was_asked_for_is_there(lab: Lab, machine: Machine) -> None:
    assert lab.shell(machine, "echo '6*7' | bc") == "42"
    assert lab.shell(machine, "/opt/app/hello; /opt/app/link; greet") == "hello\nhello\nhello"
    assert lab.shell(machine, "stat -c '%U:%G %a' /opt/app/hello") == "root:root 755"
    assert lab.shell(machine, "readlink /opt/app/link") == "hello"
    assert lab.shell(machine, "cat /etc/made-by-script") == "the script ran in /"
    assert lab.shell(machine, "id -un app; ls -ld /home/app | cut -c1-10").splitlines()[0] == "app"
    assert "liveclone.test=yes" in lab.shell(machine, "cat /proc/cmdline").split()
    assert int(lab.shell(machine, "findmnt -nbo SIZE /")) > 1.8 * GIB
    assert lab.shell(machine, "ls -A / | grep liveclone || true") == ""
    assert "open sesame" not in lab.shell(machine, "grep -rls 'open sesame' /etc /root /var /tmp || true")


def test_it_is_a_guest_of_ours(lab: Lab, machine: Machine) -> None:
    assert lab.shell(machine, "findmnt -no SOURCE,FSTYPE,OPTIONS / | cut -d, -f1").split() == [
        "/dev/vda",
        "ext4",
        "rw",
    ]
    assert lab.shell(machine, "ls /etc/liveclone/hooks.d").split() == ["cloned", "prepare", "resumed"]
    assert lab.shell(machine, "cat /var/lib/dbus/machine-id") == lab.shell(machine, "cat /etc/machine-id")
    assert {"virtio_net", "evdev", "button"} <= set(lab.shell(machine, "lsmod | cut -d' ' -f1").split())
    assert lab.shell(
        machine, "ls /sys/bus/acpi/drivers/vmgenid /sys/bus/platform/drivers/vmgenid 2>/dev/null || true"
    )
    assert lab.shell(machine, "ls /var/lib/apt/lists | grep -v -e partial -e lock || true") == ""
    assert lab.shell(machine, "apt-mark showhold | grep -c linux-image") != "0"


def test_its_services_are_up_and_none_failed(lab: Lab, machine: Machine) -> None:
    assert lab.shell(machine, "systemctl is-system-running --wait || true") == "running"
    assert (
        lab.shell(machine, "systemctl is-active ssh dbus systemd-logind serial-getty@ttyS0").split()
        == ["active"] * 4
    )
    assert lab.shell(machine, "systemctl list-timers --all --no-legend | grep -c apt || true") == "0"
    assert lab.shell(machine, "stat -c %a /dev/net/tun /dev/fuse").split() == ["666", "666"]
    assert (
        lab.shell(machine, "test -e /dev/virtio-ports/org.liveclone.agent.0 && ls /dev/disk/by-label")
        == "liveclone"
    )


def test_the_console_takes_the_password(lab: Lab, machine: Machine) -> None:
    with unix_socket.connect(lab.ctx.layout.machine(machine.id) / "run" / "console") as console:
        console.settimeout(60)

        def wait_for(words: str) -> None:
            seen = ""
            while words not in seen:
                data = console.recv(4096)
                assert data, f"the console ended: {seen}"
                seen += data.decode(errors="replace")

        console.sendall(b"\n")
        wait_for("login: ")
        console.sendall(b"root\n")
        wait_for("Password: ")
        console.sendall(b"open sesame\n")
        wait_for("root@")
        console.sendall(b"echo se''same; exit\n")
        wait_for("sesame")


def test_the_power_button_stops_it(lab: Lab, machine: Machine) -> None:
    stopped = lab.stop(machine)
    assert stopped.process is None


def test_a_build_that_is_interrupted_leaves_nothing(tmp_path: Path, needs: Needs) -> None:
    needs("mmdebstrap", "mke2fs", "qemu-img", root=True)

    async def story() -> None:
        under_way = asyncio.Event()

        def tell(phase: str, fraction: float | None) -> None:
            if phase == "installing the base system":  # it has mounts and processes now
                under_way.set()

        work = asyncio.create_task(build.build_image(ImageSpec(name="x"), tmp_path, tell))
        started = asyncio.create_task(under_way.wait())
        await asyncio.wait({work, started}, return_when=asyncio.FIRST_COMPLETED)
        assert not work.done(), work.exception()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(story())
    assert [path.name for path in tmp_path.iterdir()] == [".x.lock"]
    assert [line for _, line in process.find(str(tmp_path))] == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
