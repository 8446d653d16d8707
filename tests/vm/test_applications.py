"""The examples, in real guests: what applications renew is new in each clone, and what is warm stays warm.

`shops` is one source with all of them in it, and two clones of it.
"""

from __future__ import annotations

import base64
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from liveclone.engine import snapshot
from liveclone.engine.clone import Result
from liveclone.engine.snapshot_plan import Scrubbing
from liveclone.errors import GuestError
from liveclone.host import netns
from liveclone.model.machine import Machine
from liveclone.model.snapshot import Snapshot
from tests.conftest import Needs
from tests.machines import PATIENCE_S, ROOT, Lab

EXAMPLES = ROOT / "examples"
SHOP_PORT, TLS_PORT = 8090, 8443

# The service in the list of those that are restarted: it is what it is because of when it was started.
BEAT = "[Service]\nExecStart=/bin/sleep infinity\n"
STARTED = "systemctl show --value -p ExecMainPID -p ExecMainStartTimestampMonotonic beat.service"
SOCKETS = "find /proc/$(systemctl show --value -p MainPID shop)/fd -lname 'socket:*' -printf '%l\\n' | sort"


@dataclass(frozen=True)
class Shops:
    source: Machine
    snapshot: Snapshot
    clones: list[Machine]
    before: dict[str, Any]  # what the source's shop said before the snapshot
    beat_before: str

    @property
    def all(self) -> list[Machine]:
        return [self.source, *self.clones]


def put(lab: Lab, machine: Machine, *files: tuple[bytes, str, int]) -> None:
    """Write files into a guest: content, path, mode."""
    lines = [
        f"install -D -m {mode:o} /dev/null {path}; echo {base64.b64encode(data).decode()} | base64 -d >{path}"
        for data, path, mode in files
    ]
    lab.shell(machine, "\n".join(lines))


def example(name: str, path: str, mode: int = 0o644) -> tuple[bytes, str, int]:
    return (EXAMPLES / name).read_bytes(), path, mode


@pytest.fixture(scope="module")
def certificate(needs: Needs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    needs("openssl")
    folder = tmp_path_factory.mktemp("certificate")
    key, crt = folder / "key", folder / "crt"
    words = ["openssl", "req", "-x509", "-nodes", "-subj", "/CN=shop", "-newkey", "ec"]
    words += ["-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", str(key), "-out", str(crt)]
    subprocess.run(words, check=True, capture_output=True)
    return key, crt


@pytest.fixture(scope="module")
def shops(lab: Lab, snapshotted: Snapshot, certificate: tuple[Path, Path]) -> Iterator[Shops]:
    source = lab.clone(snapshotted)
    key, crt = certificate
    put(
        lab,
        source,
        example("python-web/shop.py", "/opt/shop.py"),
        example("python-web/shop.service", "/etc/systemd/system/shop.service"),
        example("nginx/site.conf", "/etc/nginx/conf.d/site.conf"),
        example("nginx/ticket.conf", "/etc/nginx/conf.d/ticket.conf"),
        example("nginx/cloned", "/etc/liveclone/hooks.d/cloned/10-nginx", 0o755),
        (key.read_bytes(), "/etc/nginx/site.key", 0o600),
        (crt.read_bytes(), "/etc/nginx/site.crt", 0o644),
        (BEAT.encode(), "/etc/systemd/system/beat.service", 0o644),
        (b"beat.service\n", "/etc/liveclone/restart", 0o644),
    )
    lab.shell(
        source,
        "umask 077; head -c 80 /dev/urandom >/etc/nginx/ticket.key; systemctl start shop nginx beat.service",
    )
    before = lab.http(source, port=SHOP_PORT)
    beat = lab.shell(source, STARTED)
    taken = lab.snapshot(source)
    clones = lab.clones(taken, 2)
    yield Shops(source, taken, clones, before, beat)
    lab.remove(*clones)
    lab.remove_snapshot(taken)
    lab.remove(source)


def test_each_shop_is_its_own_and_still_warm(lab: Lab, shops: Shops) -> None:
    """A Python web application with the client: its own random numbers, and no new start."""
    told = [lab.http(machine, port=SHOP_PORT) for machine in shops.all]
    assert [one["host"] for one in told] == [machine.name for machine in shops.all]
    for what in ("node", "session", "coupon"):
        assert len({one[what] for one in told}) == len(told), what
    assert told[0]["node"] == shops.before["node"]
    assert {one["started"] for one in told} == {shops.before["started"]}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_clone_takes_no_ticket_of_its_source(lab: Lab, shops: Shops, version: ssl.TLSVersion) -> None:
    """nginx with the hook: a session can be resumed where it was begun, and nowhere else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    sessions = {machine.name: visit(lab, context, machine)[0] for machine in shops.all}
    resumed = {
        (begun, machine.name): visit(lab, context, machine, session)[1]
        for begun, session in sessions.items()
        for machine in shops.all
    }
    assert resumed == {(begun, name): begun == name for begun, name in resumed}


def visit(
    lab: Lab, context: ssl.SSLContext, machine: Machine, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLSession, bool]:
    """Ask a guest's nginx; return the session, and whether it was the one given."""
    address = (lab.reload(machine).nics[0].ip, TLS_PORT)
    plain = netns.run_inside(lab.ctx.layout.namespace, lambda: socket.create_connection(address, PATIENCE_S))
    with plain, context.wrap_socket(plain, session=session) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        body = b"".join(iter(lambda: connection.recv(4096), b""))  # a ticket of TLS 1.3 comes with it
        resumed = bool(connection.session_reused)
        assert body.endswith(f"resumed={'r' if resumed else '.'}\n".encode()), body
        assert connection.session is not None
        return connection.session, resumed


def test_a_unit_in_the_list_is_restarted(lab: Lab, shops: Shops) -> None:
    told = [lab.shell(machine, STARTED) for machine in shops.all]
    assert told[0] == shops.beat_before
    assert len({one.split()[0] for one in told}) >= 2 and len(set(told)) == len(told), told


def test_nothing_stays_last(lab: Lab, shops: Shops) -> None:
    """What was begun while the clone became itself (nginx's workers, the unit) runs like everything else."""
    last = """ps -eLo cls=,comm= | awk '$1 == "IDL" { print $2 }'"""
    for machine in shops.clones:
        # What makes RSA host keys and starts sshd anew is last until it has done so.
        told = f'for _ in $(seq 120); do last=$({last}); [ -z "$last" ] && break; sleep 0.5; done; echo $last'
        assert lab.shell(machine, told) == ""


def test_an_application_that_is_busy_calls_the_snapshot_off(lab: Lab, shops: Shops) -> None:
    lab.shell(shops.source, "touch /run/shop.busy")
    with pytest.raises(GuestError) as caught:
        lab.snapshot(shops.source)
    lab.shell(shops.source, "rm /run/shop.busy")
    assert caught.value.code == "agent-application-failed"
    assert "shop (pid " in caught.value.seen and "an order is being booked" in caught.value.seen
    assert caught.value.source_state == "running"
    assert lab.http(shops.source, port=SHOP_PORT)["node"] == shops.before["node"]


def test_a_scrub_ends_no_subscription(lab: Lab, shops: Shops) -> None:
    """The agent becomes a new process in it: the shop takes part in what follows, as if nothing had been."""
    # Free blocks are what takes a scrub its time: most are taken by a file that is never written.
    lab.shell(shops.source, "fallocate -l $(($(stat -f -c '%f * %S' /) - (48 << 20))) /var/lib/full")
    before = lab.http(shops.source, port=SHOP_PORT)
    sockets = lab.shell(shops.source, SOCKETS)
    request = snapshot.Request(machine=shops.source.id, scrub=Scrubbing())
    clean = lab.wait(snapshot.take(lab.ctx, request))
    assert clean.warnings == ()
    assert lab.shell(shops.source, SOCKETS) == sockets, "it had to connect again"
    clone = lab.clone(clean)
    told = lab.http(clone, port=SHOP_PORT)
    assert told["started"] == before["started"]
    assert told["node"] != before["node"]
    lab.shell(shops.source, "rm /var/lib/full; touch /run/shop.busy")
    with pytest.raises(GuestError) as caught:
        lab.snapshot(shops.source)
    lab.shell(shops.source, "rm /run/shop.busy")
    assert "shop (pid " in caught.value.seen
    assert lab.http(shops.source, port=SHOP_PORT)["node"] == before["node"]
    lab.remove(clone)
    lab.remove_snapshot(clean)


def test_who_does_not_take_part_is_named(lab: Lab, shops: Shops) -> None:
    """The shell client, in a clone that it does not agree with, and a unit that cannot be restarted."""
    script = '[ "$LIVECLONE_EVENT" != cloned ]'
    machine = shops.clones[0]
    lab.shell(machine, f"systemd-run --quiet --unit sulky liveclone-app run sulky -- sh -c '{script}'")
    lab.shell(machine, "echo no-such.service >>/etc/liveclone/restart")
    # It has subscribed when the agent has a connection more than the shop's.
    lab.shell(
        machine,
        "until [ $(grep -c /run/liveclone/applications /proc/net/unix) -ge 3 ]; do sleep 0.05; done",
    )
    taken = lab.snapshot(machine)
    (result,) = lab.results(taken)
    lab.remove_snapshot(taken)
    check_named(result, "application sulky (pid ", "restart of no-such.service: ")


def check_named(result: Result, *words: str) -> None:
    assert isinstance(result.error, GuestError) and result.machine is None
    assert result.error.code == "not-verified"
    for word in words:
        assert word in result.error.seen
    assert "shop" not in result.error.seen and "beat" not in result.error.seen
