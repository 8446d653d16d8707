"""Where everything lies. The only module that joins these paths.

    HOME/                              durable: $LIVECLONE_HOME
      images/NAME/                     manifest.json disk.qcow2 vmlinuz initrd
      machines/ID/                     manifest.json operation.json disk-N.qcow2 run/ qemu.log console.log scrubbed.json
      snapshots/ID/                    manifest.json state memory disk.qcow2 key evidence/MACHINE.json seal.log
                                       kernel initrd (of one that was imported)
                                       pool/ size MACHINE.json log (engine/pool.py)
      network/                         macs leases.json
      host.key                         signs evidence (identity/signature.py)
      locks/                           one file for each collection, and for each object: KIND-ID
    HOT/                               tmpfs: $LIVECLONE_HOT
      MACHINE.ram                      RAM of a machine that started from cold, mapped shared
      SNAPSHOT.mem                     memory image of a snapshot, mapped private by its clones

Locks: a command that changes an object holds the object's lock; it takes a collection's lock only for the moment in
which a name is claimed. The kernel drops a lock when its holder dies, so a free lock beside an `operation.json` means
that an operation was interrupted (store/journal.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ..host import files

MANIFEST = "manifest.json"
OPERATION = "operation.json"


@dataclass(frozen=True)
class Layout:
    """The two roots and all that follows from them."""

    home: Path
    hot: Path

    @property
    def images(self) -> Path:
        return self.home / "images"

    @property
    def machines(self) -> Path:
        return self.home / "machines"

    @property
    def snapshots(self) -> Path:
        return self.home / "snapshots"

    @property
    def network(self) -> Path:
        return self.home / "network"

    @property
    def host_key(self) -> Path:
        return self.home / "host.key"

    @property
    def namespace(self) -> str:
        """Name of the network namespace of this home, the same for every command that uses it."""
        return "liveclone-" + hashlib.sha256(str(self.home.resolve()).encode()).hexdigest()[:8]

    @property
    def locks(self) -> Path:
        return self.home / "locks"

    def machine(self, machine_id: str) -> Path:
        return self.machines / machine_id

    def snapshot(self, snapshot_id: str) -> Path:
        return self.snapshots / snapshot_id

    def pool(self, snapshot_id: str) -> Path:
        return self.snapshot(snapshot_id) / "pool"

    def waiting(self, snapshot_id: str, machine_id: str) -> Path:
        return self.pool(snapshot_id) / f"{machine_id}.json"

    def lock(self, name: str) -> Path:
        return self.locks / name

    def ram(self, machine_id: str) -> Path:
        return self.hot / f"{machine_id}.ram"

    def hot_image(self, snapshot_id: str) -> Path:
        return self.hot / f"{snapshot_id}.mem"

    def prepare(self) -> None:
        """Make the folders that are missing, owner only.

        Raises:
            StoreError: one cannot be made; `next_step` names the setting that moves it. Those made before stay.
        """
        home = (self.machines, self.snapshots, self.network, self.locks)
        for setting, folder in (*(("LIVECLONE_HOME", path) for path in home), ("LIVECLONE_HOT", self.hot)):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                problem = files.explain(error, "making a folder", folder)
                problem.source_state = "not touched"
                problem.next_step = f"set {setting} to a folder that this user can write (liveclone doctor)"
                raise problem from error
