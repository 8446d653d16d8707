"""What a machine has written down about its network cards, by MACs that its clones do not have, and ids of connections.

    removed    rules that name a card by the source's MAC (udev's persistent-net rules, *.link), for they would keep the
               name from the clone's card; lines that give a card the source's MAC, for the clone's card would take it
    renewed    the uuid of each NetworkManager connection, wherever a connection names it, and where NetworkManager has noted
               which one a card has: by that it goes on with cards that stay (bridges, bonds), which it would else leave
               alone, with the source's addresses
    kept       a connection that is meant for the card with the source's MAC alone (mac-address=, HWADDR=, match:). No card
               of the clone has that, so it does nothing; without its MAC it would give the clone's card what may be
               the source's address. `details` names these files

The source's MACs are those of the cards it had before its snapshot, and those that the host gave it last. What the clone's
own will be is not known yet; its card is found by MAC later, whatever its name is then.
"""

from __future__ import annotations

import json
import re
import signal

from .. import files
from ..context import Context
from ..programs import signal_by_name
from . import Item
from .machine_id import render_uuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from . import Details, Observed

    Text = str | None  # None: no such file
    Drop = Callable[[str, set[str]], Text]

_NICS = "/var/lib/liveclone/network.json"  # what `network` was asked for last
_GIVES = ("macaddress", "cloned-mac-address", "macaddr", "hwaddress", "hwaddress ether")
_UUID = re.compile(r"(?mi)^uuid=[\"']?([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_CONNECTIONS = (
    ("/etc/NetworkManager/system-connections", ""),
    ("/run/NetworkManager/system-connections", ""),
    ("/etc/sysconfig/network-scripts", "ifcfg-"),
)
_IN_USE = "/run/NetworkManager/devices"  # a file for each card


class InterfaceNames(Item):
    name = "interface_names"
    only_renews = True

    def __init__(self) -> None:
        self._macs: set[str] = set()

    def observe(self, ctx: Context) -> Observed:
        found, macs = self._plan(ctx), self._find_macs(ctx)
        uuids = sorted({uuid for name, text, _ in found for uuid in _find_uuids(name, text)})
        kept = [name for name, _, after in found if after is not None and _names_one(after, macs)]
        details = {"kept": " ".join(kept)} if kept else {}
        if not uuids and all(text == after for _, text, after in found):
            return None, details
        return "\n".join(uuids).encode(), details

    def reset(self, ctx: Context) -> Details:
        found = self._plan(ctx)
        fresh = {
            uuid: render_uuid(ctx.kernel.draw(16))
            for name, text, _ in found
            for uuid in _find_uuids(name, text)
        }
        for name, text, after in found:
            if after is not None and _is_connection(name):
                after = _replace(after, fresh)
            if after is None:
                ctx.remove(name)
            elif after != text:
                ctx.rewrite(name, after)
        for name in ctx.names(_IN_USE) if fresh else ():
            text = files.find_text(ctx.path(f"{_IN_USE}/{name}")) or ""
            after = _replace(text, fresh)
            if after != text:
                ctx.rewrite(f"{_IN_USE}/{name}", after)
        if any(text != after and _is_for_udev(name) for name, text, after in found):
            # It looks for new rules every three seconds at the most, and the next card comes sooner.
            signal_by_name(ctx.root, ("systemd-udevd",), signal.SIGHUP)
        return {}

    def warm(self, ctx: Context) -> None:
        # A tunnel has an address of another length, or nothing but noughts: part of many a MAC.
        self._macs = {mac for _, mac, _ in ctx.kernel.interfaces() if len(mac) == 17 and mac.strip("0:")}

    def _find_macs(self, ctx: Context) -> set[str]:
        try:
            given = json.loads(files.find_text(ctx.path(_NICS)) or "[]")
            return self._macs | {str(nic["mac"]).lower() for nic in given}
        except (ValueError, TypeError, KeyError):
            return self._macs

    def _plan(self, ctx: Context) -> list[tuple[str, str, Text]]:
        """Return name, text and future text of all files that may name a MAC or a connection's uuid."""
        macs = self._find_macs(ctx)
        found: list[tuple[str, str, Text]] = []
        for folder, start, drops in _FILES:
            for name in ctx.names(folder):
                drop = next((drop for end, drop in drops.items() if name.endswith(end)), None)
                text = (
                    files.find_text(ctx.path(f"{folder}/{name}")) if drop and name.startswith(start) else None
                )
                if drop and text is not None:
                    found.append((f"{folder}/{name}", text, drop(text, macs)))
        return found


def _find_uuids(name: str, text: str) -> list[str]:
    return _UUID.findall(text) if _is_connection(name) else []


def _replace(text: str, fresh: dict[str, str]) -> str:
    for old, new in fresh.items():
        text = text.replace(old, new)
    return text


def _is_connection(name: str) -> bool:
    return name.startswith(tuple(folder for folder, _ in _CONNECTIONS))


def _is_for_udev(name: str) -> bool:
    return name.endswith((".rules", ".link"))


def _names_one(text: str, macs: set[str]) -> bool:
    text = text.lower().replace("-", ":")
    return any(mac in text for mac in macs)


def _drop_rules(text: str, macs: set[str]) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not _names_one(line, macs))


def _drop_rule(text: str, macs: set[str]) -> Text:
    """Return None for a rule that names such a card; else as _drop_given."""
    for section in re.split(r"(?m)^(?=[ \t]*\[)", text):
        if section.strip().lower().startswith("[match]") and _names_one(section, macs):
            return None
    return _drop_given(text, macs)


def _drop_given(text: str, macs: set[str]) -> str:
    """Return a text without the lines that give a card one of the MACs."""
    if not _names_one(text, macs):
        return text
    kept = []
    section = ""
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("["):
            section = line.strip().lower()
        key = " ".join(re.split(r"[=\s]+", line.strip().lower())[:-1])
        if section == "[match]" or key not in _GIVES or not _names_one(line, macs):
            kept.append(line)
    return "".join(kept)


def _drop_given_in_yaml(text: str, macs: set[str]) -> str:
    """Likewise: `macaddress:` gives a card its MAC unless it stands below `match:`."""
    kept: list[str] = []
    for line in text.splitlines(keepends=True):
        gives = line.lstrip().startswith("macaddress:") and _names_one(line, macs)
        above = (before for before in reversed(kept) if before.strip() and _indent(before) < _indent(line))
        if not gives or next(above, "").strip() == "match:":
            kept.append(line)
    return "".join(kept)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


_SYSTEMD: dict[str, Drop] = {".link": _drop_rule, ".network": _drop_given, ".netdev": _drop_given}
_GIVEN: dict[str, Drop] = {"": _drop_given}
# Folder, how names begin, and by how they end: what is left of the file's text.
_FILES: tuple[tuple[str, str, dict[str, Drop]], ...] = (
    ("/etc/udev/rules.d", "", {"persistent-net.rules": _drop_rules}),
    ("/etc/systemd/network", "", _SYSTEMD),
    ("/run/systemd/network", "", _SYSTEMD),
    *((folder, start, _GIVEN) for folder, start in _CONNECTIONS),
    ("/etc/network", "interfaces", {"interfaces": _drop_given}),
    ("/etc/network/interfaces.d", "", _GIVEN),
    ("/etc/netplan", "", {".yaml": _drop_given_in_yaml}),
)

ITEM = InterfaceNames
