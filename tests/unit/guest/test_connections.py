"""Connections are ended in a network namespace of their own; what does not lead out of the machine stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from liveclone.guest.context import Context
from liveclone.guest.errors import CannotChange
from liveclone.guest.items.connections import Connections
from liveclone.guest.request import Request

from .conftest import RecordingKernel

SOURCE = Path(__file__).parents[3] / "src"
SCRIPT = """
import errno, os, socket
from liveclone.guest import netlink
from liveclone.guest.kernel import Kernel

assert os.readlink("/proc/self/ns/net") != os.readlink(f"/proc/{os.getppid()}/ns/net"), "not in a namespace of its own"
with netlink.Route() as route:
    assert route.carry_out(
        [netlink.set_up(1), netlink.add_address(1, "10.9.9.1", 32), netlink.add_address(1, "10.9.9.2", 32)]
    ) == [0, 0, 0]


def pair(server_at, client_at):
    server = socket.create_server((server_at, 0))
    client = socket.create_connection(server.getsockname(), source_address=(client_at, 0))
    return server, client, server.accept()[0]


def bound(address, to=None):
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind((address, 0))
    if to:
        one.connect(to)
    return one


def is_whole(one):
    return one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


listener, client, served = pair("10.9.9.1", "10.9.9.2")
inner = pair("127.0.0.1", "127.0.0.1")
same = pair("10.9.9.1", "10.9.9.1")
outer, anywhere = bound("10.9.9.1", ("10.9.9.2", 9)), bound("0.0.0.0")
client.send(b"before")
ended, left = Kernel().end_connections()
print(ended, left)
assert not is_whole(client) or client.recv(1) == b"", "the client's end"
try:
    served.send(b"x")
    raise AssertionError("the server's end")
except OSError as error:
    assert error.errno in (errno.ECONNABORTED, errno.EPIPE, errno.ECONNRESET), error
for one in inner[1:] + same[1:]:
    assert is_whole(one)
inner[1].send(b"y")
assert inner[2].recv(1) == b"y"
assert is_whole(anywhere)
assert not is_whole(outer)
again = socket.create_connection(listener.getsockname(), source_address=("10.9.9.2", 0))
assert Kernel().end_connections()[0] == 2
assert Kernel().end_connections() == (0, [])
"""


def test_what_leads_out_is_ended_and_nothing_else(needs_root: None) -> None:
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", SCRIPT],
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if "Operation not supported" in done.stdout:
        pytest.skip("this kernel cannot end connections")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3 []\n", "both ends of one, and a UDP socket"


@pytest.fixture
def ctx(root: Path, kernel: RecordingKernel) -> Context:
    return Context(str(root), kernel, Request("x", "identify", {}, 10, lambda reply: None), b"")


def test_a_kernel_that_cannot_is_told_as_shared(ctx: Context, kernel: RecordingKernel) -> None:
    kernel.ended = (0, [("10.0.0.1:80 to 10.0.0.2:9", 95)])
    with pytest.raises(CannotChange, match="INET_DIAG_DESTROY"):
        Connections().reset(ctx)


def test_one_that_remains_is_a_failure(ctx: Context, kernel: RecordingKernel) -> None:
    kernel.ended = (2, [("10.0.0.1:80 to 10.0.0.2:9", 1)])
    with pytest.raises(OSError, match="one of 10"):
        Connections().reset(ctx)


def test_how_many_were_ended_is_told(ctx: Context, kernel: RecordingKernel) -> None:
    kernel.ended = (2, [])
    assert Connections().reset(ctx) == {"ended": "2"}
