"""MACs and addresses: a MAC is never given twice in a home, an address not while its machine exists.

    HOME/network/macs          one MAC a line, only ever appended to
    HOME/network/leases.json   {"last": 7, "addresses": {"10.213.0.7": "MACHINE-ID"}}

A MAC is 40 random bits under 02 (locally administered, unicast), so two homes of one host differ too. Addresses
are given in turn, so that one that was just freed is not found in anybody's neighbour table.
"""

from __future__ import annotations

import ipaddress
import secrets
from pathlib import Path

from ..errors import Conflict, Refused
from ..host import files, locks
from ..model import base
from ..model.base import Value


class Leases(Value, frozen=True, kw_only=True):
    last: int = 1
    addresses: dict[str, str] = {}


class LeaseBook:
    """Gives MACs and addresses.

    Args:
        folder: HOME/network.
        network: CIDR whose first host is the gateway ("10.213.0.1/16").
    """

    def __init__(self, folder: Path, lock: Path, network: str) -> None:
        self._macs = folder / "macs"
        self._leases = folder / "leases.json"
        self._lock = lock
        self._interface = ipaddress.IPv4Interface(network)

    @property
    def gateway(self) -> str:
        return str(self._interface.ip)

    @property
    def name_server(self) -> str:
        """The address that QEMU's user network answers names at."""
        return str(self._interface.network.network_address + 3)

    def take(self, machine_id: str, wanted: str = "") -> tuple[str, str]:
        """Return a MAC and an address (CIDR) for the machine; an address it has already is kept.

        Args:
            wanted: the address it is to have, without a prefix.

        Raises:
            Refused: every address is taken (code "no-address"), or the wanted one is none that a machine of this network
                can have (code "bad-address").
            Conflict: another machine has the wanted one (code "address-taken").
        """
        with locks.hold(self._lock, "giving an address", 30.0):
            address = self._wanted(machine_id, wanted) if wanted else self._address(machine_id)
            return self._new_mac(), address

    def take_mac(self) -> str:
        """Return a MAC for a NIC whose address others give."""
        with locks.hold(self._lock, "giving a MAC", 30.0):
            return self._new_mac()

    def free(self, machine_id: str) -> None:
        """Give the machine's address back; its MAC is never used again."""
        with locks.hold(self._lock, "freeing an address", 30.0):
            leases = self._read()
            kept = {ip: owner for ip, owner in leases.addresses.items() if owner != machine_id}
            if kept != leases.addresses:
                self._write(leases.replace(addresses=kept))

    def _new_mac(self) -> str:
        used = set(self._macs.read_text().split()) if self._macs.exists() else set()
        while True:
            mac = "02:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(5))
            if mac not in used:
                break
        try:
            with self._macs.open("a", encoding="ascii") as file:
                file.write(mac + "\n")
        except OSError as error:
            raise files.explain(error, "writing a MAC down", self._macs) from error
        return mac

    def _address(self, machine_id: str) -> str:
        leases = self._read()
        prefix = self._interface.network.prefixlen
        for ip, owner in leases.addresses.items():
            if owner == machine_id:
                return f"{ip}/{prefix}"
        size = self._interface.network.num_addresses
        first = self._interface.network.network_address
        for step in range(1, size):
            number = (leases.last + step) % size
            ip = str(first + number)
            if self._is_machines(number) and ip not in leases.addresses:
                self._write(leases.replace(last=number, addresses=leases.addresses | {ip: machine_id}))
                return f"{ip}/{prefix}"
        raise Refused(
            "every address of the network is taken",
            code="no-address",
            tried="giving an address",
            on=str(self._interface.network),
            seen=f"{len(leases.addresses)} in use",
            next_step="remove machines that are not needed",
        )

    def _wanted(self, machine_id: str, ip: str) -> str:
        network, leases = self._interface.network, self._read()
        try:
            number = int(ipaddress.IPv4Address(ip)) - int(network.network_address)
        except ValueError:
            number = -1
        if not self._is_machines(number):
            raise Refused(
                f"{ip!r} is no address for a machine of this network",
                code="bad-address",
                tried="giving an address",
                on=str(network),
                seen=f"the gateway is {self.gateway}, and the first few are kept for it",
                next_step=f"choose one of {network}, or none: then the next free one is given",
            )
        owner = leases.addresses.get(ip, machine_id)
        if owner != machine_id:
            raise Conflict(
                f"the address {ip} is another machine's",
                code="address-taken",
                tried="giving an address",
                on=ip,
                seen=f"it belongs to {owner}",
                next_step="choose another one, or none: then the next free one is given",
            )
        self._write(leases.replace(addresses=leases.addresses | {ip: machine_id}))
        return f"{ip}/{network.prefixlen}"

    def _is_machines(self, number: int) -> bool:
        """Whether the address with this number in the network may be a machine's.

        0 is the network, 1 the gateway, 2 and 3 QEMU's own in the user network, the last is broadcast.
        """
        network = self._interface.network
        gateway = int(self._interface.ip) - int(network.network_address)
        return 3 < number < network.num_addresses - 1 and number != gateway

    def _read(self) -> Leases:
        try:
            return base.decode(self._leases.read_bytes(), Leases, str(self._leases))
        except FileNotFoundError:
            return Leases()

    def _write(self, leases: Leases) -> None:
        files.write_atomic(self._leases, base.encode(leases), durable=False)
