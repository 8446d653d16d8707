"""The ports of a domain that lead into its guest: agent channels, sockets that QEMU listens on; the console, a terminal."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from ...errors import Unsupported
from ...formats.domain_xml import Domain
from ...host import unix_socket
from .registry import not_running

CONSOLE = "console"
_LIMIT = 8 * 1024 * 1024


def channel_of(port: str) -> str:
    """Return the virtio-serial name of a port: "agent" is org.liveclone.agent.0."""
    return f"org.liveclone.{port}.0"


async def connect(domain: Domain, port: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a port of a running domain.

    Raises:
        NotFound: nobody listens (code "not-running"). Unsupported: the domain has no such port (code "no-port").
    """
    path = _console_path(domain) if port == CONSOLE else _channel_path(domain, port)
    if not path:
        raise Unsupported(
            f"{domain.name} has no port for liveclone's {port}",
            code="no-port",
            tried=f"connecting to the {port} port",
            on=domain.name,
            seen="channels: " + (", ".join(channel.name for channel in domain.channels) or "none"),
            source_state="running, not touched",
            next_step=f"liveclone agent install {domain.name}",
        )
    try:
        if port == CONSOLE:
            return await _open_terminal(path)
        return await unix_socket.open_connection(Path(path))
    except OSError as error:
        raise not_running(domain.name, f"connecting to the {port} port", str(error)) from error


def _channel_path(domain: Domain, port: str) -> str:
    return next((one.path for one in domain.channels if one.name == channel_of(port)), "")


def _console_path(domain: Domain) -> str:
    return next((one.path for one in domain.consoles if one.kind == "pty"), "")


async def _open_terminal(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    ends = [os.fdopen(os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC), "r+b", 0) for _ in range(2)]
    reader = asyncio.StreamReader(limit=_LIMIT, loop=loop)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader, loop=loop), ends[0])
    closing = asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), loop=loop)
    transport, _ = await loop.connect_write_pipe(lambda: closing, ends[1])
    return reader, asyncio.StreamWriter(transport, closing, reader, loop)
