"""The command `liveclone`: its verbs put together, and its entry point.

Nothing heavy is imported here or at the top of the verbs' files, so that --help and --version take a moment only.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import (
    adopt,
    agent,
    audit,
    clone,
    complete,
    console,
    copy,
    doctor,
    execute,
    exits,
    image,
    libvirt,
    machines,
    params,
    pool,
    prove,
    scan,
    show,
    snapshot,
    verify,
)
from .verb import HelpOption

HELP = """Live snapshots of running virtual machines, and any number of live clones of each.

A snapshot holds memory, devices and disk of a machine at one instant, while it runs on. A clone is a new machine
that goes on from there, with an identity of its own, verified before it has a network.

Before the verb may stand --driver qemu|libvirt (who runs new machines) and --connect URI (which libvirt)."""

# In this order in the help.
ORDER = (
    *("run", "adopt", "list", "show", "logs", "console", "exec", "cp", "start", "stop", "restart", "remove"),
    *(
        "scan",
        "snapshot",
        "clone",
        "pool",
        "audit",
        "verify",
        "prove",
        "image",
        "agent",
        "libvirt",
        "doctor",
        "repair",
        "version",
    ),
)
SETTINGS = {"--driver": "LIVECLONE_DRIVER", "--connect": "LIVECLONE_LIBVIRT_URI"}
COMPLETION = ("--install-completion", "--show-completion")


class Ordered(TyperGroup):
    """Lists the verbs as ORDER has them, aliases behind."""

    def list_commands(self, ctx: Any) -> list[str]:
        found = super().list_commands(ctx)
        return sorted(found, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def build_app(*, completion: bool = True, settings: bool = False) -> typer.Typer:
    """Return the command with all its verbs.

    Args:
        completion: have the options that install the shell's completion. Parsing them costs 60 ms.
        settings: have those of SETTINGS as well, which otherwise `take_settings` takes; so that they can be completed.
    """
    app = typer.Typer(
        cls=Ordered,
        add_completion=completion,
        name="liveclone",
        help=HELP,
        epilog=exits.render_table(),
        add_help_option=False,  # see HelpOption
        no_args_is_help=True,
        rich_markup_mode=None,  # rich's help costs 0.1 s of processor time
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
    )
    app.callback()(_with_settings(_root) if settings else _root)
    for group in (
        machines,
        adopt,
        show,
        console,
        execute,
        copy,
        scan,
        snapshot,
        clone,
        pool,
        audit,
        verify,
        prove,
        image,
        agent,
        libvirt,
        doctor,
    ):
        group.register(app)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"liveclone {__version__}")
        raise typer.Exit


def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and end.", is_eager=True, callback=_print_version),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; short results.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens to stderr.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log everything; tracebacks of errors.")] = False,
    show_help: HelpOption = False,
) -> None:
    context.obj = {"quiet": quiet, "verbose": verbose, "debug": debug}


def _with_settings(root: Callable[..., None]) -> Callable[..., None]:
    """Return what stands for `root` where nothing is carried out."""

    def never_called(**_: object) -> None: ...

    own = inspect.signature(root, eval_str=True).parameters.values()
    key = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter("driver", key, annotation=params.Driver, default=""),
        inspect.Parameter("connect", key, annotation=params.Connect, default=""),
    ]
    parameters = [*(parameter.replace(kind=key) for parameter in own), *more]
    never_called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    never_called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return never_called


def take_settings(arguments: list[str]) -> list[str]:
    """Put settings that stand before the verb into the environment, for the processes that we start too.

    typer would import 25 ms of pydantic for each command, to make texts of these texts. Completion takes the time.
    """
    left = list(arguments)
    while left:
        option, equals, value = left[0].partition("=")
        if option not in SETTINGS or not (equals or len(left) > 1):
            break
        os.environ[SETTINGS[option]] = value if equals else left[1]
        del left[: 1 if equals else 2]
    return left


def main() -> None:
    """Run the command line and end the process with its exit code."""
    # Until an operation runs there is nothing to undo.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    arguments = take_settings(sys.argv[1:])
    first = arguments[0] if arguments else "--help"
    completing = "_LIVECLONE_COMPLETE" in os.environ
    if completing:
        complete.rejoin(os.environ)
    wanted = completing or first in ("--help", "-h") or first.startswith(COMPLETION)
    build_app(completion=wanted, settings=completing)(arguments, prog_name="liveclone")
