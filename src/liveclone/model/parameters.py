"""What a user may give one clone instead of what would be chosen for it."""

from __future__ import annotations

from .base import Value


class Parameters(Value, frozen=True, kw_only=True):
    """One clone's. What is empty is chosen: the machine's name, the next free address; no key, nothing told.

    `user_data` is kept in the guest, and run there if it begins with `#!`; `metadata` is a file there (guest/parameters.py).
    """

    hostname: str = ""
    address: str = ""  # IPv4, of the machines' network
    ssh_keys: tuple[str, ...] = ()  # lines of authorized_keys(5), for root; those that are there stay
    user_data: str = ""
    metadata: dict[str, str] = {}


NONE = Parameters()
