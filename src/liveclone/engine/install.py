"""Put the agent into a machine that nobody prepared, while it runs, and take it out again.

    install   ports (the driver's add_ports) ── stock QEMU guest agent ── agent.pyz --install ── our agent answers
    remove    stock QEMU guest agent ── agent.pyz --remove ── the driver's remove_ports

Nothing is written down here: ports of ours are known by their names in the hypervisor, an agent of ours by a file beside
it in the guest. So both may be asked again, also after a death in the middle, and what fails takes back what it has begun.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from ..drivers.base import Handle
from ..errors import GuestError, LivecloneError, Refused, TimedOut, Unsupported
from ..images import system
from ..model.agent import AgentStatus
from ..model.machine import Machine, MachineState
from . import agent as agents
from .context import Context
from .holding import hold_machine
from .stock_agent import StockAgent

OLDEST_PYTHON = (3, 8)
PLACE = "/usr/lib/liveclone"

# Of an agent that runs already: it finds a new port by itself. One that is just being started, under emulation, is slower.
PING_DEADLINE_S, START_DEADLINE_S = 5.0, 60.0
LOOK_DEADLINE_S, SETUP_DEADLINE_S = 30.0, 120.0

_LOOK = f"""\
id -u
/usr/bin/python3 -I -S -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo none
if [ -d /run/systemd/system ]; then echo systemd; else cat /proc/1/comm; fi
[ ! -e {PLACE}/agent.pyz ] || echo there
"""
_INSTALL = """\
set -e
folder=$(mktemp -d /run/liveclone-install.XXXXXX)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/agent.pyz"
/usr/bin/python3 -I -S -B "$folder/agent.pyz" --install
"""
_REMOVE = f"""\
[ ! -e {PLACE}/installed ] || exec /usr/bin/python3 -I -S -B {PLACE}/agent.pyz --remove
"""


async def install(ctx: Context, text: str, *, persistent: bool = False) -> AgentStatus:
    """Give a running machine the agent's ports and this version of the agent; return when that answers.

    Args:
        persistent: put the ports into the machine's definition too; without it a cold start has none of them.

    Raises:
        NotFound: no such machine, or it does not run. Refused: it is paused.
        Unsupported: it says what is missing (a stock agent, Python, systemd, a place for the ports).
        GuestError, TimedOut: the guest failed. In each of these cases the machine is as it was before, but that libvirt
            keeps an empty virtio-serial controller in it where there was none.
    """
    async with _hold(ctx, text, "installing the agent") as (handle, machine), AsyncExitStack() as undo:
        before = await handle.ports()
        await handle.add_ports(persistent=persistent)
        if not any(port.added for port in before):
            undo.push_async_callback(handle.remove_ports)
        stock = StockAgent(handle, machine.name)
        try:
            await stock.check()
        except (Unsupported, TimedOut):
            # The agent may be there, and have had no ports.
            if (await _ask(handle, machine, PING_DEADLINE_S)).problem:
                raise
        else:
            await _set_up(stock, undo)
            answer = await _ask(handle, machine, START_DEADLINE_S)
            if answer.problem:
                raise GuestError(
                    f"the agent of {machine.name} was installed and does not answer",
                    code="agent-silent",
                    tried="installing the agent",
                    on=machine.name,
                    seen=answer.problem,
                    source_state="running, without the agent",
                    next_step="in the guest: journalctl -u liveclone-agent",
                )
        undo.pop_all()
        return await _look(handle, machine)


async def remove(ctx: Context, text: str) -> AgentStatus:
    """Take away what `install` has brought; an agent that came with the machine's image, and its owner's ports, stay.

    Raises:
        NotFound: no such machine, or it does not run. Refused: it is paused.
        Unsupported, TimedOut: there are no ports of ours, and no stock agent to take an agent out with. GuestError: the
            guest failed. Nothing was changed, or a part, and it may be asked again.
    """
    async with _hold(ctx, text, "removing the agent") as (handle, machine):
        stock = StockAgent(handle, machine.name)
        try:
            await stock.check()
        except (Unsupported, TimedOut):
            if not any(port.added for port in await handle.ports()):
                raise
            # Without its ports an agent that stays does nothing.
        else:
            await _take_out(stock)
        await handle.remove_ports()
        return await _look(handle, machine)


async def status(ctx: Context, text: str) -> AgentStatus:
    """Tell which ports and which agents a running machine has. Nothing is changed.

    Raises:
        NotFound: no such machine, or it does not run. Refused: it is paused.
    """
    async with _hold(ctx, text, "looking for the agent") as (handle, machine):
        return await _look(handle, machine)


@contextlib.asynccontextmanager
async def _hold(ctx: Context, text: str, what: str) -> AsyncIterator[tuple[Handle, Machine]]:
    found = ctx.machines.find(text)  # whether it runs its hypervisor knows: others may have started it
    async with hold_machine(ctx, found.id, f"{what} in {found.name}") as machine:
        handle = await ctx.driver_for(machine.driver).open(machine, ctx.layout.machine(machine.id))
        try:
            state = await handle.state()
            if state is not MachineState.RUNNING:
                raise Refused(
                    f"{machine.name} is {state.value}: its guest cannot answer",
                    code="not-running",
                    tried=what,
                    on=machine.name,
                    seen=state.value,
                    source_state=f"{state.value}, not touched",
                    next_step=f"liveclone start {machine.name}",
                )
            yield handle, machine
        finally:
            await handle.close()


async def _set_up(stock: StockAgent, undo: AsyncExitStack) -> None:
    said = await stock.must(["/bin/sh", "-c", _LOOK], "looking into the guest", deadline_s=LOOK_DEADLINE_S)
    user, python, first_process, *there = said.split()
    name = stock.name
    if user != "0":
        raise _lacks(name, "its QEMU guest agent is not root", f"user {user}", "run it as root")
    if python == "none":
        advice = "install python3 (3.8 or later) in the guest"
        raise _lacks(name, "there is no Python in it", "no /usr/bin/python3", advice)
    if tuple(map(int, python.split("."))) < OLDEST_PYTHON:
        advice = "let /usr/bin/python3 be 3.8 or later"
        raise _lacks(name, f"its Python {python} is too old", f"/usr/bin/python3 is {python}", advice)
    if first_process != "systemd":
        advice = "start agent.pyz by what the guest has (docs/agent.md)"
        raise _lacks(name, "it does not run systemd", f"its first process is {first_process}", advice)
    if not there:
        undo.push_async_callback(_take_out, stock)
    await stock.must(
        ["/bin/sh", "-c", _INSTALL],
        "installing the agent",
        given=system.render_agent(),
        deadline_s=SETUP_DEADLINE_S,
    )


async def _take_out(stock: StockAgent) -> None:
    await stock.must(["/bin/sh", "-c", _REMOVE], "removing the agent", deadline_s=SETUP_DEADLINE_S)


def _lacks(name: str, what: str, seen: str, advice: str) -> Unsupported:
    return Unsupported(
        f"the agent cannot run in {name}: {what}",
        code="guest-lacks",
        tried="installing the agent",
        on=name,
        seen=seen,
        source_state="running, not touched",
        next_step=advice,
    )


async def _look(handle: Handle, machine: Machine) -> AgentStatus:
    found = (await _ask(handle, machine, PING_DEADLINE_S)).replace(ports=await handle.ports())
    try:
        version = await StockAgent(handle, machine.name).check()
    except LivecloneError as error:
        answer: AgentStatus = found.replace(stock_problem=error.seen or error.message)
    else:
        answer = found.replace(stock=version)
    return answer


async def _ask(handle: Handle, machine: Machine, deadline_s: float) -> AgentStatus:
    """Ask our agent who it is."""
    found = AgentStatus(machine=machine.id, name=machine.name, ports=())
    try:
        async with agents.connect(handle, machine.name) as agent:
            said = await agent.call("ping", deadline_s=deadline_s, repeat=True)
    except (Unsupported, GuestError, TimedOut) as error:
        silent: AgentStatus = found.replace(problem=f"{error.message}: {error.seen}")
        return silent
    answer: AgentStatus = found.replace(agent=str(said["agent"]), python=str(said["python"]))
    return answer
