"""What is asked for when clones are started, and what becomes of it: values, and the names. Nothing is touched yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import LivecloneError, Refused
from ..ids import check_hostname, check_name
from ..model.identity import Evidence
from ..model.machine import Machine
from ..model.network import NetworkKind, Port
from ..model.parameters import NONE, Parameters
from ..model.snapshot import Snapshot
from ..units import KIB
from .context import Context

MOST = 1000  # clones in one request
USER_DATA_BYTES = METADATA_BYTES = 64 * KIB  # a line to the agent holds both many times over


@dataclass(frozen=True)
class Request:
    """What is asked for.

    `names` may be fewer than `count`; the rest get SNAPSHOT-cN. `parameters` are those of the first clone, the second, ...
    `ports` go to each clone, so host port 0 for several.
    """

    snapshot: str
    count: int = 1
    names: Sequence[str] = ()
    parameters: Sequence[Parameters] = ()
    ports: Sequence[Port] = ()
    network: NetworkKind | None = None
    keep_failed: bool = False
    overcommit: bool = False


@dataclass
class Result:
    """One clone that was asked for: ready, or why not."""

    name: str
    parameters: Parameters = NONE
    machine: Machine | None = None
    evidence: Evidence | None = None
    error: LivecloneError | None = None
    ready_s: float = 0.0  # from the request to verified and connected
    steps_ms: dict[str, float] = field(default_factory=dict)
    pooled: bool = False  # it waited in the pool


def choose_names(ctx: Context, snapshot: Snapshot, request: Request) -> list[str]:
    """Return a name for each clone; those that were not given are the first free ones of SNAPSHOT-c1, -c2, ...

    Raises:
        Refused: a bad count, name or port.
    """
    if not 1 <= request.count <= MOST:
        raise Refused(
            f"{request.count} clones cannot be started at once",
            code="bad-count",
            tried="counting clones",
            seen=str(request.count),
            next_step=f"ask for 1 to {MOST}",
        )
    if request.count > 1 and any(port.host_port for port in request.ports):
        raise Refused(
            "several clones cannot publish the same port of the host",
            code="bad-port",
            tried="publishing ports",
            seen=f"{request.count} clones",
            next_step="give host port 0, and each gets a free one",
        )
    names = [check_name(name, "machine name") for name in request.names]
    taken = {machine.name for machine in ctx.machines.list()}
    for name in names:
        if name in taken or names.count(name) > 1:
            raise Refused(
                f"the name {name} is taken",
                code="name-taken",
                tried="naming clones",
                on=name,
                next_step="choose another name",
            )
    number = 1
    while len(names) < request.count:
        name = f"{snapshot.name[:50]}-c{number}"
        if name not in taken and name not in names:
            names.append(name)
        number += 1
    return names


def choose_parameters(request: Request) -> list[Parameters]:
    """Return the parameters of each clone.

    Raises:
        Refused: a host name that is none, an address for a machine without a network, a key that is none, too much of
            user data or metadata, or more parameters than clones.
    """
    given = list(request.parameters)
    if len(given) > request.count:
        raise _refuse(f"parameters for {len(given)} clones were given", f"{request.count} are asked for")
    for one in given:
        if one.hostname:
            check_hostname(one.hostname)
        if one.address and request.network is NetworkKind.NONE:
            raise _refuse("a machine without a network has no address", one.address)
        for key in one.ssh_keys:
            if "\n" in key or len(key.split()) < 2:
                raise _refuse("an SSH key is one line of its public part: ssh-ed25519 AAAA...", key[:40])
        if len(one.user_data.encode()) > USER_DATA_BYTES:
            raise _refuse(f"user data is at most {USER_DATA_BYTES} bytes", f"{len(one.user_data)} characters")
        if sum(len(text.encode()) for pair in one.metadata.items() for text in pair) > METADATA_BYTES:
            raise _refuse(f"metadata is at most {METADATA_BYTES} bytes", f"{len(one.metadata)} pairs")
    return given + [NONE] * (request.count - len(given))


def _refuse(message: str, seen: str) -> Refused:
    return Refused(
        message,
        code="bad-parameter",
        tried="reading the parameters of a clone",
        seen=seen,
        source_state="not touched",
        next_step="liveclone clone --help",
    )
