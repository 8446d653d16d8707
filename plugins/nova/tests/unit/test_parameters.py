"""What of a new server the agent is given."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any

import pytest
from nova.network import model

from liveclone.errors import Refused
from liveclone.model.parameters import Parameters
from liveclone_nova import parameters


def server(**changes: Any) -> Any:
    return SimpleNamespace(
        **{"uuid": "1", "hostname": "web-2", "key_data": None, "user_data": None, "metadata": {}, **changes}
    )


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_host_name_key_user_data_and_metadata_are_its_own() -> None:
    made = server(
        key_data="ssh-ed25519 AAAA me\n",
        user_data=encode("#!/bin/sh\necho ä\n".encode()),
        metadata={"role": "worker"},
    )
    assert parameters.parameters_of(made) == Parameters(
        hostname="web-2",
        ssh_keys=("ssh-ed25519 AAAA me",),
        user_data="#!/bin/sh\necho ä\n",
        metadata={"role": "worker"},
    )


def test_without_a_key_and_user_data_there_is_the_name() -> None:
    assert parameters.parameters_of(server()) == Parameters(hostname="web-2")


def test_a_certificate_is_no_ssh_key() -> None:
    made = server(key_data="-----BEGIN CERTIFICATE-----\nMII\n")
    assert parameters.parameters_of(made).ssh_keys == ()


@pytest.mark.parametrize("data", [encode(b"\x1f\x8b\x08\x00\xff"), "no base64!"])
def test_user_data_that_is_no_text_is_refused(data: str) -> None:
    with pytest.raises(Refused, match="its user data is no text"):
        parameters.parameters_of(server(user_data=data))


def card(*subnets: Any) -> Any:
    network = model.Network(id="n", bridge="", label="lab", subnets=list(subnets))
    return model.VIF(id="port", address="FA:16:3E:00:00:01", network=network)


def subnet(cidr: str, *addresses: str, gateway: str | None = None, dns: tuple[str, ...] = ()) -> Any:
    return model.Subnet(
        cidr=cidr,
        gateway=model.IP(gateway) if gateway else None,
        dns=[model.IP(server) for server in dns],
        ips=[model.FixedIP(address=address) for address in addresses],
    )


def test_a_card_has_the_first_ipv4_address_of_its_port() -> None:
    v4 = subnet("10.7.0.0/20", "10.7.0.5", "10.7.0.6", gateway="10.7.0.1", dns=("10.7.0.2", "10.7.0.3"))
    nic = parameters.nic_of(card(subnet("fd00::/64", "fd00::5", gateway="fd00::1"), v4))
    assert (nic.id, nic.mac, nic.address) == ("port", "fa:16:3e:00:00:01", "10.7.0.5/20")
    assert (nic.gateway, nic.dns) == ("10.7.0.1", "10.7.0.2 10.7.0.3")


def test_a_network_may_lead_nowhere() -> None:
    assert parameters.nic_of(card(subnet("10.7.0.0/20", "10.7.0.5"))).gateway == ""


@pytest.mark.parametrize("subnets", [(), (("fd00::/64", "fd00::5"),), (("10.7.0.0/20",),)])
def test_without_an_ipv4_address_the_card_is_the_guests_own_affair(subnets: Any) -> None:
    assert parameters.nic_of(card(*(subnet(*one) for one in subnets))).address == ""
