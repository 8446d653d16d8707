"""What all verbs have in common: --json, --quiet, --verbose, --debug, errors, exit codes, the event loop.

A verb is a function whose first parameter is a `Cli`; the others are its arguments and options, as typer has them.

    @verb(app, "start")
    def start(cli: Cli, machine: ...) -> int | None:
        '''Start a stopped machine.'''                       the help text
        cli.run(lambda ctx: run.start(ctx, machine))         an operation of the engine

What it returns is the exit code. A LivecloneError is rendered here, and only here.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from . import output

if TYPE_CHECKING:
    from ..engine.context import Context
    from ..errors import LivecloneError
    from .loop import Handler

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., int | None])

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON: one object or array.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; results as short as can be.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens to stderr.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Log everything; tracebacks of errors.")]


def _print_help(context: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(context.get_help())
        raise typer.Exit


# typer's own --help has no value when it is not given, and to understand that it imports pydantic (60 ms).
HelpOption = Annotated[
    bool,
    typer.Option(
        "--help",
        "-h",
        help="Show this message and exit.",
        is_eager=True,
        expose_value=False,
        callback=_print_help,
    ),
]


def make_group(**settings: Any) -> typer.Typer:
    """Return an empty group of verbs with a --help that costs nothing; `settings` are typer's."""
    group = typer.Typer(add_help_option=False, no_args_is_help=True, rich_markup_mode=None, **settings)

    def callback(show_help: HelpOption = False) -> None:
        """Do nothing: the group's verbs do."""

    callback.__annotations__ = {"show_help": HelpOption, "return": None}
    group.callback()(callback)
    return group


@dataclass(frozen=True)
class Cli:
    """How one command was called, and the way to the engine."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    debug: bool = False

    def run(
        self,
        work: Callable[[Context], Awaitable[T]],
        *,
        handler: Handler | None = None,
        progress: bool = True,
        driver: str = "",
    ) -> T:
        """Run an operation of the engine and return its result.

        Args:
            handler: see loop.run.
            progress: False where the terminal belongs to somebody else meanwhile.
            driver: of a verb that one hypervisor alone has; by the settings when empty.
        """
        from dataclasses import replace

        from ..engine import settings
        from ..engine.context import open_context
        from . import loop
        from .progress import Progress

        async def carry_out() -> T:
            shown = progress and not self.quiet
            with Progress(shown=shown, lines=self.verbose or self.debug) as meter:
                found = settings.read()
                chosen = replace(found, driver=driver) if driver else found
                return await work(open_context(chosen, meter.report))

        return loop.run(carry_out(), handler)

    def print_error(self, error: LivecloneError) -> None:
        """Print an error on stderr."""
        output.print_error(error.fields(), as_json=self.json)
        if self.debug:
            traceback.print_exception(error)


def verb(
    app: typer.Typer,
    name: str,
    *aliases: str,
    failure: int | None = None,
    no_json: bool = False,
    **settings: Any,
) -> Callable[[Function], Function]:
    """Make the decorated function a verb of `app`.

    Args:
        aliases: other names, not shown in the help.
        failure: the exit code of every failure; by the class of the error when None.
        no_json: it has no --json, since it prints what somebody else wrote.
        settings: for typer's `command`.
    """

    def decorate(function: Function) -> Function:
        command = _wrap(function, failure, no_json)
        common = {"help": inspect.getdoc(function), "add_help_option": False, **settings}
        app.command(name, **common)(command)
        for alias in aliases:
            app.command(alias, hidden=True, **common)(command)
        return function

    return decorate


def _wrap(function: Callable[..., int | None], failure: int | None, no_json: bool) -> Callable[..., None]:
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    common = {"json": JsonOption, "quiet": QuietOption, "verbose": VerboseOption, "debug": DebugOption}
    if no_json:
        del common["json"]

    def command(**given: Any) -> None:
        root: dict[str, bool] = given.pop("typer_context").obj or {}
        del given["show_help"]
        modes = {key: bool(given.pop(key, False) or root.get(key)) for key in common}
        _carry_out(Cli(**modes), lambda cli: function(cli, **given), failure)

    key = inspect.Parameter.KEYWORD_ONLY
    extra = [inspect.Parameter("typer_context", key, annotation=typer.Context)]
    extra += [inspect.Parameter(name, key, annotation=kind, default=False) for name, kind in common.items()]
    extra += [inspect.Parameter("show_help", key, annotation=HelpOption, default=False)]
    parameters = [parameter.replace(kind=key) for parameter in own] + extra
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__name__ = function.__name__
    return command


def _carry_out(cli: Cli, function: Callable[[Cli], int | None], failure: int | None) -> NoReturn:
    """Run a verb and end the process with its exit code."""
    from ..errors import LivecloneError
    from . import exits
    from .loop import Stopped

    _set_up_logging(cli)
    try:
        raise typer.Exit(function(cli) or 0)
    except LivecloneError as error:
        cli.print_error(error)
        raise typer.Exit(exits.code_of(error) if failure is None else failure) from None
    except Stopped as stopped:
        if isinstance(stopped.__cause__, LivecloneError):
            cli.print_error(stopped.__cause__)
        undone = [] if stopped.__cause__ else [*stopped.notes] or ["what was begun has been undone"]
        message = "; ".join([f"ended by {stopped.number.name}", *undone])
        words = {"error": "stopped", "kind": "Stopped", "message": message}
        output.print_error(words, as_json=cli.json)
        _end(exits.SIGNAL + stopped.number)
    except BrokenPipeError:  # whoever read our output has gone (head, less)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(exits.SIGNAL + 13) from None
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception as error:
        words = {
            "error": "unexpected",
            "kind": type(error).__name__,
            "message": f"an unexpected error, a fault of liveclone: {type(error).__name__}: {error}",
            "next_step": "liveclone repair; report it with what --debug prints"
            if not cli.debug
            else "report it",
        }
        output.print_error(words, as_json=cli.json)
        if cli.debug:
            traceback.print_exception(error)
        raise typer.Exit(exits.UNEXPECTED if failure is None else failure) from None


def _end(code: int) -> NoReturn:
    """End at once: a thread that waits for a lock would hold us up."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _set_up_logging(cli: Cli) -> None:
    import logging

    level = logging.DEBUG if cli.debug else logging.INFO if cli.verbose else logging.ERROR
    plain = "liveclone: %(message)s"
    detailed = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s"
    logging.basicConfig(
        level=level,
        stream=sys.stderr,
        format=detailed if cli.debug or cli.verbose else plain,
        datefmt="%H:%M:%S",
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)
