"""clone_ready and clone_host: how long one clone takes, whatever the size of its RAM.

    clone_ready    s, from the request to verified, connected and ready
    clone_host     ms, of that what the host alone takes: all steps but those in which the guest works

One clone at a time, each removed before the next; their source runs on beside them, idle, and its snapshot is sealed.
"""

from __future__ import annotations

from liveclone.engine import clone, remove, snapshot

from . import lab as laboratory
from .crowd import wait_idle
from .lab import Lab

# Steps that wait for the guest: its agent renews the identity; its kernel finds the NIC, its agent sets the address.
GUEST_STEPS = frozenset({"identify", "connect"})


async def measure(lab: Lab) -> None:
    """Measure at each size."""
    for ram_mib in lab.plan.sizes_mib:
        lab.say(f"clones at {ram_mib} MiB")
        with laboratory.skips(lab, f"clones at {ram_mib} MiB"):
            async with laboratory.open_source(lab, ram_mib) as source:
                taken = await snapshot.take(
                    lab.ctx, snapshot.Request(machine=source.id, name="warm", wait_sealed=True)
                )
                captured = lab.ctx.machines.load(source.id)
                if captured.process is not None:
                    await wait_idle(
                        [captured.process.pid]
                    )  # what it put off until it was captured it does now
                dimensions = laboratory.about(source)
                touched_mib = laboratory.image_mib(taken)
                for _ in range(lab.plan.clones):
                    result = await _clone(lab)
                    host_ms = sum(ms for step, ms in result.steps_ms.items() if step not in GUEST_STEPS)
                    for series, unit, value in (
                        ("clone_ready", "s", result.ready_s),
                        ("clone_host", "ms", host_ms),
                    ):
                        lab.recorder.add(
                            series,
                            unit,
                            value,
                            ram_mib=ram_mib,
                            touched_mib=touched_mib,
                            clones=1,
                            **dimensions,
                        )
                    steps = ", ".join(f"{step} {ms:.0f}" for step, ms in result.steps_ms.items())
                    lab.say(
                        f"    ready in {result.ready_s:.3f} s, the host's part {host_ms:.1f} ms ({steps})"
                    )


async def _clone(lab: Lab) -> clone.Result:
    (result,) = await clone.start(lab.ctx, clone.Request(snapshot="warm"))
    if result.error is not None:
        raise result.error
    assert result.machine is not None
    await remove.remove_machine(lab.ctx, result.machine.id, force=True)
    return result
