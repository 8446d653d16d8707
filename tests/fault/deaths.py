"""At which named point whose QEMU is killed, and what must be the case afterwards.

`tests/fault/test_qemu_death.py` kills; `tests/unit/test_deaths.py` sees that no point of the product is left out.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Whose(enum.Enum):
    """Whose QEMU is killed."""

    SOURCE = "source"  # the one that is the machine now, as its manifest says
    SUCCESSOR = "successor"  # the one that a handover hands over to
    CLONE = "clone"
    WAITING = "waiting"  # in a pool
    MACHINE = "machine"  # being made from an image, or started


class Outcome(enum.Enum):
    """What is left: of the source (or of the clone, or the machine), and of the snapshot."""

    RUNS_ON = "the source runs on as it was, there is no snapshot, the error says both"
    MOVES_ON = "the source runs on in its new process, the snapshot is there, no error"
    STOPPED = "the source is stopped, the error says so, it starts again from its disk; no snapshot"
    STANDS = "the source is stopped, the error says so, it starts again; the snapshot can be used"
    STOPPED_OR_STANDS = "one of these two: what had been streamed when it died decides"
    DONE = "as if nothing had been; who died is found stopped when somebody looks"
    GONE = "it is removed again, the error says what to do; nobody else is touched"
    STARTS = "it is stopped again, the error says so, and it can be started"


@dataclass(frozen=True)
class Death:
    point: str
    whose: Whose
    method: str  # of the snapshot under way; of clones: "clone"
    outcome: Outcome

    @property
    def id(self) -> str:
        return f"{self.point}-{self.whose.value}"


def _rows(method: str, whose: Whose, outcome: Outcome, points: str) -> list[Death]:
    return [Death(point, whose, method, outcome) for point in points.split()]


HANDOVER = [
    *_rows("handover", Whose.SOURCE, Outcome.STOPPED, "handover.successor handover.pausing handover.paused"),
    *_rows(
        "handover",
        Whose.SOURCE,
        Outcome.MOVES_ON,
        "handover.saved handover.loaded handover.committing handover.resumed",
    ),
    *_rows(
        "handover",
        Whose.SUCCESSOR,
        Outcome.RUNS_ON,
        "handover.successor snapshot.unplugged handover.pausing handover.paused handover.saved handover.loaded"
        " handover.committing",
    ),
    *_rows("handover", Whose.SUCCESSOR, Outcome.STANDS, "handover.resumed handover.retired"),
    # The successor is the source by now.
    *_rows("handover", Whose.SOURCE, Outcome.STANDS, "snapshot.committed"),
    *_rows("handover", Whose.SOURCE, Outcome.DONE, "snapshot.reconnected snapshot.done"),
]
IN_PLACE = [
    *_rows(
        "background",
        Whose.SOURCE,
        Outcome.STOPPED,
        "snapshot.begun snapshot.prepared snapshot.unplugged background.pausing background.paused background.frozen",
    ),
    *_rows("background", Whose.SOURCE, Outcome.STOPPED_OR_STANDS, "background.resumed"),
    *_rows("background", Whose.SOURCE, Outcome.STANDS, "background.streamed"),
    *_rows("stream", Whose.SOURCE, Outcome.STOPPED, "stream.pausing stream.paused stream.frozen"),
    *_rows("stream", Whose.SOURCE, Outcome.STANDS, "stream.resumed"),
]
# Where what is to be undone differs: what was taken out is with us alone, or is back in the guest and with us too.
SCRUBBING = [
    *_rows("background", Whose.SOURCE, Outcome.STOPPED, "scrub.removed"),
    *_rows("background", Whose.SOURCE, Outcome.DONE, "scrub.back"),
]
SEALING = _rows("background", Whose.SOURCE, Outcome.DONE, "seal.begun seal.copied seal.digested seal.done")
CLONING = [
    *_rows("clone", Whose.SOURCE, Outcome.DONE, "clone.checked clone.made"),
    *_rows(
        "clone",
        Whose.CLONE,
        Outcome.GONE,
        "clone.started clone.loaded clone.restored clone.resumed clone.identified clone.verified",
    ),
    *_rows("clone", Whose.CLONE, Outcome.DONE, "clone.connected clone.ready"),
]
POOLS = [
    *_rows("pool", Whose.WAITING, Outcome.DONE, "pool.loaded pool.recorded pool.ready"),
    *_rows("pool", Whose.WAITING, Outcome.GONE, "pool.taken"),
]
MAKING = _rows("run", Whose.MACHINE, Outcome.GONE, "run.booted run.answered")
STARTING = _rows("start", Whose.MACHINE, Outcome.STARTS, "start.booted run.answered")

TABLE = [*HANDOVER, *IN_PLACE, *SCRUBBING, *SEALING, *CLONING, *POOLS, *MAKING, *STARTING]

# Whose QEMU there may be at the points with this first word. A pair that is in none of the rows has its reason below.
CONCERNED = {
    "snapshot": {Whose.SOURCE},
    "handover": {Whose.SOURCE, Whose.SUCCESSOR},
    "background": {Whose.SOURCE},
    "stream": {Whose.SOURCE},
    "seal": {Whose.SOURCE},
    "scrub": {Whose.SOURCE},
    "clone": {Whose.CLONE},
    "pool": {Whose.WAITING},
    "run": {Whose.MACHINE},
    "start": {Whose.MACHINE},
    "export": set(),  # no machine takes part
    "import": set(),
}
NO_QEMU = {
    ("handover.retired", Whose.SOURCE): "it has just been ended",
    ("clone.checked", Whose.CLONE): "it has none yet",
    ("clone.made", Whose.CLONE): "it has none yet",
    ("pool.begun", Whose.WAITING): "it has none yet",
    ("pool.known", Whose.WAITING): "it has none yet",
    ("run.made", Whose.MACHINE): "it has none yet",
    ("scrub.begun", Whose.SOURCE): "nothing has been taken out: as at snapshot.prepared",
    ("scrub.kept", Whose.SOURCE): "nothing has been taken out: as at snapshot.prepared",
    ("scrub.clean", Whose.SOURCE): "as at scrub.removed, some seconds later",
}
