"""Options whose text has to be read."""

from __future__ import annotations

import pytest

from liveclone.cli import params
from liveclone.cli.copy import split_end
from liveclone.errors import Refused
from liveclone.model.network import NetworkKind, Port


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("8080:80", Port(host_port=8080, guest_port=80)),
        ("0:80", Port(host_port=0, guest_port=80)),
        (":80", Port(host_port=0, guest_port=80)),
        ("80", Port(host_port=0, guest_port=80)),
        ("80/tcp", Port(host_port=0, guest_port=80)),
        ("0.0.0.0:8080:80", Port(host_ip="0.0.0.0", host_port=8080, guest_port=80)),
        ("127.0.0.1::80", Port(host_ip="127.0.0.1", host_port=0, guest_port=80)),
        ("[::1]:8080:80", Port(host_ip="::1", host_port=8080, guest_port=80)),
    ],
)
def test_a_port(text: str, port: Port) -> None:
    assert params.parse_ports([text]) == (port,)


@pytest.mark.parametrize(
    "text", ["", "x", "80:", "8080:0", "8080:80/udp", "70000:80", "80:70000", "1:2:3:4", "-1:80", "80 :80"]
)
def test_no_port(text: str) -> None:
    with pytest.raises(Refused) as caught:
        params.parse_ports([text])
    assert caught.value.code == "bad-port"
    assert caught.value.next_step


def test_ports_for_people() -> None:
    ports = params.parse_ports(["8080:80", "[::1]:81:82"])
    assert params.render_ports(ports) == "127.0.0.1:8080->80, [::1]:81->82"
    assert params.parse_ports(None) == ()


def test_pairs() -> None:
    assert params.parse_pairs(["a=b", "c=d=e", "f="], "-e") == {"a": "b", "c": "d=e", "f": ""}
    assert params.parse_pairs(None, "-e") == {}
    for text in ("a", "=b", ""):
        with pytest.raises(Refused, match="is not a pair"):
            params.parse_pairs([text], "-e")


def test_networks() -> None:
    assert params.parse_network("bridge") is NetworkKind.BRIDGE
    assert params.parse_network(None) is None


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("web:/etc/hosts", ("web", "/etc/hosts")),
        ("web:relative", ("web", "relative")),
        ("web:/a:b", ("web", "/a:b")),
        ("./web:/etc", None),
        ("/tmp/a:b", None),
        ("file", None),
        ("-", None),
        ("a/b:c", None),
        ("", None),
    ],
)
def test_the_ends_of_a_copy(text: str, end: tuple[str, str] | None) -> None:
    assert split_end(text) == end


def test_a_machine_without_a_path() -> None:
    with pytest.raises(Refused, match="names no path"):
        split_end("web:")
