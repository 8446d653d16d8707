"""A libvirt domain with UEFI firmware: its variables are of the instant of its memory, and each clone has its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from liveclone.drivers.libvirt import constant, nvram, registry
from liveclone.engine import adopt, wiring
from liveclone.engine import settings as engine_settings
from liveclone.engine.context import open_context
from liveclone.formats.domain_xml import parse_domain
from liveclone.model.image import Image
from liveclone.model.machine import Machine
from liveclone.model.network import NetworkKind
from tests.conftest import Needs
from tests.libvirt_domains import Shape, make_domain, take_bootable_kernel, wait_for_agent
from tests.libvirtd import Libvirtd
from tests.machines import Lab, Operation, check_clear

FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
# The kernel lets such be written again and again (EFI_CRASH); others it makes immutable.
VARIABLE = "/sys/firmware/efi/efivars/Note-cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0"
MOUNT = (
    "grep -q efivarfs /proc/mounts || { modprobe efivarfs && mount -t efivarfs v /sys/firmware/efi/efivars; }"
)
ADDRESS_WAIT_S = 0.2  # nobody gives a card one
PERSISTENT = 2  # VIR_DOMAIN_XML_INACTIVE
UNDEFINE_NVRAM = 4  # VIR_DOMAIN_UNDEFINE_NVRAM


@dataclass(frozen=True)
class Booted:
    """A domain that is adopted, the file of its variables, and its home."""

    home: Lab
    domain: Any
    machine: Machine
    variables: Path

    def note(self, machine: Machine, text: str) -> None:
        """Let the guest write a variable that stays."""
        self.home.shell(machine, f"{MOUNT}; printf '\\7\\0\\0\\0{text}' >{VARIABLE}")

    def read(self, machine: Machine) -> str:
        """Return what the variable is to a machine's guest."""
        return self.home.shell(machine, f"{MOUNT}; cat {VARIABLE} | tail -c +5")

    def domain_of(self, machine: Machine) -> tuple[Any, Path]:
        """Return a clone's domain, and the file of its variables by its definition."""
        domain = self.domain.connect().lookupByName(machine.name)
        return domain, Path(parse_domain(domain.XMLDesc(PERSISTENT)).nvram)


@pytest.fixture(scope="module")
def booted(
    libvirtd: Libvirtd, images: dict[str, Image], needs: Needs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Booted]:
    if not FIRMWARE.exists():
        needs("ovmf")
    needs("debugfs")
    libvirt = pytest.importorskip("libvirt")
    connection = libvirt.open(libvirtd.uri)
    hot = Path(engine_settings.read().hot).with_name("libvirt-uefi")
    lab = Lab(tmp_path_factory.mktemp("home"), hot, images)
    lab.settings = replace(
        lab.settings, driver="libvirt", libvirt_uri=libvirtd.uri, network=NetworkKind.LIBVIRT
    )
    lab.ctx = open_context(lab.settings)
    disks = tmp_path_factory.mktemp("disks")
    light = images["light"]
    kernel = take_bootable_kernel(light, tmp_path_factory.mktemp("kernel"))
    light = light.replace(boot=light.boot.replace(kernel=str(kernel)))
    domain = make_domain(connection, light, disks, Shape(firmware="efi", genid=True), "sealed")
    variables = Path(parse_domain(domain.XMLDesc()).nvram)
    wait_for_agent(domain)
    machine = lab.wait(adopt.adopt(lab.ctx, "sealed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring, "ADDRESS_WAIT_S", ADDRESS_WAIT_S)
        yield Booted(lab, domain, machine, variables)
    lab.close()
    domain.destroy()
    domain.undefineFlags(UNDEFINE_NVRAM)
    connection.close()


def test_clones_have_variables_of_their_own(booted: Booted, monkeypatch: pytest.MonkeyPatch) -> None:
    home, machine = booted.home, booted.machine
    assert registry.read(home.ctx.layout.machine(machine.id)) is not None
    booted.note(machine, "captured")
    then = booted.variables.read_bytes()
    taken = home.snapshot(machine)
    booted.note(machine, "later")
    now = booted.variables.read_bytes()
    assert now != then

    constant_one = home.clone(taken)
    monkeypatch.setattr(constant, "find_obstacle", lambda uri, image: "asked for")
    full_one = home.clone(taken)
    for clone, why in ((constant_one, ""), (full_one, "asked for")):
        folder = home.ctx.layout.machine(clone.id)
        ref = registry.read(folder)
        assert ref is not None and ref.why_full == why
        _, own = booted.domain_of(clone)
        assert own == folder / nvram.FILE
        assert own.read_bytes() == then
        assert booted.read(clone) == "captured"
    booted.note(constant_one, "mine")
    domain, own = booted.domain_of(constant_one)
    assert own.read_bytes() not in (then, now)
    assert booted.read(full_one) == "captured" and booted.read(machine) == "later"

    domain.destroy()
    domain.create()
    wait_for_agent(domain)
    assert booted.read(constant_one) == "mine"
    domain.destroy()
    domain.undefineFlags(UNDEFINE_NVRAM)
    assert not own.exists()
    home.remove(constant_one, full_one)
    assert booted.variables.read_bytes() == now


def test_a_guest_that_writes_its_variables_meanwhile_is_not_captured(booted: Booted) -> None:
    """QEMU does not notice it: the memory would be of another instant than the flash."""
    home, machine = booted.home, booted.machine
    soon, point = {"wiring.ADDRESS_WAIT_S": ADDRESS_WAIT_S}, "stream.pausing"
    with Operation(home, "snapshot", stops=[point], deadlines=soon, machine=machine.id) as operation:
        operation.reach(point)
        booted.note(machine, "meanwhile")
        operation.go_on(point)
        error = operation.result()["error"]
    check_clear(error, source_state="running")
    assert error["error"] == "nvram-written"
    assert booted.read(machine) == "meanwhile"
    assert home.ctx.snapshots.list()[1:] == []
    assert len(home.wait(adopt.look_again(home.ctx, machine)).nics) == 1
