"""MACs never given twice, addresses not while they are in use, whoever asks at once."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from types import SimpleNamespace

import pytest

from liveclone.errors import Conflict, Refused
from liveclone.store.leases import LeaseBook
from tests.contract.children import run_at_once


def make_book(folder: Path, network: str = "10.213.0.1/16") -> LeaseBook:
    return LeaseBook(folder, folder / "lock", network)


def test_macs_are_local_unicast_and_never_given_twice(tmp_path: Path) -> None:
    book = make_book(tmp_path)
    macs = []
    for _ in range(50):
        mac, _ = book.take("machine")
        macs.append(mac)
        book.free("machine")
    assert len(set(macs)) == 50
    for mac in macs:
        first = int(mac.split(":")[0], 16)
        assert first & 1 == 0, "unicast"
        assert first & 2 == 2, "locally administered"
        assert mac == mac.lower() and len(mac) == 17


def test_a_mac_that_was_given_in_an_earlier_life_is_not_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter([bytes(5), bytes(5), bytes(5), bytes([0, 0, 0, 0, 1])])
    secrets = SimpleNamespace(token_bytes=lambda count: next(drawn))
    monkeypatch.setattr("liveclone.store.leases.secrets", secrets)
    assert make_book(tmp_path).take("a")[0] == "02:00:00:00:00:00"
    make_book(tmp_path).free("a")
    assert make_book(tmp_path).take("b")[0] == "02:00:00:00:00:01"


def test_an_address_is_of_the_network_and_kept_until_it_is_freed(tmp_path: Path) -> None:
    book = make_book(tmp_path)
    assert book.gateway == "10.213.0.1"
    _, first = book.take("a")
    assert book.take("a")[1] == first
    _, second = book.take("b")
    assert ipaddress.ip_interface(first).network == ipaddress.ip_network("10.213.0.0/16")
    assert first != second
    book.free("a")
    book.free("a")
    assert book.take("b")[1] == second


def test_an_address_that_is_wanted(tmp_path: Path) -> None:
    book = make_book(tmp_path, "10.0.0.1/28")
    assert book.take("a", "10.0.0.9")[1] == "10.0.0.9/28"
    assert book.take("a", "10.0.0.9")[1] == "10.0.0.9/28"
    with pytest.raises(Conflict):
        book.take("b", "10.0.0.9")
    for ip in ("10.0.0.0", "10.0.0.1", "10.0.0.3", "10.0.0.15", "10.0.1.4", "here", "10.0.0.9/28"):
        with pytest.raises(Refused) as caught:
            book.take("b", ip)
        assert caught.value.code == "bad-address"
    given = {book.take(name)[1] for name in "bcdefghijk"}
    assert len(given) == 10 and "10.0.0.9/28" not in given
    with pytest.raises(Refused):
        book.take("l")
    book.free("a")
    assert book.take("l", "10.0.0.9")[1] == "10.0.0.9/28"


def test_a_freed_address_is_the_last_to_be_given_again(tmp_path: Path) -> None:
    book = make_book(tmp_path, "10.0.0.1/28")
    given = []
    for number in range(11):
        given.append(book.take(str(number))[1])
        book.free(str(number))
    assert len(set(given)) == 11
    assert book.take("again")[1] == given[0]


def test_a_full_network_is_refused_and_reserved_addresses_are_never_given(tmp_path: Path) -> None:
    book = make_book(tmp_path, "10.0.0.1/28")
    given = {book.take(str(number))[1] for number in range(11)}
    assert given == {f"10.0.0.{number}/28" for number in range(4, 15)}
    with pytest.raises(Refused) as caught:
        book.take("one more")
    assert caught.value.code == "no-address"
    assert "11 in use" in caught.value.seen
    book.free("5")
    assert book.take("one more")[1] in given


@pytest.mark.parametrize("gateway", ["10.0.0.9/28", "10.0.0.14/28"])
def test_the_gateway_is_never_given(tmp_path: Path, gateway: str) -> None:
    book = make_book(tmp_path, gateway)
    given = {book.take(str(number))[1] for number in range(10)}
    assert gateway not in given


def test_many_processes_at_once_get_different_ones(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from liveclone.store.leases import LeaseBook\n"
        "folder = Path(sys.argv[1]); book = LeaseBook(folder, folder / 'lock', '10.213.0.1/16')\n"
        "begin()\n"
        "for number in range(20): print(*book.take(f'{sys.argv[2]}-{number}'))\n"
    )
    outputs = run_at_once(program, [[str(tmp_path), name] for name in "abc"])
    words = [word for output in outputs for word in output.split()]
    assert len(words) == len(set(words)) == 3 * 20 * 2
