#!/usr/bin/python3
"""Leave the agent of an image only the six items that there were first; `identity.py` builds an image with it.

Run by `image build` in the guest's root.
"""

import zipfile
from pathlib import Path

AGENT = Path("/usr/lib/liveclone/agent.pyz")
FOLDER = "liveclone_guest/items/"
SIX = ("__init__", "rng", "clock", "hostname", "machine_id", "ssh_host_keys", "network")


def is_kept(name: str) -> bool:
    """Whether a file of the agent stays; compiled ones are named after their module too."""
    return not name.startswith(FOLDER) or Path(name).name.split(".")[0] in SIX


with zipfile.ZipFile(AGENT) as whole:
    entries = {name: whole.read(name) for name in whole.namelist() if is_kept(name)}
fresh = AGENT.with_suffix(".new")
with zipfile.ZipFile(fresh, "w") as part:
    for name, data in entries.items():
        part.writestr(name, data)
fresh.replace(AGENT)
