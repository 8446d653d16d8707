"""Items that few guests have, in a guest that has them all: what its programs do in a clone, besides what files say.

    in the guest                                            in a clone of it
    nm0  NetworkManager  ┐                                  each is another client to the server, with an address of its
    dc0  dhcpcd          ├── a DHCP server, `lan`,          own; dhclient, which nobody starts again, has none
    sd0  systemd-networkd│   in a namespace of its own,
    dh0  dhclient        ┘   which is cloned with them
    a swap file that holds memory of a program              it has its memory
    an image of a hibernated system                         it cannot be resumed
    a login by ssh, known to logind and utmp                it is none
    a connection that the firewall follows                  nothing is followed
    vsock without a device                                  is no address

A UUID in the firmware is given to a machine of its own. What a vsock device gives cannot be shown here: it needs the host's
vhost_vsock, and our machines have none.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from liveclone.drivers.qemu import argv
from liveclone.engine import snapshot
from liveclone.model.identity import ItemReport, ItemStatus
from liveclone.model.machine import Machine
from liveclone.model.snapshot import Snapshot
from tests.machines import TICKS, Lab, Ticks

CARDS = ("nm0", "dc0", "sd0", "dh0")
ASKING = CARDS[:3]  # again, in a clone
CONNECTION = "0b1f2e3d-1111-4222-8333-444455556666"

PLANT_LAN = f"""
put() {{ mkdir -p "$(dirname "$1")"; cat >"$1"; chmod 600 "$1"; }}
modprobe veth
ip netns add lan
number=0
ranges=
for card in {" ".join(CARDS)}; do
    number=$((number + 1))
    ip link add $card type veth peer name peer$number netns lan
    ip -netns lan address add 10.77.$number.1/24 dev peer$number
    ip -netns lan link set peer$number up
    ranges="$ranges --dhcp-range=10.77.$number.10,10.77.$number.200"
done
systemd-run -q --unit lan -p Type=exec ip netns exec lan dnsmasq --keep-in-foreground --conf-file=/dev/null --port=0 \
    --bind-dynamic --user=root --no-ping --dhcp-authoritative --dhcp-leasefile=/run/lan --pid-file= $ranges

printf '%s\\n' '[keyfile]' 'unmanaged-devices=*,except:interface-name:nm0' \
    '[device]' match-device=interface-name:nm0 managed=1 |
    put /etc/NetworkManager/conf.d/lan.conf
printf '%s\\n' '[connection]' id=lan uuid={CONNECTION} type=ethernet interface-name=nm0 \
    '[ipv4]' method=auto dhcp-client-id=duid '[ipv6]' method=link-local addr-gen-mode=stable-privacy |
    put /etc/NetworkManager/system-connections/lan.nmconnection
systemctl start NetworkManager
nmcli connection add save no type dummy ifname none con-name brief autoconnect no >/dev/null

printf '[Match]\\nName=sd0\\n[Network]\\nDHCP=ipv4\\n[DHCPv4]\\nClientIdentifier=duid\\n' >/etc/systemd/network/lan.network
systemctl start systemd-networkd
systemd-run -q --unit dhcpcd -p Restart=on-failure dhcpcd --nobackground --noarp dc0
dhclient -1 -q -lf /var/lib/dhcp/dhclient.dh0.leases -pf /run/dhclient.pid dh0
"""
# Waits until these cards have addresses, of which programs tell nobody, and prints all that there are: nm0 10.77.1.5/24
ADDRESSES = """
wait_for() {{ timeout 90 sh -c "until $1; do sleep 0.2; done" || {{ echo "never: $1"; exit 1; }}; }}
for card in {cards}; do wait_for "ip -oneline -4 address show dev $card | grep -q inet"; done
wait_for 'nmcli -g general.state device show nm0 | grep -q ^100'
ip -oneline -4 address show scope global | awk '$2 != "eth0" {{ print $2, $4 }}'
"""

# A program whose memory is in the swap file, and which tells, when asked, what it has there.
KEEPER = """
import hashlib, os, signal
data = os.urandom(4 << 20)
def tell(*_):
    with open("/run/kept.new", "w") as file:
        file.write(hashlib.sha256(data).hexdigest())
    os.rename("/run/kept.new", "/run/kept")
signal.signal(signal.SIGUSR1, tell)
tell()
while True:
    signal.pause()
"""
PLANT_SWAP = f"""
dd if=/dev/zero of=/swap bs=1M count=16 status=none
chmod 600 /swap
mkswap -q -L area /swap
swapon /swap
cat >/opt/keeper.py <<'END'
{KEEPER}
END
systemd-run -q --unit keeper python3 /opt/keeper.py
until [ -e /run/kept ]; do sleep 0.1; done
# More than it has: as much as can be, and then the kernel says that it was not all.
echo 32M >/sys/fs/cgroup/system.slice/keeper.service/memory.reclaim || :
"""
KEPT = "rm -f /run/kept; systemctl kill --signal=USR1 keeper; until [ -e /run/kept ]; do sleep 0.1; done; cat /run/kept"

# The kernel is told of the device while there is no image, for it would look for one at once.
PLANT_IMAGE = """
dd if=/dev/zero of=/image bs=1M count=1 status=none
chmod 600 /image
mkswap -q /image
sync
python3 - <<'END' >/sys/power/resume_offset
import fcntl, struct
with open("/image", "rb") as file:
    print(struct.unpack("=i", fcntl.ioctl(file, 1, struct.pack("=i", 0)))[0])  # FIBMAP, linux/fs.h
END
cat /sys/class/block/vda/dev >/sys/power/resume
printf 'SWAPSPACE2S1SUSPEND\\0' | dd of=/image bs=1 seek=4076 conv=notrunc,fsync status=none
"""
# As the kernel would read it, past all caches.
SIGNATURE = """
dd if=/dev/vda iflag=direct bs=4096 skip=$(cat /sys/power/resume_offset) count=1 status=none | tail -c 20 | tr -d '\\0'
"""

PLANT_LOGIN = """
install -m 664 -g utmp /dev/null /run/utmp
mkdir -p -m 700 /root/.ssh
ssh-keygen -q -t ed25519 -N '' -f /root/key
cp /root/key.pub /root/.ssh/authorized_keys
systemd-run -q --unit visit ssh -tt -i /root/key -o StrictHostKeyChecking=no root@127.0.0.1 \
    'echo $XDG_SESSION_ID >/run/visited; exec sleep 8888'
until [ -s /run/visited ]; do sleep 0.1; done
"""

PLANT_REST = """
modprobe -a nf_conntrack_netlink vsock_loopback vhost_vsock
nft 'add table inet t; add chain inet t c { type filter hook input priority 0; }'
nft 'add rule inet t c ct state established accept'
"""


@dataclass(frozen=True)
class Rare:
    source: Machine
    snapshot: Snapshot
    clones: list[Machine]
    reports: list[dict[str, ItemReport]]  # of the clones
    addresses: list[dict[str, str]]  # of all three, by card

    @property
    def all(self) -> list[Machine]:
        return [self.source, *self.clones]


@pytest.fixture(scope="module")
def rare(lab: Lab, snapshotted: Snapshot) -> Iterator[Rare]:
    source = lab.clone(snapshotted)
    for script in (PLANT_LAN, PLANT_SWAP, PLANT_IMAGE, PLANT_LOGIN, PLANT_REST):
        lab.shell(source, script)
    addresses = [find_addresses(lab, source, CARDS)]
    ticks = lab.wait(Ticks.open(lab, source))
    try:
        lab.wait(ticks.more(3))
        request = snapshot.Request(machine=source.id, policy="open")
        taken = lab.wait(snapshot.take(lab.ctx, request))
        clones = lab.clones(taken, 2)
        addresses += [find_addresses(lab, machine, ASKING) for machine in clones]
        yield Rare(source, taken, clones, [reports(lab, taken, machine) for machine in clones], addresses)
    finally:
        lab.wait(ticks.close())
    lab.remove(*clones)
    lab.remove(source)
    lab.remove_snapshot(taken)


def reports(lab: Lab, taken: Snapshot, machine: Machine) -> dict[str, ItemReport]:
    evidence = lab.ctx.evidence(taken.id).load(machine.id)
    assert evidence is not None and evidence.verified
    return {item.item: item for item in evidence.items}


def find_addresses(lab: Lab, machine: Machine, cards: Sequence[str]) -> dict[str, str]:
    text = lab.shell(machine, ADDRESSES.format(cards=" ".join(cards)))
    return dict(line.split() for line in text.splitlines())


def everywhere(lab: Lab, machines: list[Machine], command: str) -> list[str]:
    return [lab.shell(machine, command) for machine in machines]


def findings(taken: Snapshot) -> list[tuple[str, str]]:
    assert taken.scan is not None
    return [(one.check, one.subject) for one in taken.scan.findings]


def distinct(values: list[Any]) -> bool:
    return all(values) and len(set(values)) == len(values)


def test_each_item_says_so(rare: Rare) -> None:
    for found in rare.reports:
        for name in ("dhcp", "interface_names", "ipv6_secrets"):
            assert found[name].status is ItemStatus.CHANGED, name
        assert found["network_programs"].details == {
            "ended": "NetworkManager dhclient dhcpcd systemd-network",
            "leased": "4",
        }
        assert found["swap"].status is ItemStatus.SHARED
        assert found["swap"].details == {"areas": "/swap"}
        assert found["hibernation"].details == {"image": "will not be resumed"}
        assert found["login_sessions"].details == {"killed": "2"}
        assert int(found["conntrack"].details["dropped"]) > 0
        assert found["vsock_cid"].status is ItemStatus.ABSENT


def test_a_clone_is_another_client_to_a_dhcp_server(lab: Lab, rare: Rare) -> None:
    """And has its own address alone; where no client is there any more, none at all."""
    of_source, *of_clones = rare.addresses
    assert set(of_source) == set(CARDS)
    for found in of_clones:
        assert set(found) == set(ASKING)
        assert not set(found.values()) & set(of_source.values())
    leases = [
        {line.split()[2]: line.split()[4] for line in text.splitlines()}
        for text in everywhere(lab, rare.all, "cat /run/lan")
    ]
    for card in ASKING:
        clients = [
            by_ip[found[card].partition("/")[0]] for found, by_ip in zip(rare.addresses, leases, strict=True)
        ]
        assert distinct(clients), (card, clients)


def test_networkmanager_goes_on_with_a_card_that_stays(lab: Lab, rare: Rare) -> None:
    """It would take the card for somebody else's, had it not found its connection."""
    seen = everywhere(lab, rare.all, "nmcli -g general.state,general.connection device show nm0")
    assert seen == ["100 (connected)\nlan"] * 3


SECRETS = """
cd /var/lib
echo $(cat NetworkManager/secret_key) $(cat dhcpcd/duid) $(cat dhcpcd/secret)
nmcli -g name,uuid connection show | grep -e ^lan: -e ^brief: | sort
# The address that the card kept was made before the snapshot; here it is made anew, of what is new.
nmcli connection up lan >/dev/null
ip -oneline -6 address show dev nm0 scope link | awk '{ print $4 }'
"""


def test_ids_and_secrets_are_all_distinct(lab: Lab, rare: Rare) -> None:
    """Also the stable address that NetworkManager makes of them."""
    found = [text.split() for text in everywhere(lab, rare.all, SECRETS)]
    for what, *values in zip(
        ("secret key", "DUID", "dhcpcd's secret", "brief", "lan", "address"), *found, strict=True
    ):
        assert distinct(values), (what, values)


def test_what_was_swapped_out_is_there_and_the_area_is_the_sources(lab: Lab, rare: Rare) -> None:
    kept = lab.shell(rare.source, "cat /run/kept")
    assert everywhere(lab, rare.all, KEPT) == [kept] * 3
    areas = everywhere(lab, rare.all, "tail -n +2 /proc/swaps; blkid -p -o value -s UUID -s LABEL /swap")
    for text in areas:
        path, kind, _, used_kib, _ = text.splitlines()[0].split()
        assert (path, kind) == ("/swap", "file")
        assert int(used_kib) > 1024
    assert len({text.split("\n", 1)[1] for text in areas}) == 1


def test_an_image_of_a_hibernated_system_is_the_sources_alone(lab: Lab, rare: Rare) -> None:
    of_source, *of_clones = everywhere(lab, rare.all, SIGNATURE)
    assert of_source == "SWAPSPACE2S1SUSPEND"
    assert of_clones == ["SWAPSPACE2SWAPSPACE2"] * 2


LOGINS = r"""
python3 - <<'END'
import struct
with open("/run/utmp", "rb") as file:
    entries = [struct.unpack("=hxxi32s4s32s", entry[:76]) for entry in iter(lambda: file.read(384), b"")]
print(*[entry[4].rstrip(b"\0").decode() for entry in entries if entry[0] == 7], sep="\n")
END
"""


def test_a_login_is_the_sources_alone(lab: Lab, rare: Rare) -> None:
    look = "loginctl list-sessions --no-legend | grep -c ' user ' || :; pgrep -f '^sleep 8888' >/dev/null && echo on"
    gone = "timeout 60 sh -c \"while loginctl list-sessions --no-legend | grep -q ' user '; do sleep 0.1; done\"\n"
    assert lab.shell(rare.source, look).split() == ["1", "on"]
    assert lab.shell(rare.source, LOGINS).split() == ["root"]
    for machine in rare.clones:
        assert lab.shell(machine, gone + look + "; :").split() == ["0"]
        assert lab.shell(machine, LOGINS) == ""


def test_what_the_firewall_follows_is_the_sources_alone(lab: Lab, rare: Rare) -> None:
    """At the snapshot a client was connected, and still is."""
    ip = lab.reload(rare.source).nics[0].ip
    followed = everywhere(lab, rare.all, f"grep {ip} /proc/net/nf_conntrack || :")
    of_source, *of_clones = followed
    assert "ESTABLISHED" in of_source and f"dport={TICKS}" in of_source
    assert of_clones == ["", ""]


def test_vsock_without_a_device_is_no_address(lab: Lab, rare: Rare) -> None:
    for machine in rare.all:
        assert lab.shell(
            machine, "ls /dev/vsock; grep -c -E '^(vsock_loopback|vhost_vsock) ' /proc/modules"
        ) == ("/dev/vsock\n2")
    assert ("shared", "vsock_cid") not in findings(rare.snapshot)


def test_a_uuid_in_the_firmware_is_told_to_be_shared(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever each QEMU process has been given: what the guest reads is in its memory since its boot."""
    given: list[str] = []
    render = argv.render_argv

    def render_with_uuid(**told: Any) -> list[str]:
        given.append(str(uuid.uuid4()))
        return [*render(**told), "-uuid", given[-1]]

    monkeypatch.setattr(argv, "render_argv", render_with_uuid)
    source = lab.boot("firmware", image="light")
    taken = lab.snapshot(source)
    clones = lab.clones(taken, 2)
    assert len(given) >= 3
    seen = everywhere(lab, [source, *clones], "cat /sys/class/dmi/id/product_uuid")
    assert seen == [given[0]] * 3
    (observed,) = [item for item in taken.items if item.item == "dmi_uuid"]
    for machine in clones:
        found = reports(lab, taken, machine)["dmi_uuid"]
        assert (found.status, found.before) == (ItemStatus.SHARED, observed.before)
        assert found.before
    assert ("shared", "dmi_uuid") in findings(taken)
    lab.remove(*clones, source)
    lab.remove_snapshot(taken)
