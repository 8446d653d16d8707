"""The releases of Nova that this plugin works with, looked at when it is loaded.

The plugin inherits from classes of Nova and calls methods of its compute manager that are no public interface. With a
release that nobody has tried it could fail in the middle of a snapshot; so it refuses to be loaded, before anything starts.
"""

from __future__ import annotations

import re
from importlib import metadata

# By Nova's major version: the releases on which plugins/nova/tests pass.
SUPPORTED = {34: "2026.2 Hibiscus"}


class UnsupportedNova(ImportError):
    """The Nova found here is none of SUPPORTED. An ImportError: nova-compute reports that one and stops."""


def check_nova() -> None:
    """Refuse a Nova that is not supported.

    Raises:
        UnsupportedNova: says which one was found, and which ones are supported.
    """
    found = metadata.version("nova")
    major = re.match(r"\d+", found)
    if major is None or int(major[0]) not in SUPPORTED:
        known = ", ".join(f"{number} ({name})" for number, name in SUPPORTED.items())
        raise UnsupportedNova(
            f"liveclone-nova works with Nova {known}, and this is Nova {found}: install a liveclone-nova made for it, or "
            "switch the plugin off (api-paste.ini and compute_driver)"
        )
