"""The channel over a FIFO, which behaves as a virtio port does: end of file and POLLHUP while nobody is connected."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveclone.guest.channel import Channel, PortGone


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "port"
    os.mkfifo(path)
    return path


@pytest.fixture
def channel(fifo: Path) -> Iterator[Channel]:
    channel = Channel(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), os.open("/dev/null", os.O_WRONLY))
    yield channel
    channel.close()


def lines_of(channel: Channel, count: int) -> list[bytes]:
    end = time.monotonic() + 5
    lines: list[bytes] = []
    while len(lines) < count and time.monotonic() < end:
        lines += channel.read(end - time.monotonic())
    return lines


def test_clients_come_and_go(fifo: Path, channel: Channel) -> None:
    for number in range(3):
        with fifo.open("wb", buffering=0) as client:
            client.write(b"\nhello %d\n" % number)
        assert lines_of(channel, 1) == [b"hello %d" % number]


def test_nobody_connected_does_not_spin(fifo: Path, channel: Channel) -> None:
    with fifo.open("wb"):
        pass  # from now on poll() says POLLHUP for ever
    assert select.select([channel._read_fd], [], [], 0)[0]
    before = time.process_time()
    assert channel.read(0.05) == []  # the edge of the client's leaving may end this one early
    began = time.monotonic()
    assert channel.read(0.2) == []
    assert time.monotonic() - began >= 0.19
    assert time.process_time() - before < 0.1


def test_a_client_wakes_a_sleeping_reader(fifo: Path, channel: Channel) -> None:
    with fifo.open("wb"):
        pass
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.extend(lines_of(channel, 1)))
    reader.start()
    with fifo.open("wb", buffering=0) as client:
        client.write(b"awake\n")
        reader.join(5)
    assert got == [b"awake"]


def test_bytes_that_came_before_reading_are_seen(fifo: Path, channel: Channel) -> None:
    with fifo.open("wb", buffering=0) as client:
        client.write(b"one\ntwo\nthr")
        client.write(b"ee\n")
        assert lines_of(channel, 3) == [b"one", b"two", b"three"]


def test_a_reply_nobody_hears_is_dropped(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs.detach())
    ours.close()
    assert channel.write(b"x" * 10_000_000) is False
    channel.close()


def test_a_slow_host_is_waited_for() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs.detach())
    data = os.urandom(3_000_000)
    sent: list[bool] = []
    writer = threading.Thread(target=lambda: sent.append(channel.write(data)))
    writer.start()
    got = b""
    while len(got) < len(data):
        got += ours.recv(65536)
    writer.join(5)
    assert sent == [True]
    assert got == data
    ours.close()
    channel.close()


@pytest.mark.parametrize("writing", [False, True])
def test_stop_ends_whoever_waits(writing: bool) -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs.detach())
    ended: list[bool] = []

    def wait() -> None:
        if writing:
            ended.append(channel.write(b"x" * 10_000_000) is False)
        else:
            with pytest.raises(PortGone):
                channel.read(None)
            ended.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    channel.stop()
    thread.join(5)
    assert ended == [True]
    ours.close()
    channel.close()
