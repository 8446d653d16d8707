"""What a machine had written down and remembered of its network: a clone has its own, or none.

The source here is itself a clone, given what machines of other kinds have (DHCP clients, NetworkManager, cloud-init), so
nothing else needs a guest image with all of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from liveclone.model.identity import ItemReport, ItemStatus
from liveclone.model.machine import Machine
from liveclone.model.network import NetworkKind
from liveclone.model.snapshot import Snapshot
from tests.machines import Lab

UUID = "0b1f2e3d-1111-4222-8333-444455556666"
SECRET = "2001:db8::1"

PLANT = f"""set -e
put() {{ mkdir -p "$(dirname "$1")"; cat >"$1"; }}
mac=$(cat /sys/class/net/eth0/address)
echo 'default-duid "x";' | put /var/lib/dhcp/dhclient.eth0.leases
echo 00:04:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff:00 | put /var/lib/dhcpcd/duid
echo nm-v2:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= | put /var/lib/NetworkManager/secret_key
printf '[connection]\\nid=lan\\nuuid={UUID}\\n[ethernet]\\ncloned-mac-address=%s\\n' "$mac" |
    put /etc/NetworkManager/system-connections/lan.nmconnection
printf 'SUBSYSTEM=="net", ATTR{{address}}=="%s", NAME="eth0"\\n' "$mac" | put /etc/udev/rules.d/70-persistent-net.rules
echo i-of-the-source | put /var/lib/cloud/data/instance-id
printf 'instance-id: i-of-the-source\\nlocal-hostname: source\\n' | put /var/lib/cloud/seed/nocloud/meta-data
mkdir -p /var/lib/cloud/instances/i-of-the-source/sem
ln -s /var/lib/cloud/instances/i-of-the-source /var/lib/cloud/instance
echo {SECRET} >/proc/sys/net/ipv6/conf/default/stable_secret
printf '[Timer]\\nOnCalendar=*-01-01\\nRandomizedDelaySec=20d\\n' | put /etc/systemd/system/yearly.timer
printf '[Service]\\nExecStart=true\\n' | put /etc/systemd/system/yearly.service
systemctl daemon-reload
systemctl start yearly.timer systemd-networkd.service
ip neighbour replace 10.213.99.99 lladdr 02:00:00:00:00:99 dev eth0 nud permanent
ip route add 192.0.2.0/24 dev eth0
sync
"""
DUE = "systemctl show --value --property NextElapseUSecRealtime yearly.timer"


@dataclass(frozen=True)
class Network:
    source: Machine
    snapshot: Snapshot
    clones: list[Machine]


@pytest.fixture(scope="module")
def network(lab: Lab, snapshotted: Snapshot) -> Iterator[Network]:
    source = lab.clone(snapshotted)
    lab.shell(source, PLANT)
    taken = lab.snapshot(source)
    clones = lab.clones(taken, 2)
    yield Network(source, taken, clones)
    lab.remove(*clones)
    lab.remove(source)
    lab.remove_snapshot(taken)


def reports(lab: Lab, network: Network, machine: Machine) -> dict[str, ItemReport]:
    evidence = lab.ctx.evidence(network.snapshot.id).load(machine.id)
    assert evidence is not None
    return {item.item: item for item in evidence.items}


def everywhere(lab: Lab, network: Network, command: str) -> list[str]:
    """Return what the command prints in the source and in each clone."""
    return [lab.shell(machine, command) for machine in (network.source, *network.clones)]


def test_each_item_says_so(lab: Lab, network: Network) -> None:
    for machine in network.clones:
        found = reports(lab, network, machine)
        for name in ("cloud_init", "dhcp", "interface_names", "ipv6_secrets"):
            assert found[name].status is ItemStatus.CHANGED, name
        assert found["dhcp"].details == {"removed": "1"}
        assert found["network_programs"].details == {"ended": "systemd-network"}


@pytest.mark.parametrize(
    "command",
    [
        "cat /var/lib/dhcpcd/duid",
        "cat /var/lib/NetworkManager/secret_key",
        "cat /proc/sys/net/ipv6/conf/default/stable_secret",
        "grep uuid= /etc/NetworkManager/system-connections/lan.nmconnection",
        "cat /var/lib/cloud/data/instance-id",
        "basename $(readlink -e /var/lib/cloud/instance)",
    ],
)
def test_ids_and_secrets_are_all_distinct(lab: Lab, network: Network, command: str) -> None:
    values = everywhere(lab, network, command)
    assert all(values) and len(set(values)) == len(values), values


def test_nothing_names_the_sources_card(lab: Lab, network: Network) -> None:
    """Neither a lease nor a rule, nor a line that would give the clone's card that MAC; the source keeps all."""
    mac = network.source.nics[0].mac
    look = f"find /var/lib/dhcp -type f; grep -rl {mac} /etc | sort"
    of_source, *of_clones = (text.split() for text in everywhere(lab, network, look))
    assert of_source == [
        "/var/lib/dhcp/dhclient.eth0.leases",
        "/etc/NetworkManager/system-connections/lan.nmconnection",
        "/etc/udev/rules.d/70-persistent-net.rules",
    ]
    assert of_clones == [[], []]


def test_systemd_starts_networkd_anew_in_a_clone(lab: Lab, network: Network) -> None:
    """It would go on with the DUID of the source's machine-id; the source's own is left alone."""
    restarts = everywhere(
        lab,
        network,
        "systemctl start systemd-networkd; systemctl show --value --property NRestarts systemd-networkd",
    )
    assert restarts == ["0", "1", "1"]


def test_random_delays_of_timers_are_drawn_anew(lab: Lab, network: Network) -> None:
    """systemd does so when the clock is set, as the item `clock` does: clones of one snapshot do not start all at once."""
    due = everywhere(lab, network, DUE)
    assert all(due) and len(set(due)) == len(due), due


def test_a_clone_has_neither_routes_nor_neighbours_of_its_source(lab: Lab, network: Network) -> None:
    """They went with the card; shown by a clone that is never given one."""
    none = lab.clone(network.snapshot, network=NetworkKind.NONE)
    try:
        assert lab.shell(none, "ip neighbour; ip route; ip -6 route show dev eth0 2>/dev/null || :") == ""
    finally:
        lab.remove(none)
