"""Arguments and options that several verbs share, and how their text becomes values.

Texts are parsed by the functions here, so that a bad one is a Refused with a next step, as everywhere else.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from . import complete

if TYPE_CHECKING:
    from pathlib import Path

    from ..model.network import NetworkKind, Port
    from ..model.parameters import Parameters

Machine = Annotated[
    str,
    typer.Argument(
        metavar="MACHINE", help="Name, id, or the beginning of an id.", autocompletion=complete.machines
    ),
]
Machines = Annotated[
    list[str],
    typer.Argument(
        metavar="MACHINE", help="Names, ids, or beginnings of ids.", autocompletion=complete.machines
    ),
]
Snapshot = Annotated[
    str,
    typer.Argument(
        metavar="SNAPSHOT", help="Name, id, or the beginning of an id.", autocompletion=complete.snapshots
    ),
]
Snapshots = Annotated[
    list[str],
    typer.Argument(
        metavar="SNAPSHOT", help="Names, ids, or beginnings of ids.", autocompletion=complete.snapshots
    ),
]
Image = Annotated[
    str, typer.Argument(metavar="IMAGE", help="Name of an image.", autocompletion=complete.images)
]
Network = Annotated[
    Literal["bridge", "user", "none", "libvirt"] | None,
    typer.Option(
        "--network", metavar="bridge|user|none|libvirt", help="How it reaches others.", show_default=False
    ),
]
Policy = Annotated[
    str,
    typer.Option(
        "--policy",
        metavar="NAME|FILE",
        help="What decides whether a snapshot is safe: open, default, strict, or a file (docs/scan.md).",
        autocompletion=complete.policies,
    ),
]
Publish = Annotated[
    list[str] | None,
    typer.Option(
        "--publish",
        "-p",
        metavar="[IP:]HOST:GUEST",
        help="Publish the guest's TCP port on the host; host port 0 or none: a free one. May be given again.",
        show_default=False,
    ),
]

# Taken by main.take_settings, wherever nothing is completed.
Driver = Annotated[
    str,
    typer.Option("--driver", metavar="NAME", help="Who runs new machines.", autocompletion=complete.drivers),
]
Connect = Annotated[
    str, typer.Option("--connect", metavar="URI", help="Which libvirt.", autocompletion=complete.uris)
]

_PORT = re.compile(r"(?:(?:(?P<ip>\[[0-9a-fA-F:.]+\]|[^:\[\]]*):)?(?P<host>\d*):)?(?P<guest>\d+)(?:/tcp)?")


def parse_ports(texts: Sequence[str] | None) -> tuple[Port, ...]:
    """Return the ports that -p names: 8080:80, 0:80, 80, 127.0.0.1:8080:80, [::1]:8080:80.

    Raises:
        Refused: one of them is none.
    """
    return tuple(_parse_port(text) for text in texts or ())


def _parse_port(text: str) -> Port:
    from ..errors import Refused
    from ..model.network import Port

    match = _PORT.fullmatch(text)
    numbers = [int(match[name] or 0) for name in ("host", "guest")] if match else []
    if match is None or not 1 <= numbers[1] <= 65535 or numbers[0] > 65535:
        raise Refused(
            f"{text[:60]!r} is not a port to publish",
            code="bad-port",
            tried="reading -p",
            next_step="write it like 8080:80, 0:80 for a free port, or 127.0.0.1:8080:80 (TCP only)",
        )
    ip = (match["ip"] or "127.0.0.1").strip("[]")
    return Port(host_ip=ip, host_port=numbers[0], guest_port=numbers[1])


def parse_network(text: str | None) -> NetworkKind | None:
    """Return the kind of network, None for the default of the settings."""
    from ..model.network import NetworkKind

    return NetworkKind(text) if text else None


def parse_parameters(
    count: int,
    hostnames: Sequence[str] | None,
    addresses: Sequence[str] | None,
    key_files: Sequence[Path] | None,
    user_data: Path | None,
    metadata: Sequence[str] | None,
) -> list[Parameters]:
    """Return the parameters of `count` clones: the first host name is the first one's; all else is everybody's.

    Raises:
        NotFound: a file cannot be read. Refused: user data is no text, metadata is no pair.
    """
    from ..model.parameters import Parameters

    keys = tuple(
        line.strip()
        for path in key_files or ()
        for line in _read(path, "--ssh-key").splitlines()
        if line.strip() and not line.startswith("#")
    )
    text = _read(user_data, "--user-data") if user_data is not None else ""
    told = parse_pairs(metadata, "--metadata")
    rows = itertools.zip_longest(hostnames or (), addresses or (), range(count), fillvalue="")
    return [
        Parameters(hostname=str(hostname), address=str(address), ssh_keys=keys, user_data=text, metadata=told)
        for hostname, address, _ in rows
    ]


def _read(path: Path, option: str) -> str:
    from ..errors import NotFound, Refused

    try:
        return path.read_text()
    except OSError as error:
        raise NotFound(
            f"{path} cannot be read",
            code="no-such-file",
            tried=f"reading {option}",
            on=str(path),
            seen=error.strerror or str(error),
            next_step="give the path of a file of this host",
        ) from error
    except UnicodeDecodeError as error:
        raise Refused(
            f"{path} is no text",
            code="bad-parameter",
            tried=f"reading {option}",
            on=str(path),
            seen=str(error),
        ) from error


def parse_pairs(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """Return the mapping that K=V options give.

    Raises:
        Refused: one of them has no name or no equals sign.
    """
    from ..errors import Refused

    pairs = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise Refused(
                f"{text[:60]!r} is not a pair",
                code="bad-pair",
                tried=f"reading {option}",
                next_step=f"write it like {option} NAME=VALUE",
            )
        pairs[name] = value
    return pairs


def render_ports(ports: Sequence[Port]) -> str:
    """Return ports for people: 127.0.0.1:8080->80."""
    shown = (f"[{port.host_ip}]" if ":" in port.host_ip else port.host_ip for port in ports)
    return ", ".join(f"{ip}:{p.host_port}->{p.guest_port}" for ip, p in zip(shown, ports, strict=True))
