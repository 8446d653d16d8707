"""What is the new server's own, in liveclone's words: host name, SSH key, user data, metadata, cards with their addresses.

    instance.hostname        the guest's host name
    key pair (of type ssh)   a line of root's authorized_keys
    user data                kept in the guest for its hooks, and run there if it begins with `#!`
    metadata                 /var/lib/liveclone/metadata.json in the guest, and for its hooks
    ports                    MAC, first IPv4 address, gateway and name servers of each

The agent applies them, as in all of liveclone's clones (guest/parameters.py). The rest of what Nova tells a guest (vendor
data, IPv6, an address beyond the first) it finds where any other does: in the metadata service, on its network. What
is changed later is there too.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from typing import Any

from nova import objects

from liveclone.errors import Refused
from liveclone.model.network import NetworkKind, Nic
from liveclone.model.parameters import Parameters

_CERTIFICATE = "-----BEGIN"  # a key pair of type x509


def parameters_of(instance: objects.Instance) -> Parameters:
    """Return what the agent applies before the clone has a card.

    Raises:
        Refused: its user data is no text (code "bad-user-data").
    """
    key = (instance.key_data or "").strip()
    return Parameters(
        hostname=instance.hostname,
        ssh_keys=(key,) if key and not key.startswith(_CERTIFICATE) else (),
        user_data=_read_user_data(instance),
        metadata=dict(instance.metadata),
    )


def nic_of(vif: Any) -> Nic:
    """Return a card of Nova's network model; without an IPv4 address where its port has none."""
    mac = vif["address"].lower()
    for subnet in vif["network"]["subnets"]:
        for ip in subnet["ips"] if subnet["version"] == 4 else ():
            prefix = ipaddress.ip_network(subnet["cidr"]).prefixlen
            return Nic(
                id=vif["id"],
                kind=NetworkKind.LIBVIRT,
                mac=mac,
                address=f"{ip['address']}/{prefix}",
                gateway=(subnet["gateway"] or {}).get("address") or "",
                dns=" ".join(server["address"] for server in subnet["dns"]),
            )
    return Nic(id=vif["id"], kind=NetworkKind.LIBVIRT, mac=mac, address="")


def _read_user_data(instance: objects.Instance) -> str:
    try:
        return base64.b64decode(instance.user_data or "").decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise Refused(
            "its user data is no text, and only text can be given to a guest that is restored",
            code="bad-user-data",
            tried="reading the user data of a server",
            on=instance.uuid,
            seen=str(error),
            next_step="give text, such as a script that unpacks the rest",
        ) from error
