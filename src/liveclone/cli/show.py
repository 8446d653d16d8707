"""show: all that is known of a machine or a snapshot; of a clone, how its identity was verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from . import complete, machines, output, params
from .prove import print_proof, render
from .verb import Cli, verb

if TYPE_CHECKING:
    from ..engine.context import Context
    from ..engine.views import MachineDetail, SnapshotDetail
    from ..model.identity import Evidence, ItemReport
    from ..model.machine import Hardware
    from ..model.proof import Proof

_DIGEST = 12  # characters shown; --json has all

Subject = Annotated[
    str,
    typer.Argument(
        metavar="MACHINE_OR_SNAPSHOT",
        help="Name, id, or the beginning of an id.",
        autocompletion=complete.machines_and_snapshots,
    ),
]


EvidenceOption = Annotated[
    bool,
    typer.Option("--evidence", help="Of a clone: its signed evidence, as JSON, for `liveclone verify`."),
]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to `app`."""
    verb(app, "show", "inspect")(show)


def show(cli: Cli, subject: Subject, evidence: EvidenceOption = False) -> None:
    """Show a machine or a snapshot, and evidence. All that is known; of a clone, what is new in it, compared with whom."""
    if evidence:
        _print_proof(cli, subject)
        return

    async def work(ctx: Context) -> MachineDetail | SnapshotDetail:
        from ..engine import views

        return await views.show(ctx, subject)

    detail = cli.run(work)
    if cli.json:
        output.print_json(detail)
    elif detail.kind == "machine":
        _print_machine(detail)  # type: ignore[arg-type]
    else:
        print_snapshot(detail)  # type: ignore[arg-type]


def _print_proof(cli: Cli, subject: str) -> None:
    async def work(ctx: Context) -> Proof:
        from ..engine import proof

        return proof.export(ctx, subject)

    output.print_json(cli.run(work))


def _print_machine(detail: MachineDetail) -> None:
    summary, machine = detail.summary, detail.machine
    origin = f"clone of {summary.clone_of}" if summary.clone_of else f"image {summary.image}"
    if machine.domain:
        origin = f"adopted, domain {machine.domain}"
    output.print_line(f"machine {summary.name}: {machines.render_state(summary)}, {origin}")
    nics = ", ".join(f"{nic.address} {nic.mac}" for nic in machine.nics)
    output.print_facts(
        (
            ("id", summary.id),
            (
                "created",
                f"{summary.created_at:%Y-%m-%d %H:%M:%S} UTC, {output.render_age(summary.created_at)} ago",
            ),
            ("hardware", _hardware(machine.hardware)),
            ("network", f"{summary.network} {nics}" if not summary.quarantined else "none: in quarantine"),
            ("ports", params.render_ports(summary.ports)),
            ("generation", f"{machine.generation.counter}, {machine.generation.uuid}"),
            ("started", detail.started),
            ("memory", f"{machine.memory.path} ({machine.memory.source.value})" if machine.memory else ""),
            ("disk", machine.disk),
            ("process", machine.process.pid if machine.process else ""),
            ("labels", ", ".join(f"{key}={value}" for key, value in summary.labels.items())),
            ("console log", detail.console_log),
        )
    )
    if detail.evidence is not None:
        print_evidence(detail.evidence, detail.verified)
    if summary.needs_repair:
        output.print_line("")
        output.print_line(f"{summary.busy}: `liveclone repair {summary.name}` settles it")


def print_snapshot(detail: SnapshotDetail) -> None:
    """Print a snapshot, and who was compared with whom."""
    from ..model.scan import Action
    from ..units import render_duration, render_size
    from .scan import print_verdicts

    summary, snapshot = detail.summary, detail.snapshot
    output.print_line(f"snapshot {summary.name}: {summary.busy or summary.state.value}, of {summary.source}")
    capture = snapshot.capture
    output.print_facts(
        (
            ("id", summary.id),
            (
                "created",
                f"{summary.created_at:%Y-%m-%d %H:%M:%S} UTC, {output.render_age(summary.created_at)} ago",
            ),
            ("image", summary.image),
            ("hardware", _hardware(snapshot.hardware)),
            ("captured by", capture.method.value),
            ("pause", render_duration(capture.pause_ns / 1e9)),
            ("clonable after", render_duration(capture.until_clonable_ns / 1e9)),
            ("on disk", render_size(summary.disk_used_bytes)),
            ("on tmpfs", render_size(summary.hot_used_bytes)),
            ("clones", ", ".join(detail.clones)),
            ("scrubbed", render(summary.scrub) if summary.scrub is not None else ""),
            *(("warning", warning) for warning in summary.warnings),
        )
    )
    if snapshot.scan is not None and (
        told := [v for v in snapshot.scan.verdicts if v.action is not Action.ALLOW]
    ):
        output.print_line("")
        output.print_line(f"not safe to copy unthinkingly (policy {snapshot.scan.policy}):")
        print_verdicts(told)
    if summary.scrub is not None and (summary.scrub.found or summary.scrub.not_searched):
        output.print_line("")
        print_proof(summary.scrub)
    if detail.members:
        output.print_line("")
        output.print_line("members of its family, each compared with all before it:")
        rows = [(e.name, e.machine, _verdict(e, None), f"{e.at:%H:%M:%S}") for e in detail.members]
        output.print_table(("name", "machine", "verdict", "at"), rows)


def print_evidence(evidence: Evidence, verified: bool | None) -> None:
    """Print what is new in a machine, item by item, and the verdict."""
    output.print_line("")
    rows = [
        (
            item.item,
            item.status.value if item.required else f"{item.status.value} (optional)",
            item.before[:_DIGEST],
            item.after[:_DIGEST],
            f"{item.took_ms:.1f} ms",
            _details(item),
        )
        for item in evidence.items
    ]
    output.print_table(("identity item", "status", "old digest", "new digest", "took", "details"), rows)
    compared = f"compared with the snapshot and {_count(evidence.compared_with)}"
    output.print_line("")
    output.print_line(f"{_verdict(evidence, verified)}: {compared}, {evidence.took_ms:.0f} ms in the guest")
    for finding in evidence.findings:
        against = f" (as {finding.against})" if finding.against else ""
        output.print_line(f"  {finding.item}: {finding.reason}{against}")


def _verdict(evidence: Evidence, verified: bool | None) -> str:
    if evidence.findings:
        return "NOT verified"
    return "verified" if verified or evidence.compared_with else "the source, renewed"


def _count(others: Sequence[str]) -> str:
    return f"{len(others)} other machine{'s' * (len(others) != 1)}"


def _details(item: ItemReport) -> str:
    def parts() -> Iterator[str]:
        for key, value in item.details.items():
            yield f"{key} {value}"
        if item.error:
            yield item.error

    return ", ".join(parts())


def _hardware(hardware: Hardware) -> str:
    from ..units import render_size

    known = (hardware.machine_type, hardware.acceleration.value, hardware.hypervisor)
    return ", ".join([render_size(hardware.ram_bytes), f"{hardware.vcpus} CPU", *(k for k in known if k)])
