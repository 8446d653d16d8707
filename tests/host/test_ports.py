"""Published ports, end to end: real TCP stacks on both sides, a NIC that goes away and comes back.

    client (our own network) ── forwarder ── lc0 ── tap ══ wire (a thread) ══ eth0 ── server
                                └──── network's namespace ────┘               └ guest's namespace ┘

The wire carries frames between two taps as QEMU does, so unplugging here is unplugging there: the tap's
descriptor is closed, and so is the guest's card, which loses its address.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from liveclone.errors import Conflict, NotFound, Refused
from liveclone.host import links, netns, ports, process, tap
from liveclone.model.base import builtins
from liveclone.model.machine import ProcessRef
from liveclone.model.network import Port

GUEST_IP, GUEST_PORT = "10.213.0.7", 80
ANNOUNCEMENT = bytes.fromhex("0001080006040001")  # ARP request, Ethernet and IPv4


class Guest:
    """A network stack of its own with one card, which can be unplugged and plugged."""

    def __init__(self, spec: links.NetworkSpec) -> None:
        self.spec = spec
        self.machine_id = os.urandom(6).hex()
        self.namespace = f"lc-test-guest-{self.machine_id}"
        self.mac = bytes.fromhex("5254") + os.urandom(4)
        self.wire: threading.Thread | None = None
        self.fds: list[int] = []
        netns.create(self.namespace, lambda: None)

    def plug(self, *, announce: bool = True) -> None:
        outer = links.open_tap(self.spec, self.machine_id, 0)
        inner = netns.run_inside(self.namespace, _open_card)
        self.fds = [outer, inner, *os.pipe()]
        commands = (
            f"link set eth0 address {self.mac.hex(':')}\naddr add {GUEST_IP}/16 dev eth0\nlink set eth0 up\n"
        )
        subprocess.run(["ip", "-n", self.namespace, "-batch", "-"], input=commands, text=True, check=True)
        self.wire = threading.Thread(target=_carry, args=(outer, inner, self.fds[2]))
        self.wire.start()
        if announce:  # as the agent does
            ip = socket.inet_aton(GUEST_IP)
            frame = b"\xff" * 6 + self.mac + b"\x08\x06" + ANNOUNCEMENT + self.mac + ip + bytes(6) + ip
            os.write(outer, bytes(10) + frame)

    def unplug(self) -> None:
        if self.wire is None:
            return
        os.write(self.fds[3], b"x")
        self.wire.join()
        self.wire = None
        for fd in self.fds:
            os.close(fd)

    def listen(self) -> socket.socket:
        return netns.run_inside(self.namespace, lambda: _listen(("", GUEST_PORT)))

    def close(self) -> None:
        self.unplug()
        netns.remove(self.namespace, lambda: False)


def _open_card() -> int:
    fd = os.open(tap.DEVICE, os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"eth0", 0x0002 | 0x1000 | 0x4000))
    return fd


def _carry(outer: int, inner: int, stop: int) -> None:
    while stop not in (ready := select.select([outer, inner, stop], [], [])[0]):
        for fd in ready:
            with contextlib.suppress(OSError):  # the card is down for the moment that it is being set up
                os.write(inner if fd == outer else outer, os.read(fd, 65536))


def _listen(address: tuple[str, int]) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
    sock.listen(512)
    sock.settimeout(10)
    return sock


@pytest.fixture(scope="module", autouse=True)
def _root(needs: Callable[..., None]) -> None:
    needs("ip", root=True)


@pytest.fixture
def spec(tmp_path: Path) -> Iterator[links.NetworkSpec]:
    spec = links.NetworkSpec(namespace=f"lc-test-{os.urandom(4).hex()}", lock=tmp_path / "network.lock")
    links.ensure_network(spec)
    inode = netns.path(spec.namespace).stat().st_ino
    yield spec
    assert links.remove_network(spec)
    assert _find_processes(inode) == []


@pytest.fixture
def guest(spec: links.NetworkSpec) -> Iterator[Guest]:
    guest = Guest(spec)
    try:
        guest.plug()
        yield guest
    finally:
        guest.close()


def _find_processes(inode: int) -> list[str]:
    """Return the processes in a network namespace: what a test has left behind."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.stat(entry / "ns/net").st_ino == inode:
                found.append((entry / "cmdline").read_text())
    return found


@pytest.fixture
def machine() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for QEMU."""
    with _sleeper() as started:
        yield started


@contextlib.contextmanager
def _sleeper() -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(["sleep", "600"])
    try:
        yield started
    finally:
        started.kill()
        started.wait()


class Setup:
    """A running forwarder with its machine's manifest."""

    def __init__(self, spec: links.NetworkSpec, machine: ProcessRef, folder: Path) -> None:
        self.manifest = folder / "manifest.json"
        self.write(machine)
        self.log = folder / "ports.log"
        self.ref, (self.port,) = ports.start_forwarder(
            spec.namespace,
            (Port(host_port=0, guest_port=GUEST_PORT),),
            GUEST_IP,
            log=self.log,
            manifest=self.manifest,
            machine=machine,
        )

    def write(self, machine: ProcessRef | None) -> None:
        draft = self.manifest.with_suffix(".new")
        draft.write_text(json.dumps({"id": "0a1b2c3d4e5f", "process": builtins(machine), "nics": []}))
        draft.replace(self.manifest)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port.host_port), timeout=10)

    def is_published(self) -> bool:
        try:
            self.connect().close()
        except ConnectionRefusedError:
            return False
        return True


@pytest.fixture
def setup(
    spec: links.NetworkSpec, guest: Guest, machine: subprocess.Popen[bytes], tmp_path: Path
) -> Iterator[Setup]:
    setup = Setup(spec, process.ref(machine.pid), tmp_path)
    try:
        yield setup
    finally:
        asyncio.run(ports.stop_forwarder(setup.ref))


@pytest.fixture
def server(guest: Guest) -> Iterator[socket.socket]:
    with guest.listen() as listening:
        yield listening


@contextlib.contextmanager
def _connected(setup: Setup, server: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    with setup.connect() as client:
        accepted, _ = server.accept()
        accepted.settimeout(10)
        with accepted:
            yield client, accepted


def _read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


def _talk(client: socket.socket, served: socket.socket) -> None:
    """Both directions work."""
    client.sendall(b"ping")
    assert served.recv(10) == b"ping"
    served.sendall(b"pong")
    assert client.recv(10) == b"pong"


def test_bytes_and_half_close_pass_both_ways(setup: Setup, server: socket.socket) -> None:
    data = os.urandom(3 << 20)
    with _connected(setup, server) as (client, served):

        def send() -> None:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = _read_all(served)  # ends only if the half-close came through
        sender.join()
        assert received == data
        served.sendall(hashlib.sha256(received).digest() + data)
        served.close()
        assert _read_all(client) == hashlib.sha256(data).digest() + data


def test_a_server_that_speaks_first_is_heard(setup: Setup, server: socket.socket) -> None:
    with _connected(setup, server) as (client, served):
        served.sendall(b"220 ready")
        assert client.recv(100) == b"220 ready"
        assert served.getpeername()[0] == "10.213.0.1"


def test_a_slow_reader_holds_the_sender_back(setup: Setup, server: socket.socket) -> None:
    with _connected(setup, server) as (client, served):
        before = _private_kib(setup.ref)
        client.setblocking(False)
        sent = 0
        # Full when the client could not send for half a second: no event tells that.
        while select.select([], [client], [], 0.5)[1]:
            sent += client.send(bytes(1 << 16))
            assert sent < 256 << 20, "nobody reads, and it still takes more"
            busy = _processor_ticks(setup.ref)
        assert _processor_ticks(setup.ref) - busy <= 10, "it does not wait, it spins"
        assert _private_kib(setup.ref) - before < 2048
        client.setblocking(True)
        client.shutdown(socket.SHUT_WR)
        assert len(_read_all(served)) == sent


def _private_kib(ref: ProcessRef) -> int:
    lines = Path(f"/proc/{ref.pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def test_a_reset_is_passed_on(setup: Setup, server: socket.socket) -> None:
    with _connected(setup, server) as (client, served):
        _talk(client, served)
        served.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        served.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_half_closed_connection_costs_no_time(setup: Setup, server: socket.socket) -> None:
    with _connected(setup, server) as (client, served):
        client.sendall(b"bye")
        client.shutdown(socket.SHUT_WR)
        assert _read_all(served) == b"bye"
        before = _processor_ticks(setup.ref)
        assert select.select([client], [], [], 0.5)[0] == []
        assert _processor_ticks(setup.ref) - before <= 1
        served.sendall(b"still here")
        assert client.recv(20) == b"still here"


def _processor_ticks(ref: ProcessRef) -> int:
    fields = Path(f"/proc/{ref.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_many_connections_at_once(setup: Setup, server: socket.socket) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(setup.connect()) for _ in range(100)]
        for number, client in enumerate(clients):
            client.sendall(b"%d" % number)
        for _ in clients:
            served, _ = server.accept()
            stack.enter_context(served)
            served.settimeout(10)
            served.sendall(b"you are " + served.recv(10))
        for number, client in enumerate(clients):
            assert client.recv(20) == b"you are %d" % number


def test_a_flood_waits_until_descriptors_are_free(setup: Setup, server: socket.socket) -> None:
    resource.prlimit(setup.ref.pid, resource.RLIMIT_NOFILE, (12, 12))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(setup.connect()) for _ in range(8)]
        for client in clients:
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
        for _ in clients:
            served, _ = server.accept()
            with served:
                served.settimeout(10)
                assert _read_all(served) == b"hello"
        for client in clients:
            assert client.recv(1) == b""
    assert "no more connections just now" in setup.log.read_text()


def test_a_connection_stands_while_the_nic_is_away(setup: Setup, server: socket.socket, guest: Guest) -> None:
    with _connected(setup, server) as (client, served):
        for _ in range(2):
            _talk(client, served)
            guest.unplug()
            client.sendall(b"from the client;")
            served.sendall(b"from the guest;")
            guest.plug()
            assert served.recv(100) == b"from the client;"
            assert client.recv(100) == b"from the guest;"


def test_who_connects_while_the_nic_is_away_waits(setup: Setup, server: socket.socket, guest: Guest) -> None:
    """The kernel alone would send the lost SYN again after a second; the forwarder dials again long before.

    Another tap keeps the bridge alive, so that the guest's address stays known and packets to it are just lost.
    """
    neighbour = links.open_tap(guest.spec, "0123456789ab", 0)
    with os.fdopen(neighbour, "rb"), _connected(setup, server) as (client, served):
        _talk(client, served)
        guest.unplug()
        before = _count(guest.spec.namespace, "ActiveOpens")
        with setup.connect() as late:
            _wait_for(lambda: _count(guest.spec.namespace, "ActiveOpens") >= before + 3)
            guest.plug(announce=False)
            accepted, _ = server.accept()
            with accepted:
                _talk(late, accepted)


def _count(namespace: str, what: str) -> int:
    """Return a counter of a namespace's TCP, /proc/net/snmp."""
    text = netns.run_inside(namespace, lambda: Path("/proc/thread-self/net/snmp").read_text())
    names, values = (line.split() for line in text.splitlines() if line.startswith("Tcp:"))
    return int(values[names.index(what)])


def test_a_server_that_starts_late_is_reached(setup: Setup, guest: Guest) -> None:
    with setup.connect() as client:
        _wait_for(lambda: _count(guest.namespace, "OutRsts") > 0)
        with guest.listen() as server:
            accepted, _ = server.accept()
        with accepted:
            _talk(client, accepted)


def test_a_client_of_nobody_is_held_for_a_while_then_reset(setup: Setup) -> None:
    with setup.connect() as client:
        assert select.select([client], [], [], 1.5)[0] == []
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert f"{GUEST_IP}:{GUEST_PORT}" in setup.log.read_text()
    assert "refused" in setup.log.read_text()


def test_a_taken_port_is_named_at_once(tmp_path: Path) -> None:
    with _listen(("127.0.0.1", 0)) as holder, _listen(("127.0.0.1", 0)) as freed:
        taken, free = holder.getsockname()[1], freed.getsockname()[1]
        freed.close()
        wanted = (Port(host_port=free, guest_port=80), Port(host_port=taken, guest_port=81))
        with pytest.raises(Conflict) as caught, ports.reserve(wanted):
            pytest.fail("got a port that is taken")
        assert caught.value.code == "port-taken"
        assert str(taken) in caught.value.message
        assert caught.value.on == f"127.0.0.1:{taken}"
        _listen(("127.0.0.1", free)).close()  # nothing of the failed attempt holds the first


def test_a_reserved_port_is_taken_for_others_and_free_afterwards() -> None:
    with ports.reserve([Port(host_port=0, guest_port=80), Port(host_port=0, guest_port=81)]) as reserved:
        numbers = [port.host_port for port in reserved.ports]
        assert all(numbers)
        assert len(set(numbers)) == 2
        with pytest.raises(Conflict), ports.reserve(reserved.ports[:1]):
            pass
    with ports.reserve(reserved.ports) as again:
        assert again.ports == reserved.ports


@pytest.mark.parametrize(
    "port",
    [
        Port(host_port=65536, guest_port=80),
        Port(host_port=-1, guest_port=80),
        Port(host_port=0, guest_port=0),
        Port(host_port=0, guest_port=70000),
        Port(host_port=0, guest_port=80, host_ip="localhost"),
        Port(host_port=0, guest_port=80, host_ip="192.0.2.1"),
        Port(host_port=0, guest_port=80, host_ip=""),
    ],
    ids=str,
)
def test_hostile_ports_are_refused(port: Port) -> None:
    with pytest.raises(Refused) as caught, ports.reserve([port]):
        pass
    assert caught.value.code == "bad-port"


def test_without_a_network_no_process_is_started(machine: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        ports.start_forwarder(
            "lc-test-none",
            (Port(host_port=0, guest_port=80),),
            GUEST_IP,
            log=tmp_path / "log",
            manifest=tmp_path / "manifest.json",
            machine=process.ref(machine.pid),
        )
    assert not (tmp_path / "log").exists()


def test_it_outlives_the_command_that_started_it(
    spec: links.NetworkSpec,
    guest: Guest,
    server: socket.socket,
    machine: subprocess.Popen[bytes],
    tmp_path: Path,
) -> None:
    program = """
import sys
from pathlib import Path
from liveclone.host import ports, process
from liveclone.model.network import Port
namespace, ip, port, pid, folder = sys.argv[1:]
ref, (published,) = ports.start_forwarder(
    namespace, (Port(host_port=0, guest_port=int(port)),), ip,
    log=Path(folder, "ports.log"), manifest=Path(folder, "manifest.json"), machine=process.ref(int(pid)),
)
print(ref.pid, published.host_port)
"""
    arguments = [spec.namespace, GUEST_IP, str(GUEST_PORT), str(machine.pid), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(links.__file__).parents[2])}
    answer = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    ).stdout
    pid, port = map(int, answer.split())
    forwarder = process.ref(pid)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            accepted, _ = server.accept()
            with accepted:
                _talk(client, accepted)
    finally:
        asyncio.run(ports.stop_forwarder(forwarder))
    assert not process.is_alive(forwarder)


def test_it_is_small_and_holds_nothing_of_ours(setup: Setup, server: socket.socket) -> None:
    with _connected(setup, server):
        maps = Path(f"/proc/{setup.ref.pid}/maps").read_text()
        assert "msgspec" not in maps
        assert "_asyncio" not in maps
        assert _private_kib(setup.ref) < 12 * 1024
        assert Path(f"/proc/{setup.ref.pid}/cwd").readlink() == Path("/")


def test_it_ends_with_the_machine(setup: Setup, machine: subprocess.Popen[bytes]) -> None:
    setup.write(None)
    assert setup.is_published()
    machine.kill()
    machine.wait()
    assert process.wait_gone(setup.ref, 3.0)
    assert not setup.is_published()


def test_it_ends_with_a_machine_that_is_removed(setup: Setup, machine: subprocess.Popen[bytes]) -> None:
    setup.manifest.unlink()
    machine.kill()
    machine.wait()
    assert process.wait_gone(setup.ref, 3.0)


def test_it_ends_after_a_while_when_no_successor_is_written(
    setup: Setup, machine: subprocess.Popen[bytes]
) -> None:
    machine.kill()
    machine.wait()
    assert process.wait_gone(setup.ref, 20.0)
    assert "ended" in setup.log.read_text()


def test_it_stays_through_a_handover(
    setup: Setup, server: socket.socket, machine: subprocess.Popen[bytes]
) -> None:
    with _connected(setup, server) as (client, served), _sleeper() as successor:
        machine.kill()
        machine.wait()
        _talk(client, served)
        setup.manifest.write_bytes(b'{"process": {')  # not even a torn manifest ends it
        _talk(client, served)
        setup.write(process.ref(successor.pid))
        _wait_for(lambda: f"watching process {successor.pid}" in setup.log.read_text())
        _talk(client, served)
        assert setup.is_published()
        setup.write(None)
        successor.kill()
        successor.wait()
        assert process.wait_gone(setup.ref, 3.0)


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)  # a line in a file is no event


def test_another_process_with_the_machines_number_is_not_the_machine(
    spec: links.NetworkSpec, guest: Guest, machine: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    ref = process.ref(machine.pid)
    setup = Setup(spec, ref.replace(start_ticks=ref.start_ticks - 1), tmp_path)
    try:
        setup.write(None)
        assert process.wait_gone(setup.ref, 3.0)
    finally:
        asyncio.run(ports.stop_forwarder(setup.ref))


def test_stopping_frees_the_ports_and_may_be_done_twice(setup: Setup, server: socket.socket) -> None:
    with _connected(setup, server) as (client, served):
        _talk(client, served)
        asyncio.run(ports.stop_forwarder(setup.ref))
        assert client.recv(1) == b""
    assert not process.is_alive(setup.ref)
    with ports.reserve([setup.port]):
        pass
    asyncio.run(ports.stop_forwarder(setup.ref))


def test_a_connection_can_be_made_from_inside_the_network(
    spec: links.NetworkSpec, guest: Guest, server: socket.socket
) -> None:
    async def talk() -> bytes:
        reader, writer = await netns.open_connection(spec.namespace, GUEST_IP, GUEST_PORT)
        accepted, _ = server.accept()
        with accepted:
            accepted.sendall(b"hello")
        try:
            return await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()

    assert asyncio.run(talk()) == b"hello"


def test_nobody_listening_inside_is_an_error(spec: links.NetworkSpec, guest: Guest) -> None:
    async def connect() -> None:
        await netns.open_connection(spec.namespace, GUEST_IP, GUEST_PORT)

    with pytest.raises(ConnectionRefusedError):
        asyncio.run(connect())
