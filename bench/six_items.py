#!/usr/bin/python3
"""Let the agent of an image renew only the six items that there were first; `identity.py` builds an image with it.

The others say that this guest has no such thing, for the host demands that each is reported. Run by `image build` in the
guest's root.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

AGENT = Path("/usr/lib/liveclone/agent.pyz")
FOLDER = "liveclone_guest/items/"
SIX = ("__init__", "rng", "clock", "hostname", "machine_id", "ssh_host_keys", "network")
ABSENT = """\
from . import Item


class Absent(Item):
    name = "{name}"
    only_renews = True

    def observe(self, ctx):
        return None, {{}}


ITEM = Absent
"""


def render(name: str, data: bytes) -> bytes:
    """Return what becomes of a file of the agent."""
    item = Path(name).stem
    return ABSENT.format(name=item).encode() if name.startswith(FOLDER) and item not in SIX else data


with zipfile.ZipFile(AGENT) as whole:
    # Without the compiled modules, which would be older than their sources.
    entries = {name: whole.read(name) for name in whole.namelist() if not name.endswith(".pyc")}
entries = {name: render(name, data) for name, data in entries.items()}
fresh = AGENT.with_suffix(".new")
with zipfile.ZipFile(fresh, "w") as part:
    for name, data in entries.items():
        part.writestr(name, data)
fresh.replace(AGENT)
subprocess.run([sys.executable, "-I", "-S", AGENT, "--precompile"], check=True)
