"""Add compiled modules to the zipapp we run from, for the Python that runs it.

Python keeps no compiled modules for a zipapp: each start compiles all of it again, which under emulation takes
longer than everything else together. An image builder runs `agent.pyz --precompile` once, in the
guest. Another Python version later finds modules of the wrong version, passes over them and uses the sources.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import zipfile

_UNCHECKED_HASH = (1).to_bytes(4, "little")  # PEP 552: valid whatever the source is; it lies in the same file


def precompile(archive: str) -> None:
    """Replace the zipapp `archive` by one with compiled modules, whole or not at all."""
    with zipfile.ZipFile(archive) as old:
        kept = [(entry, old.read(entry)) for entry in old.infolist() if not entry.filename.endswith(".pyc")]
    temporary = f"{archive}.liveclone"
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as new:
            for entry, source in kept:
                new.writestr(entry, source, zipfile.ZIP_STORED)
                if not entry.filename.endswith(".py"):
                    continue
                compiled = zipfile.ZipInfo(entry.filename + "c", entry.date_time)
                compiled.external_attr = entry.external_attr
                new.writestr(compiled, _compile(f"{archive}/{entry.filename}", source))
        os.chmod(temporary, 0o644)
        os.replace(temporary, archive)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _compile(name: str, source: bytes) -> bytes:
    code = compile(source, name, "exec", dont_inherit=True)
    return (
        importlib.util.MAGIC_NUMBER
        + _UNCHECKED_HASH
        + importlib.util.source_hash(source)
        + marshal.dumps(code)
    )
