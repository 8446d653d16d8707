"""The two networks, as clients see them: ports on 127.0.0.1, machines that see one another, and what a snapshot does."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveclone.engine import snapshot
from liveclone.errors import Conflict
from liveclone.host import netns, process
from liveclone.model.machine import Machine
from liveclone.model.network import NetworkKind, Port
from liveclone.model.snapshot import CaptureMethod
from tests.machines import HTTP, PORTS, TICKS, Lab, Ticks, check_clear, connect_published, http
from tests.vm.conftest import Story

ETH_P_ARP = 0x0806
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def user(lab: Lab) -> Iterator[Machine]:
    """A machine from cold on the user network."""
    machine = lab.boot("user", "light", network=NetworkKind.USER, ports=PORTS)
    yield machine
    lab.remove(machine)


def published(lab: Lab, machine: Machine, path: str = "/identity") -> dict[str, str]:
    """Ask the application as anybody on the host would."""
    return lab.wait(http(lab, lab.reload(machine), path, published=True))


# ---------------------------------------------------------------------- bridge


def test_a_clones_port_is_published(lab: Lab, story: Story) -> None:
    machine = lab.clone(story.snapshot, ports=PORTS)
    numbers = [port.host_port for port in machine.ports]
    assert all(numbers) and len(set(numbers)) == len(numbers)
    assert {port.host_ip for port in machine.ports} == {"127.0.0.1"}
    assert published(lab, machine)["hostname"] == machine.name
    lab.remove(machine)
    assert not process.is_alive(machine.port_process)
    for number in numbers:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", number), 1.0)


def test_a_published_connection_lasts_through_a_snapshot(lab: Lab, story: Story) -> None:
    machine = lab.clone(story.snapshot, ports=PORTS)

    async def work() -> None:
        ticks = Ticks(*await connect_published(machine, TICKS))
        await ticks.more(10)
        await snapshot.take(lab.ctx, snapshot.Request(machine=machine.id, name="published"))
        await ticks.drain()
        await ticks.more(10)
        await ticks.close()

    lab.wait(work())
    assert published(lab, machine)["hostname"] == machine.name
    lab.remove(machine)
    lab.remove_snapshot(lab.ctx.snapshots.find("published"))


def test_machines_see_one_another(lab: Lab, source: Machine, clone: Machine) -> None:
    """From within one guest: the other's application, which tells whom was reached."""
    fetch = "python3 -c \"import urllib.request as u; print(u.urlopen('http://{}:8080/identity').read().decode())\""
    for here, there in ((source, clone), (clone, source)):
        assert f'"hostname": "{there.name}"' in lab.shell(here, fetch.format(there.nics[0].ip))


def test_neighbours_are_told_where_a_clones_address_is(lab: Lab, story: Story) -> None:
    """By an announcement (RFC 5227) that nobody asked for: a neighbour may know the address as another machine's."""
    namespace, bridge = lab.ctx.layout.namespace, lab.ctx.network_spec().bridge
    with netns.make_socket(namespace, family=socket.AF_PACKET, kind=socket.SOCK_RAW) as wire:
        wire.bind((bridge, ETH_P_ARP))
        machine = lab.clone(story.snapshot)
        mac, ip = bytes.fromhex(machine.nics[0].mac.replace(":", "")), socket.inet_aton(machine.nics[0].ip)
        wire.settimeout(PATIENCE_S)
        frame = wire.recv(2048)
        while (frame[6:12], frame[28:32], frame[38:42]) != (mac, ip, ip):
            frame = wire.recv(2048)
    assert frame[:6] == b"\xff" * 6
    lab.remove(machine)


def test_the_hosts_own_network_is_not_touched(clone: Machine) -> None:
    """Bridge and taps are in a namespace of their own; the host has neither a link nor a route of theirs."""
    assert clone.id not in Path("/proc/net/dev").read_text()
    gateway = socket.inet_aton(clone.nics[0].gateway)
    network = f"{int.from_bytes(gateway[:2], 'little'):08X}"  # 10.213.0.0, as the kernel prints it
    destinations = [line.split()[1] for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    assert network not in destinations


def test_a_port_that_is_taken_is_refused(lab: Lab, story: Story, clone: Machine) -> None:
    taken = lab.clone(story.snapshot, ports=PORTS[:1])
    port = Port(host_port=taken.ports[0].host_port, guest_port=HTTP)
    (result,) = lab.results(story.snapshot, ports=[port])
    assert isinstance(result.error, Conflict)
    assert result.error.code == "port-taken"
    check_clear(result.error)
    assert published(lab, taken)["hostname"] == taken.name
    lab.remove(taken)


# ---------------------------------------------------------------------- user


def test_the_user_network_needs_no_tap(lab: Lab, user: Machine) -> None:
    assert not [tap for tap in lab.taps() if user.id in tap]
    app = published(lab, user)
    assert app["hostname"] == "user"
    assert app["mac"] == user.nics[0].mac
    assert f" {user.nics[0].address} " in lab.shell(user, "ip -br -4 address") + " "


@pytest.mark.parametrize("method", [CaptureMethod.HANDOVER, CaptureMethod.BACKGROUND])
def test_the_user_network_serves_new_connections_after_a_snapshot(
    lab: Lab, user: Machine, method: CaptureMethod
) -> None:
    """What QEMU's user network held of a connection is lost with the NIC (docs/hazards.md); the ports stay."""
    before = published(lab, user)
    taken = lab.snapshot(user)
    assert taken.capture.method is method
    after = published(lab, user)
    for what in ("token", "hostname", "mac"):
        assert after[what] == before[what]
    assert lab.reload(user).ports == user.ports
    # Its clones are on the user network too, each with ports of its own.
    machines = lab.clones(taken, 2, ports=PORTS)
    apps = [published(lab, machine) for machine in machines]
    assert [app["hostname"] for app in apps] == [machine.name for machine in machines]
    assert {app["token"] for app in apps} == {before["token"]}
    assert {machine.network for machine in machines} == {NetworkKind.USER}
    lab.remove(*machines)
    lab.remove_snapshot(taken)


def test_a_clone_can_be_on_another_network_than_its_source(lab: Lab, story: Story) -> None:
    user = lab.clone(story.snapshot, network=NetworkKind.USER, ports=PORTS)
    assert published(lab, user)["token"] == story.app_before["token"]
    none = lab.clone(story.snapshot, network=NetworkKind.NONE)
    assert lab.shell(none, "ls /sys/class/net") == "lo"
    assert none.nics == () and lab.nics(none) == []
    lab.remove(user, none)
