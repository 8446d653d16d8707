"""What a guest gets besides what Nova describes: VMGENID and the agent's port, where they can be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveclone.formats import domain_rewrite, domain_xml, plain_xml
from liveclone_nova import clone_xml, guest_devices

NOVAS = (Path(__file__).parents[4] / "tests" / "unit" / "domains" / "nova.xml").read_text()
PORT = "org.liveclone.agent.0"


class Connection:
    """A libvirt that says of its QEMU what it is told to."""

    def __init__(self, features: str = "<genid supported='yes'/>") -> None:
        self.features = features
        self.asked: tuple[object, ...] = ()

    def getDomainCapabilities(self, *asked: object) -> str:
        self.asked = asked
        return f"<domainCapabilities><features>{self.features}</features></domainCapabilities>"


def test_a_guest_has_both() -> None:
    connection = Connection()
    made, missing = guest_devices.add(NOVAS, connection)
    found = domain_xml.parse_domain(made)
    channel = found.find_channel(PORT)
    assert (found.has_genid, found.genid) == (True, "")  # libvirt makes one up
    assert channel is not None
    assert (channel.kind, channel.path) == ("unix", "")
    assert missing == ()
    assert connection.asked[1:] == ("x86_64", domain_xml.parse_domain(NOVAS).machine_type or None, "kvm", 0)


def test_all_else_is_novas() -> None:
    made, _ = guest_devices.add(NOVAS, Connection())
    root = domain_xml.load(made)
    devices = root.find("devices")
    assert devices is not None
    for element in [*root.findall("genid")]:
        root.remove(element)
    for element in [e for e in devices.findall("channel") if PORT in (e[0].get("name") or "")]:
        devices.remove(element)
    assert plain_xml.render(root) == plain_xml.render(domain_xml.load(NOVAS))


@pytest.mark.parametrize("features", ["<genid supported='no'/>", ""])
def test_a_qemu_without_vmgenid_is_told_of_and_the_guest_has_its_port(features: str) -> None:
    made, missing = guest_devices.add(NOVAS, Connection(features))
    found = domain_xml.parse_domain(made)
    assert not found.has_genid
    assert found.find_channel(PORT) is not None
    assert missing == ("VMGENID (its QEMU has none)",)


@pytest.mark.parametrize(("old", "new"), [("type='kvm'", "type='lxc'"), ("arch='x86_64'", "arch='aarch64'")])
def test_what_is_not_cloned_is_left_as_it_is_and_told_of(old: str, new: str) -> None:
    assert old in NOVAS
    other = NOVAS.replace(old, new, 1)
    made, (missing,) = guest_devices.add(other, Connection())
    assert made == other
    assert "VMGENID and the agent's port" in missing


def test_a_clone_has_a_vmgenid_and_a_socket_of_its_own() -> None:
    novas, _ = guest_devices.add(NOVAS, Connection())
    old = "11111111-1111-4111-8111-111111111111"
    saved = novas.replace("<genid />", f"<genid>{old}</genid>").replace(
        '<channel type="unix">', '<channel type="unix"><source mode="bind" path="/run/its-sources"/>'
    )
    assert old in saved
    assert "its-sources" in saved
    made = domain_rewrite.rewrite_saved(saved, clone_xml.plan(saved, novas))
    found = domain_xml.parse_domain(made)
    channel = found.find_channel(PORT)
    assert found.genid not in ("", old)
    assert channel is not None
    assert channel.path == ""
