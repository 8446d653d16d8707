"""Keep the evidence of each member of a snapshot's family, so that every new clone is compared with all of them.

    snapshots/ID/key                    32 random bytes: digests of this family are keyed with it
    snapshots/ID/evidence/MACHINE.json  the source's, and one for each clone ever judged (kept when a clone is gone),
                                        signed with the host's key (docs/evidence.md)

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
from ..model.proof import Proof, Record
from . import verify
from .signature import HostKey

KEY_BYTES = 32


class _Kept(base.Value, frozen=True, kw_only=True):
    """A file of the book, when its signature is not asked for: the files of this host are believed."""

    evidence: Evidence


class EvidenceBook:
    """The evidence of one snapshot's family.

    Args:
        folder: the snapshot's folder.
        lock: a lock file of its own.
        host_key: signs what is recorded.
    """

    def __init__(self, folder: Path, lock: Path, host_key: HostKey) -> None:
        self._host_key = host_key
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
            found[path.stem] = base.decode(path.read_bytes(), _Kept, str(path)).evidence
        return found

    def load(self, machine_id: str) -> Evidence | None:
        """Return one machine's evidence, or None."""
        path = self._folder / f"{machine_id}.json"
        return base.decode(path.read_bytes(), _Kept, str(path)).evidence if path.exists() else None

    def export(self, machine_id: str) -> Proof | None:
        """Return one machine's signed record and those of all that it was compared with; None if there is none."""
        evidence = self.load(machine_id)
        if evidence is None:
            return None
        members = (self._record(other) for other in evidence.compared_with)
        return Proof(subject=self._record(machine_id), members=tuple(members))

    def _record(self, machine_id: str) -> Record:
        path = self._folder / f"{machine_id}.json"
        return base.decode(path.read_bytes(), Record, str(path))

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
        """Sign and write evidence."""
        if not self._folder.exists():
            files.make_folder(self._folder)
        path = self._folder / f"{evidence.machine}.json"
        plain = base.builtins(evidence)
        record = Record(evidence=plain, signature=self._host_key.sign(plain))
        files.write_atomic(path, base.encode(record), durable=False)


def _without_facts(item: ItemReport) -> ItemReport:
    """Return what is compared of an item that was observed: its digest, and whether it was there."""
    bare: ItemReport = item.replace(details={}, took_ms=0.0)
    return bare
