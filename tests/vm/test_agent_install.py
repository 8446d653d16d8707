"""The agent in domains that nobody prepared: put in while they run, used for a clone, and taken out again."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from liveclone.drivers.libvirt import registry
from liveclone.engine import adopt, install, snapshot
from liveclone.engine import settings as engine_settings
from liveclone.engine.context import open_context
from liveclone.engine.stock_agent import StockAgent
from liveclone.errors import Unsupported
from liveclone.guest import VERSION
from liveclone.model.agent import AgentStatus, GuestPort
from liveclone.model.image import Image
from liveclone.model.machine import Machine
from liveclone.model.network import NetworkKind
from tests.libvirt_domains import (
    AGENT,
    EXEC,
    PATIENCE_S,
    STOCK,
    Shape,
    make_domain,
    wait_for_agent,
    wait_for_stock_agent,
)
from tests.libvirtd import Libvirtd
from tests.machines import Lab, check_clear

INACTIVE = 2


@pytest.fixture(scope="module")
def home(
    libvirtd: Libvirtd, images: dict[str, Image], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """A home whose machines are libvirt's."""
    hot = Path(engine_settings.read().hot).with_name("install-home")
    lab = Lab(tmp_path_factory.mktemp("home"), hot, images)
    lab.settings = replace(
        lab.settings, driver="libvirt", libvirt_uri=libvirtd.uri, network=NetworkKind.LIBVIRT
    )
    lab.ctx = open_context(lab.settings)
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def connection(libvirtd: Libvirtd) -> Iterator[Any]:
    libvirt = pytest.importorskip("libvirt")
    connection = libvirt.open(libvirtd.uri)
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def plain(
    home: Lab,
    connection: Any,
    libvirtd: Libvirtd,
    images: dict[str, Image],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Any, Machine]]:
    """A domain with a controller and the stock agent's port, whose guest has never had anything of ours."""
    disks = tmp_path_factory.mktemp("disks")
    domain = make_domain(connection, images["plain"], disks, Shape(channels=(STOCK,), genid=True), "plain")
    wait_for_stock_agent(libvirtd.uri, domain)
    yield domain, home.wait(adopt.adopt(home.ctx, "plain"))
    domain.destroy()
    domain.undefine()


def describe(domain: Any) -> tuple[str, str]:
    """Return the running domain and its definition; whether the guest has a port open is the guest's matter."""
    live = re.sub(r" state='(dis)?connected'", "", domain.XMLDesc())
    return live, domain.XMLDesc(INACTIVE)


def run_in(home: Lab, machine: Machine, script: str) -> str:
    """Run a script in the guest through the stock agent."""

    async def work() -> str:
        handle = await home.ctx.driver_for(machine.driver).open(machine, home.ctx.layout.machine(machine.id))
        try:
            stock = StockAgent(handle, machine.name)
            return await stock.must(["/bin/sh", "-c", script], "a script", deadline_s=60.0)
        finally:
            await handle.close()

    return home.wait(work())


def added(*, persistent: bool) -> tuple[GuestPort, ...]:
    return tuple(
        GuestPort(name=name, live=True, persistent=persistent, added=True) for name in ("agent", "exec")
    )


def test_what_a_guest_lacks_is_said_and_nothing_is_left(home: Lab, plain: tuple[Any, Machine]) -> None:
    domain, machine = plain
    before = describe(domain)
    with pytest.raises(Unsupported) as caught:
        home.wait(snapshot.take(home.ctx, snapshot.Request(machine=machine.id)))
    assert caught.value.next_step == "liveclone agent install plain"
    run_in(home, machine, "mv /usr/bin/python3 /usr/bin/python3.gone")
    try:
        with pytest.raises(Unsupported) as caught:
            home.wait(install.install(home.ctx, "plain", persistent=True))
    finally:
        run_in(home, machine, "mv /usr/bin/python3.gone /usr/bin/python3")
    assert caught.value.code == "guest-lacks" and "Python" in caught.value.message
    check_clear(caught.value, source_state="running")
    assert describe(domain) == before
    assert (
        run_in(home, machine, "ls -d /usr/lib/liveclone /run/liveclone* 2>/dev/null || echo none") == "none\n"
    )


def test_installed_used_for_a_clone_and_taken_out_again(home: Lab, plain: tuple[Any, Machine]) -> None:
    domain, machine = plain
    before = describe(domain)
    found = home.wait(install.status(home.ctx, "plain"))
    assert not found.ports and not found.agent and found.problem and found.stock and not found.stock_problem

    installed = home.wait(install.install(home.ctx, "plain"))
    assert (installed.agent, installed.problem, installed.ports) == (VERSION, "", added(persistent=False))
    assert describe(domain)[1] == before[1]
    assert home.shell(machine, "systemctl is-enabled liveclone-agent.service") == "enabled"
    again = home.wait(install.install(home.ctx, "plain"))
    assert again == installed

    taken = home.snapshot(machine)
    clones = home.clones(taken, 2)
    names = {home.shell(one, "cat /etc/machine-id; hostname") for one in (machine, *clones)}
    assert len(names) == 3
    for clone in clones:
        ref = registry.read(home.ctx.layout.machine(clone.id))
        assert ref is not None and ref.why_full == ""
        definition = domain.connect().lookupByName(clone.name).XMLDesc(INACTIVE)
        assert AGENT in definition and EXEC in definition
    home.remove(*clones)

    left = home.wait(install.remove(home.ctx, "plain"))
    assert isinstance(left, AgentStatus) and not left.ports and left.problem
    assert describe(domain) == before
    gone = "/usr/lib/liveclone /etc/liveclone /etc/systemd/system/liveclone-agent.service"
    assert (
        run_in(home, machine, f"ls -d {gone} 2>/dev/null || pgrep -f '[a]gent.pyz' || echo none") == "none\n"
    )
    assert home.wait(install.remove(home.ctx, "plain")).ports == ()


async def agent_runs(home: Lab, machine: Machine) -> None:
    """Wait until the agent of a light guest runs, of which only its console can tell."""
    question = b"\ntest -S /run/liveclone/applications && echo it''-runs\n"
    reader, writer = await home.ctx.driver_for(machine.driver).connect_port(
        machine, home.ctx.layout.machine(machine.id), "console"
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            seen = b""
            while b"it-runs" not in seen:
                writer.write(question)  # what comes before there is a shell is lost
                with contextlib.suppress(TimeoutError):
                    seen += await asyncio.wait_for(reader.read(4096), 1.0)
    finally:
        writer.close()


@pytest.mark.parametrize("machine_type", ["q35", "pc"])
def test_ports_alone_where_the_agent_is_there(
    home: Lab, connection: Any, images: dict[str, Image], tmp_path: Path, machine_type: str
) -> None:
    """A guest with our agent in a domain without ports, nor a controller for them, nor a stock agent."""
    shape = Shape(machine=machine_type, channels=(), serial_controller=False)
    domain = make_domain(connection, images["light"], tmp_path, shape, f"bare-{machine_type}")
    try:
        machine = home.wait(adopt.adopt(home.ctx, domain.name()))
        definition = describe(domain)[1]
        home.wait(agent_runs(home, machine))
        found = home.wait(install.install(home.ctx, domain.name(), persistent=True))
        assert (found.agent, found.ports) == (VERSION, added(persistent=True))
        assert "no channel" in found.stock_problem
        clone = home.clone(home.snapshot(machine))
        assert home.shell(clone, "cat /etc/machine-id") != home.shell(machine, "cat /etc/machine-id")
        home.remove(clone)
        domain.destroy()
        domain.create()
        wait_for_agent(domain)
        assert not home.wait(install.remove(home.ctx, domain.name())).ports
        assert describe(domain)[1] == definition
        assert "channel" not in describe(domain)[0]
    finally:
        domain.destroy()
        domain.undefine()
