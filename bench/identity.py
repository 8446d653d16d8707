"""identity and identity_item: what it costs a clone to become a machine of its own.

    identity        ms, from the moment the clone runs to its evidence verified; `items` is `all`, or `six`: an agent that
                    renews only those that there were first (six_items.py), in the same run
    identity_item   ms, of that one item's reset as the agent measures it, by `item`. Items that wait for a child process
                    are reset side by side with the rest, so the sum may be more than the whole

One clone at a time, each removed before the next, as in `clones`; their guests are small and have nothing else to do.
"""

from __future__ import annotations

from pathlib import Path

from liveclone.engine import clone, remove, snapshot
from liveclone.images.spec import ImageSpec

from . import lab as laboratory
from .lab import Lab

SIX = ImageSpec(name="bench-six", script=Path(__file__).with_name("six_items.py"))
STEPS = ("identify", "verify")


async def measure(lab: Lab) -> None:
    """Measure all items beside the first six."""
    await laboratory.take_image(lab, SIX)
    for items, image in (("six", SIX.name), ("all", laboratory.IMAGE)):
        lab.say(f"identity, {items} items")
        with laboratory.skips(lab, f"identity, {items} items"):
            async with laboratory.open_source(lab, lab.plan.crowd_mib, image) as source:
                taken = await snapshot.take(
                    lab.ctx, snapshot.Request(machine=source.id, name="warm", wait_sealed=True)
                )
                about = laboratory.about(source) | {"items": items}
                touched_mib = laboratory.image_mib(taken)
                for _ in range(lab.plan.clones):
                    await _measure_one(lab, touched_mib, about)


async def _measure_one(lab: Lab, touched_mib: float, about: dict[str, str]) -> None:
    (result,) = await clone.start(lab.ctx, clone.Request(snapshot="warm"))
    if result.error is not None:
        raise result.error
    assert result.machine is not None
    assert result.evidence is not None
    await remove.remove_machine(lab.ctx, result.machine.id, force=True)

    def add(series: str, value_ms: float, **more: str) -> None:
        ram_mib = lab.plan.crowd_mib
        lab.recorder.add(
            series, "ms", value_ms, ram_mib=ram_mib, touched_mib=touched_mib, clones=1, **about, **more
        )

    took_ms = sum(result.steps_ms[step] for step in STEPS)
    add("identity", took_ms)
    told = sorted(result.evidence.items, key=lambda report: -report.took_ms)
    for report in told if about["items"] == "all" else ():
        add("identity_item", report.took_ms, item=report.item)
    worst = ", ".join(f"{report.item} {report.took_ms:.0f}" for report in told[:5])
    lab.say(f"    verified {took_ms:.0f} ms after its start ({worst})")
