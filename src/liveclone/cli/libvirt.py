"""libvirt: install-hook, remove-hook, hook-status."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import exits, output
from .verb import Cli, make_group, verb

if TYPE_CHECKING:
    from ..drivers.libvirt.hook_install import HookStatus

HooksDir = Annotated[
    Path,
    typer.Option("--hooks-dir", metavar="DIR", help="Where libvirt looks for hooks.", file_okay=False),
]
HOOKS = Path("/etc/libvirt/hooks")  # drivers/libvirt/hook_install.py, not imported for a help

NOTICE = (
    "libvirt looks for hooks when it starts, and there was none: systemctl reload libvirtd "
    "(or virtqemud, where each driver has a daemon of its own)"
)


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to `app`."""
    group = make_group(
        help="Prepare libvirt for clones that start in constant time.",
    )
    verb(group, "install-hook")(install_hook)
    verb(group, "remove-hook")(remove_hook)
    verb(group, "hook-status")(hook_status)
    app.add_typer(group, name="libvirt")


def install_hook(
    cli: Cli,
    hooks_dir: HooksDir = HOOKS,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="A folder whose memory images it accepts, besides LIVECLONE_HOT. May be given again.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Install the hook by which libvirt maps a clone's memory. It does nothing for any other domain."""
    from ..drivers.libvirt import hook_install
    from ..engine import settings

    status = hook_install.install(hooks_dir, images=[settings.read().hot, *(images or ())])
    if cli.json:
        output.print_json(status)
    elif cli.quiet:
        output.print_line(status.path)
    else:
        output.print_line(
            f"{status.path} is installed; it accepts memory images in {', '.join(status.images)}"
        )
        if not status.noticed:
            output.print_line(NOTICE)


def remove_hook(cli: Cli, hooks_dir: HooksDir = HOOKS) -> None:
    """Remove the hook. Clones start all the same, each with a copy of the whole memory."""
    from ..drivers.libvirt import hook_install

    removed = hook_install.remove(hooks_dir)
    if cli.json:
        output.print_json({"path": hook_install.status(hooks_dir).path, "removed": removed})
    elif not cli.quiet:
        output.print_line("the hook is removed" if removed else "there is no hook")


def hook_status(cli: Cli, hooks_dir: HooksDir = HOOKS) -> int:
    """Tell whether the hook is installed, and fit for use."""
    from ..drivers.libvirt import hook_install
    from ..engine import settings
    from ..errors import Unsupported

    status = hook_install.status(hooks_dir)
    hot = settings.read().hot
    fit = status.accepts(hot)
    if cli.json:
        output.print_json({**_builtins(status), "hot": str(hot), "fit": fit})
    elif cli.quiet:
        output.print_line(status.state)
    else:
        output.print_line(f"hook for libvirt: {status.state}")
        output.print_facts(
            (
                ("file", status.path),
                ("seen", status.seen),
                ("version", status.version),
                ("accepts", ", ".join(status.images)),
                ("tickets", status.tickets),
                ("next", "" if fit else _advise(status, hot)),
            )
        )
    return 0 if fit else exits.code_of(Unsupported(""))


def _builtins(status: HookStatus) -> dict[str, object]:
    from ..model.base import builtins

    found: dict[str, object] = builtins(status)
    return found


def _advise(status: HookStatus, hot: Path) -> str:
    from ..drivers.libvirt.hook_install import HookState

    if status.state is HookState.FOREIGN:
        return f"see whose {status.path} is, and give it another name"
    if status.state is HookState.CURRENT:
        return f"liveclone libvirt install-hook: it does not accept memory images in {hot}"
    return "liveclone libvirt install-hook"
