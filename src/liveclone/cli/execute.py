"""exec: a command in a guest, with our streams as its own."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from . import exits, params
from .verb import Cli, verb

if TYPE_CHECKING:
    from ..engine.context import Context
    from ..engine.execute import Streams


def register(app: typer.Typer) -> None:
    """Add the verbs of this file to `app`."""
    settings = {"allow_interspersed_args": False, "ignore_unknown_options": False}
    verb(app, "exec", failure=exits.NOT_RUN, no_json=True, context_settings=settings)(execute)


def execute(
    cli: Cli,
    machine: params.Machine,
    command: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND", help="What to run, with its arguments; -- may stand before it."),
    ],
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Give our input to the command.")
    ] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Give the command a terminal.")] = False,
    user: Annotated[
        str, typer.Option("--user", "-u", help="As whom: a name or a number; root by default.")
    ] = "",
    workdir: Annotated[
        str, typer.Option("--workdir", "-w", metavar="DIR", help="Where; the user's home by default.")
    ] = "",
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="NAME=VALUE", help="May be given again.", show_default=False),
    ] = None,
) -> int:
    """Run a command in a guest. The exit code is the command's; 125 if it could not be run."""
    from . import streams

    argv = command[1:] if command[0] == "--" else command
    if not argv:
        raise typer.BadParameter("no command after --")
    live = tty and interactive and streams.is_terminal()
    told: list[Streams] = []

    async def work(ctx: Context) -> int:
        from ..engine import execute as execution

        rows, cols = streams.terminal_size() if tty else (0, 0)
        pairs = params.parse_pairs(env, "--env")
        what = execution.Command(argv, user, workdir, pairs, tty=tty, rows=rows, cols=cols)
        found = execution.find_running(ctx, machine)
        ours = execution.Streams(
            read=streams.read if interactive else None, stdout=streams.write_out, stderr=streams.write_err
        )
        told.append(ours)
        with contextlib.ExitStack() as stack:
            if live:
                stack.enter_context(streams.raw_terminal())
                stack.enter_context(_following_size(ours))
            return await execution.execute(ctx, found, what, ours)

    def pass_on(number: signal.Signals) -> bool:
        """The first ctrl-C is the command's, as in a shell; the second one ours."""
        if number is not signal.SIGINT or not told:
            return False
        told.pop().signal("INT")
        return True

    return cli.run(work, handler=pass_on, progress=False)


@contextlib.contextmanager
def _following_size(ours: Streams) -> Iterator[None]:
    """Tell the command's terminal when ours changes its size."""
    import asyncio

    from . import streams

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGWINCH, lambda: ours.resize(*streams.terminal_size()))
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
