"""Keep the evidence of each member of a snapshot's family, so that every new clone is compared with all of them.

    snapshots/ID/key                    32 random bytes: digests of this family are keyed with it
    snapshots/ID/evidence/MACHINE.json  the source's, and one for each clone ever verified (kept when a clone is gone)

Two clones that come up at once must see each other, so comparing and recording is one step under a lock.
"""

from __future__ import annotations

import secrets
from collections.abc import Container
from pathlib import Path

from ..errors import Corrupt
from ..host import files, locks
from ..model import base
from ..model.identity import Evidence, ItemReport
from . import verify

KEY_BYTES = 32


class EvidenceBook:
    """The evidence of one snapshot's family.

    Args:
        folder: the snapshot's folder.
        lock: a lock file of its own.
    """

    def __init__(self, folder: Path, lock: Path) -> None:
        self._folder = folder / "evidence"
        self._key = folder / "key"
        self._lock = lock

    def make_key(self) -> bytes:
        """Make the family's key; called once, when the snapshot is begun."""
        key = secrets.token_bytes(KEY_BYTES)
        files.write_atomic(self._key, key, durable=False)
        return key

    def key(self) -> bytes:
        """Return the family's key.

        Raises:
            Corrupt: it is missing or has a wrong length; without it nothing can be compared, so nothing may start.
        """
        key = self._key.read_bytes() if self._key.exists() else b""
        if len(key) != KEY_BYTES:
            raise Corrupt(
                "the snapshot's evidence key is damaged",
                code="bad-key",
                tried="reading the evidence key",
                on=str(self._key),
                seen=f"{len(key)} bytes",
                next_step="take a new snapshot",
            )
        return key

    def members(self) -> dict[str, Evidence]:
        """Return all evidence so far, by machine id."""
        found = {}
        for path in sorted(self._folder.glob("*.json")):
            found[path.stem] = base.decode(path.read_bytes(), Evidence, str(path))
        return found

    def load(self, machine_id: str) -> Evidence | None:
        """Return one machine's evidence, or None."""
        path = self._folder / f"{machine_id}.json"
        return base.decode(path.read_bytes(), Evidence, str(path)) if path.exists() else None

    def judge_and_record(
        self, evidence: Evidence, snapshot_items: tuple[ItemReport, ...], existing: Container[str]
    ) -> Evidence:
        """Judge `evidence` against snapshot and members, record it with the verdict, and return it so.

        Findings that it has already stay. `existing` are the ids of the machines that exist now.
        """
        with locks.hold(self._lock, f"comparing {evidence.name}", 60.0):
            members = {key: value for key, value in self.members().items() if key != evidence.machine}
            complete: Evidence = evidence.replace(
                snapshot_items=tuple(_without_facts(item) for item in snapshot_items),
                compared_with=tuple(members),
                gone=tuple(key for key in members if key not in existing),
            )
            judged: Evidence = complete.replace(
                findings=(*evidence.findings, *verify.judge(complete, members))
            )
            self.record(judged)
        return judged

    def record(self, evidence: Evidence) -> None:
        """Write evidence that needs no verdict (the source's)."""
        if not self._folder.exists():
            files.make_folder(self._folder)
        path = self._folder / f"{evidence.machine}.json"
        files.write_atomic(path, base.encode(evidence), durable=False)


def _without_facts(item: ItemReport) -> ItemReport:
    """Return what is compared of an item that was observed: its digest, and whether it was there."""
    bare: ItemReport = item.replace(details={}, took_ms=0.0)
    return bare
