"""The call `network` in a network namespace of its own: a thread leaves for one and takes its sockets along."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from liveclone.guest import netlink
from liveclone.guest.errors import CallError
from liveclone.guest.interfaces import list_interfaces
from liveclone.guest.kernel import Kernel
from liveclone.guest.network import Network
from liveclone.guest.request import Request

CLONE_NEWNET = 0x40000000
MAC = "52:54:00:12:34:56"
PEER = "52:54:00:65:43:21"


def in_namespace(action: Callable[[], Any]) -> Any:
    """Run `action` on a thread in a new network namespace, which ends with it; return what it returns."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and ip")
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "unshare")
            outcome.append(action())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    if failure:
        raise failure[0]
    return outcome[0]


def ip(*args: str) -> str:
    return subprocess.run(["ip", *args], capture_output=True, text=True, check=True).stdout


def plug(mac: str = MAC, name: str = "eth0") -> None:
    """Add a card, and what it is plugged into."""
    ip("link", "add", name, "address", mac, "type", "veth", "peer", "name", f"{name}-far")
    ip("link", "set", f"{name}-far", "up")


def nic(**changes: str) -> dict[str, str]:
    return {"mac": MAC, "address": "10.213.0.7/16", "gateway": "10.213.0.1", "dns": ""} | changes


def configure(root: Path, *nics: dict[str, str], wait_s: float = 5.0) -> dict[str, Any]:
    request = Request("x", "network", {"nics": list(nics), "wait_s": wait_s}, 10, lambda reply: None)
    try:
        return Network(str(root), threading.Event()).configure(request)
    finally:
        for task in request.later:
            task()


@pytest.fixture
def etc(root: Path) -> Path:
    return root / "etc"


def test_a_card_gets_address_and_route(root: Path) -> None:
    def act() -> tuple[dict[str, Any], str, str]:
        plug()
        return configure(root, nic()), ip("-br", "address", "show", "eth0"), ip("route")

    told, addresses, routes = in_namespace(act)
    assert told == {"interfaces": [{"name": "eth0", "mac": MAC, "addresses": ["10.213.0.7/16"]}]}
    assert "UP" in addresses
    assert "10.213.0.7/16" in addresses
    assert routes.splitlines()[0].startswith("default via 10.213.0.1 dev eth0")


def test_the_kernel_shows_its_cards(root: Path) -> None:
    def act() -> list[tuple[str, str, list[str]]]:
        plug()
        configure(root, nic())
        return [card for card in Kernel().interfaces() if card[0] == "eth0"]

    assert in_namespace(act) == [("eth0", MAC, ["10.213.0.7/16"])]


def test_a_card_whose_address_the_guest_finds_itself_is_switched_on_and_waited_for(root: Path) -> None:
    def act() -> tuple[dict[str, Any], str]:
        plug()
        finding = threading.Timer(0.2, lambda: ip("address", "add", "10.0.0.9/24", "dev", "eth0"))
        finding.start()
        request = Request(
            "x",
            "network",
            {"nics": [nic(address="", gateway="")], "address_wait_s": 5, "forget": True},
            10,
            lambda reply: None,
        )
        told = Network(str(root), threading.Event()).configure(request)
        for task in request.later:
            task()
        finding.join()
        return told, ip("-br", "link", "show", "eth0")

    told, link = in_namespace(act)
    assert told == {"interfaces": [{"name": "eth0", "mac": MAC, "addresses": ["10.0.0.9/24"]}]}
    assert "UP" in link
    assert not (root / "var/lib/liveclone/network.json").exists()


def test_a_card_that_finds_no_address_is_no_error(root: Path) -> None:
    def act() -> dict[str, Any]:
        plug()
        return configure(root, nic(address="", gateway=""))

    assert in_namespace(act)["interfaces"][0]["addresses"] == []


def test_what_addresses_there_are_is_told(root: Path) -> None:
    def act() -> dict[str, Any]:
        plug()
        ip("address", "add", "10.0.0.9/24", "dev", "eth0")
        ip("link", "set", "eth0", "up")
        ip("route", "add", "default", "via", "10.0.0.1")
        return list_interfaces(str(root), Request("x", "interfaces", {}, 10, lambda reply: None))

    told = {one["name"]: one for one in in_namespace(act)["interfaces"]}
    assert told["eth0"] == {
        "name": "eth0",
        "mac": MAC,
        "addresses": ["10.0.0.9/24"],
        "gateway": "10.0.0.1",
    }
    assert told["eth0-far"]["addresses"] == [] and "lo" not in told


def test_a_card_that_comes_later_is_waited_for(root: Path) -> None:
    def act() -> tuple[dict[str, Any], float]:
        plug("52:54:00:00:00:99", "other")
        plugging = threading.Timer(0.2, plug)
        plugging.start()
        began = time.monotonic()
        told = configure(root, nic())
        plugging.join()
        return told, time.monotonic() - began

    told, took_s = in_namespace(act)
    assert told["interfaces"][0]["addresses"] == ["10.213.0.7/16"]
    assert 0.2 <= took_s < 3


def test_a_card_that_never_comes(root: Path) -> None:
    def act() -> float:
        began = time.monotonic()
        with pytest.raises(CallError, match=MAC) as caught:
            configure(root, nic(), wait_s=0.2)
        assert caught.value.code == "no-link"
        return time.monotonic() - began

    assert 0.2 <= in_namespace(act) < 3


def test_an_address_that_is_there_stays(root: Path) -> None:
    """Its open connections stand on it: nothing may be taken away, not for an instant."""

    def act() -> list[int]:
        plug()
        configure(root, nic())
        with netlink.Route(groups=0x10) as news:  # RTMGRP_IPV4_IFADDR
            configure(root, nic())
            news._socket.settimeout(0.2)
            kinds = []
            try:
                while True:
                    kinds += [kind for kind, _, _ in netlink._messages(news._socket.recv(65536))]
            except TimeoutError:
                return kinds

    assert netlink.RTM_DELADDR not in in_namespace(act)


@pytest.mark.parametrize(
    "before", [["10.213.0.9/16", "10.213.0.7/16"], ["192.168.0.4/24"], ["10.213.0.7/24"]]
)
def test_stale_addresses_go(root: Path, before: list[str]) -> None:
    def act() -> list[str]:
        plug()
        for address in before:
            ip("address", "add", address, "dev", "eth0")
        addresses: list[str] = configure(root, nic())["interfaces"][0]["addresses"]
        return addresses

    assert in_namespace(act) == ["10.213.0.7/16"]


def test_a_gateway_outside_the_network(root: Path) -> None:
    def act() -> str:
        plug()
        configure(root, nic(address="10.0.0.5/32", gateway="169.254.1.1"))
        return ip("route")

    assert "default via 169.254.1.1 dev eth0 proto static onlink" in in_namespace(act)


def test_a_new_gateway_takes_the_place_of_the_old(root: Path) -> None:
    def act() -> str:
        plug()
        configure(root, nic())
        configure(root, nic(gateway="10.213.0.2"))
        return ip("route", "show", "default")

    assert [line.split()[2] for line in in_namespace(act).splitlines()] == ["10.213.0.2"]


def test_two_cards(root: Path) -> None:
    def act() -> tuple[dict[str, Any], str]:
        plug()
        plug(PEER, "eth1")
        told = configure(root, nic(), nic(mac=PEER.upper(), address="10.9.0.2/24", gateway="10.9.0.1"))
        return told, ip("route", "show", "default")

    told, routes = in_namespace(act)
    assert [i["name"] for i in told["interfaces"]] == ["eth0", "eth1"]
    assert len(routes.splitlines()) == 2
    assert "dev eth1 proto static metric 100" in routes


def test_neighbours_are_told(root: Path) -> None:
    def act() -> bytes:
        plug()
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as far:
            far.bind(("eth0-far", 0x0806))
            far.settimeout(5)
            configure(root, nic())
            return far.recv(2048)

    frame = in_namespace(act)
    own = bytes.fromhex(MAC.replace(":", ""))
    address = socket.inet_aton("10.213.0.7")
    assert frame[:14] == b"\xff" * 6 + own + b"\x08\x06"
    assert frame[22:42] == own + address + bytes(6) + address


@pytest.mark.parametrize("managed", [False, True])
def test_resolv_conf(root: Path, etc: Path, managed: bool) -> None:
    path = etc / "resolv.conf"
    if managed:
        (root / "run/stub.conf").write_text("nameserver 127.0.0.53\n")
        path.symlink_to("../run/stub.conf")
    else:
        path.write_text("nameserver 192.0.2.1\n")

    def act() -> None:
        plug()
        configure(root, nic(dns="10.213.0.1 10.213.0.2"))

    in_namespace(act)
    expected = "nameserver 127.0.0.53\n" if managed else "nameserver 10.213.0.1\nnameserver 10.213.0.2\n"
    assert path.read_text() == expected


def test_the_resolver_of_another_network_goes(root: Path, etc: Path) -> None:
    """A clone on a network without one has its source's on file."""

    def act() -> None:
        plug()
        configure(root, nic(dns="10.0.2.3"))
        configure(root, nic(dns=""))

    in_namespace(act)
    assert (etc / "resolv.conf").read_text() == ""


def test_a_resolver_that_somebody_else_gave_stays(root: Path, etc: Path) -> None:
    def act() -> None:
        plug()
        configure(root, nic(dns="10.0.2.3"))
        (etc / "resolv.conf").write_text("nameserver 192.0.2.1\n")
        configure(root, nic(dns=""))

    in_namespace(act)
    assert (etc / "resolv.conf").read_text() == "nameserver 192.0.2.1\n"


def test_nothing_is_left_of_a_card_that_has_gone(root: Path) -> None:
    """Routes and neighbours, those set by hand too, go with it: a clone whose source lost its card has none of them."""

    def act() -> tuple[str, str, str]:
        plug()
        configure(root, nic())
        ip("route", "add", "192.0.2.0/24", "via", "10.213.0.9")
        ip("-6", "address", "add", "fd00::7/64", "dev", "eth0", "nodad")
        ip("-6", "route", "add", "default", "via", "fd00::1")
        for neighbour in ("10.213.0.1", "fd00::1"):
            ip("neighbour", "add", neighbour, "lladdr", PEER, "dev", "eth0", "nud", "permanent")
        assert "10.213.0.1" in ip("neighbour") and "fd00::1" in ip("neighbour")
        ip("link", "delete", "eth0")
        return ip("neighbour"), ip("route", "show", "table", "all"), ip("-6", "route", "show", "table", "all")

    neighbours, routes, routes6 = in_namespace(act)
    assert neighbours == ""
    assert "eth0" not in routes + routes6
    assert "via" not in routes + routes6


@pytest.mark.parametrize(
    "args",
    [{"mac": MAC}, {"address": "10.0.0.1/24"}, nic(address="10.0.0.1/33"), nic(address="nonsense"), "x", 7],
)
def test_senseless_cards_are_refused(root: Path, args: Any) -> None:
    with pytest.raises(CallError) as caught:
        configure(root, args)
    assert caught.value.code == "bad-request"


def test_an_address_the_kernel_refuses(root: Path) -> None:
    def act() -> None:
        plug()
        with pytest.raises(CallError, match=r"eth0.*EINVAL|gateway|route") as caught:
            configure(root, nic(gateway="0.0.0.0"))
        assert caught.value.code == "network-failed"

    in_namespace(act)
