"""The program: its subcommands, and the boundary where errors become one sentence."""

from __future__ import annotations

import signal
import sys
import traceback
from typing import Annotated

import typer

from gapssg._version import __version__
from gapssg.cli.card import card
from gapssg.cli.console import Invocation
from gapssg.cli.distill import distill
from gapssg.cli.evaluate import evaluate
from gapssg.cli.export import export
from gapssg.cli.import_teacher import import_teacher
from gapssg.cli.inspect import inspect
from gapssg.cli.landscape import landscape
from gapssg.cli.listings import list_methods, list_models, list_recipes
from gapssg.cli.pretrain_teacher import pretrain_teacher
from gapssg.cli.quickstart import quickstart
from gapssg.cli.report import report
from gapssg.cli.table import table
from gapssg.engine.requests import Stopped
from gapssg.errors import GapssgError, InputError, shortened
from gapssg.text import printable

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
_LONGEST_LINE = 5000  # a path may have 4,096 bytes


# Typer has its own copy of click in newer versions; this is click's UsageError in either.
_USAGE_ERROR = typer.BadParameter.__mro__[1]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Compress a trained image classifier without its training data.",
)
app.command("pretrain-teacher")(pretrain_teacher)
app.command("import-teacher")(import_teacher)
app.command("distill")(distill)
app.command("eval")(evaluate)
app.command("export")(export)
app.command("landscape")(landscape)
app.command("quickstart")(quickstart)
app.command("table")(table)
app.command("inspect")(inspect)
app.command("report")(report)
app.command("card")(card)
app.command("models")(list_models)
app.command("methods")(list_methods)
app.command("recipes")(list_recipes)


def _print_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"gapssg {__version__}\n")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Compress a trained image classifier without its training data."""


def main() -> None:
    """Run the program and exit: 0 done, 1 failed while running, 2 bad input, 130 interrupted, 143 terminated."""
    invocation = Invocation()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = app(standalone_mode=False, obj=invocation) or 0
    except Stopped as error:
        status = error.exit_status
    except GapssgError as error:
        status = error.exit_status
        _complain(str(error), invocation)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:
        if isinstance(error, _USAGE_ERROR):
            status = InputError.exit_status
            message = error.format_message()  # type: ignore[attr-defined]
            if message:  # without a command the help was printed instead
                _complain(message, invocation)
        else:
            status = GapssgError.exit_status
            hint = "" if invocation.debug else "; run again with --debug for the traceback, and please report it"
            _complain(f"unexpected {type(error).__name__}: {error}{hint}", invocation)
    if status in (INTERRUPTED, TERMINATED):
        kept = invocation.again
        if not kept and invocation.command and invocation.checkpoint:
            run = printable(invocation.checkpoint)
            kept = f"; continue with: gapssg {invocation.command} --resume {run}{invocation.again_named}"
        elif not kept and invocation.started:
            kept = "; start again with --overwrite"
        sys.stderr.write(f"{'interrupted' if status == INTERRUPTED else 'terminated'}{kept}\n")
    sys.exit(status)


def _terminate(number: int, _: object) -> None:
    raise Stopped(number)


def _complain(sentence: str, invocation: Invocation) -> None:
    if invocation.debug:
        traceback.print_exc()
    lines = "\n".join(shortened(printable(line), _LONGEST_LINE) for line in sentence.split("\n"))
    sys.stderr.write(f"error: {lines}\n")
