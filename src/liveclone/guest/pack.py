"""Host side: put the agent into one file that any Python 3.8 runs.

    agent.pyz
    ├── __main__.py           starts the agent
    ├── liveclone-agent.service
    └── liveclone_guest/      this package, without what only the host needs or is a file of its own

The same sources give the same bytes, whenever and wherever they are packed, so `digest()` may be part of an
image's recipe. Entries are stored, not deflated: the guest then needs no zlib to start.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path

PACKAGE = "liveclone_guest"
SERVICE = Path(__file__).with_name("liveclone-agent.service")
CLIENT = Path(__file__).with_name("liveclone_app.py")  # for the guest's programs, as a file of its own

_HERE = Path(__file__).parent
_APART = {"pack.py", CLIENT.name}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time a zip file can tell
_MAIN = f"""\
import sys

from {PACKAGE}.priority import go_first

go_first()  # before the rest is loaded, which takes a second at boot under emulation

from {PACKAGE}.main import main

sys.exit(main(sys.argv[1:]))
"""


def pack(target: Path) -> None:
    """Write the agent to `target`, whole or not at all; parent folders must be there."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_bytes(render())
        temporary.chmod(0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def digest() -> str:
    """Return the SHA-256, in hex, of what pack() writes."""
    return hashlib.sha256(render()).hexdigest()


def render(*, deflated: bool = False) -> bytes:
    """Return the bytes of the zipapp; `deflated`, less than half of them, is for a narrow way into a guest."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        _add(archive, "__main__.py", _MAIN.encode())
        for path in sorted(_HERE.rglob("*.py")):
            name = path.relative_to(_HERE).as_posix()
            if name not in _APART:
                _add(archive, f"{PACKAGE}/{name}", path.read_bytes())
        _add(archive, SERVICE.name, SERVICE.read_bytes())
    return content.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.create_system = 3  # Unix, on whatever system this runs
    entry.external_attr = 0o100644 << 16
    archive.writestr(entry, data, archive.compression)
