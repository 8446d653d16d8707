"""Hand out a machine's evidence as a file that others can check, and check one, here or elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import NotFound, Refused
from ..identity import proof as proofs
from ..identity import signature
from ..identity.signature import HostKey
from ..model import base
from ..model.machine import Machine
from ..model.proof import Check, Proof
from ..store.layout import Layout
from . import settings
from .context import Context


def export(ctx: Context, text: str) -> Proof:
    """Return a machine's signed record and those of all that it was compared with.

    Raises:
        NotFound: no such machine, or it is neither a clone nor the source of a snapshot.
    """
    machine = ctx.machines.find(text)
    for snapshot_id in _families(ctx, machine):
        found = ctx.evidence(snapshot_id).export(machine.id)
        if found is not None:
            return found
    raise NotFound(
        f"there is no evidence of {machine.name}",
        code="no-evidence",
        tried="reading evidence",
        on=machine.name,
        seen="it is neither a clone nor the source of a snapshot that is still there",
        next_step=f"liveclone show {machine.name}",
    )


def verify(file: str, key: Path | None) -> Check:
    """Check a proof. Needs nothing but the file and the key, and changes nothing.

    Args:
        file: its path; "-" for standard input.
        key: the public key of the host that is trusted, in PEM; this host's own when None.

    Raises:
        NotFound: the file cannot be read. Corrupt: it holds no evidence.
        Refused: no key is given and this host has none (code "no-key").
    """
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise NotFound(
            f"the evidence {file} cannot be read",
            code="no-file",
            tried="reading evidence",
            on=file,
            seen=error.strerror or str(error),
            next_step="liveclone show CLONE --evidence > FILE",
        ) from error
    proof = base.decode(data, Proof, file)
    return proofs.check(proof, signature.load_public(key) if key else _own_public(file), file)


def print_key(ctx: Context) -> str:
    """Return this host's public key in PEM; the key is made if there is none yet."""
    return ctx.host_key.public().decode()


def _own_public(file: str) -> bytes:
    found = settings.read()
    layout = Layout(found.home, found.hot)
    if not layout.host_key.exists():
        raise Refused(
            "this host has no key to check evidence with",
            code="no-key",
            tried="checking evidence",
            on=file,
            seen=f"no {layout.host_key}",
            next_step="give the one of the host that made it, as liveclone verify --print-key prints it there: --key FILE",
        )
    return HostKey(layout.host_key, layout.lock("host-key")).public_raw()


def _families(ctx: Context, machine: Machine) -> list[str]:
    """Return the snapshots in whose books a machine may be: a clone's own, then those taken of it, the latest first."""
    taken = [snapshot.id for snapshot in reversed(ctx.snapshots.list()) if snapshot.source == machine.id]
    return [machine.clone_of, *taken] if machine.clone_of else taken
