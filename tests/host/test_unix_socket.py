"""Unix sockets at paths of any length, seen only by their owner."""

from __future__ import annotations

import asyncio
import socket
import stat
from pathlib import Path

import pytest

from liveclone.host import unix_socket


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder whose path alone is longer than a socket's may be."""
    folder = tmp_path / ("a" * 100) / ("b" * 100)
    folder.mkdir(parents=True)
    return folder


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_both_ends_of_a_long_path(folder: Path) -> None:
    path = folder / "control"
    before = open_descriptors()
    with unix_socket.listen(path) as server, unix_socket.connect(path) as client:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not client.getblocking()
        assert not server.get_inheritable() and not client.get_inheritable()
        peer, _ = server.accept()
        with peer:
            peer.sendall(b"hello")
            client.setblocking(True)
            assert client.recv(10) == b"hello"
    assert open_descriptors() == before


def test_whoever_connects_before_it_is_served_just_waits(folder: Path) -> None:
    path = folder / "control"

    async def story() -> bytes:
        reader, writer = await unix_socket.open_connection(path)
        writer.write(b"early\n")
        await writer.drain()
        peer, _ = server.accept()
        with peer:
            peer.sendall(peer.recv(100))
        answer = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return answer

    with unix_socket.listen(path) as server:
        assert asyncio.run(story()) == b"early\n"


def test_a_long_line_is_read_whole(folder: Path) -> None:
    path = folder / "control"
    line = b"x" * (6 * 1024 * 1024) + b"\n"

    async def story() -> bytes:
        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(line)
            await writer.drain()
            writer.close()

        async with await asyncio.start_unix_server(serve, sock=listener):
            reader, writer = await unix_socket.open_connection(path)
            answer = await reader.readline()
            writer.close()
            await writer.wait_closed()
            return answer

    with unix_socket.listen(path) as listener:
        same = asyncio.run(story()) == line
    assert same


def test_a_socket_that_was_left_behind_is_replaced(folder: Path) -> None:
    path = folder / "control"
    unix_socket.listen(path).close()
    assert path.exists()
    with pytest.raises(ConnectionRefusedError):
        unix_socket.connect(path)
    with unix_socket.listen(path):
        unix_socket.connect(path).close()


def test_nobody_there_is_an_os_error_and_leaves_no_descriptor(folder: Path) -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        unix_socket.connect(folder / "nobody")
    with pytest.raises(FileNotFoundError):
        unix_socket.connect(folder / "missing" / "nobody")
    with pytest.raises(FileNotFoundError):
        unix_socket.listen(folder / "missing" / "control")
    (folder / "file").touch()
    with pytest.raises(OSError):
        unix_socket.connect(folder / "file")
    with pytest.raises(OSError):
        unix_socket.connect(folder / ("n" * 200))
    assert open_descriptors() == before


def test_a_full_queue_is_told_and_not_waited_for(folder: Path) -> None:
    path = folder / "control"
    clients: list[socket.socket] = []
    with unix_socket.listen(path):
        try:
            with pytest.raises(BlockingIOError):
                clients.extend(unix_socket.connect(path) for _ in range(100))
        finally:
            for client in clients:
                client.close()
    assert len(clients) >= 8
