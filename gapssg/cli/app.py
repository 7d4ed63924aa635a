"""The program: its subcommands, and the boundary where errors become one sentence."""

from __future__ import annotations

import inspect
import signal
import sys
import traceback
from importlib import import_module
from typing import Annotated, Any, Literal

import typer
import typer.main
from typer.core import TyperGroup

from gapssg._version import __version__
from gapssg.cli.console import Invocation
from gapssg.engine.requests import Stopped
from gapssg.errors import GapssgError, InputError, shortened
from gapssg.text import printable

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
_LONGEST_LINE = 5000  # a path may have 4,096 bytes


# Typer has its own copy of click in newer versions; this is click's UsageError in either.
_USAGE_ERROR = typer.BadParameter.__mro__[1]

# Where each command is, and what the list of commands says of it: the first line of its docstring.
COMMANDS = {
    "pretrain-teacher": ("gapssg.cli.pretrain_teacher:pretrain_teacher", "Train a teacher on real images."),
    "import-teacher": (
        "gapssg.cli.import_teacher:import_teacher",
        "Make a model file from a classifier that was trained elsewhere.",
    ),
    "distill": ("gapssg.cli.distill:distill", "Distil a student from a teacher, without any training data."),
    "eval": ("gapssg.cli.evaluate:evaluate", "Evaluate model files on real images; several files give one table."),
    "export": (
        "gapssg.cli.export:export",
        "Write a model as ONNX, torch.export or TorchScript, after verifying the exported outputs.",
    ),
    "landscape": ("gapssg.cli.landscape:landscape", "Measure and draw the loss around the weights of models."),
    "quickstart": (
        "gapssg.cli.quickstart:quickstart",
        "Train a digits teacher, distil a student without data, compare it with a baseline, draw its loss landscape.",
    ),
    "table": (
        "gapssg.cli.table:table",
        "Run rows and methods of the published table, each cell once, and compare them.",
    ),
    "inspect": (
        "gapssg.cli.inspect:inspect",
        "Show a model's layers, cost and description, and which methods can distil from it.",
    ),
    "report": ("gapssg.cli.report:report", "Write one page about finished runs, for a browser."),
    "card": ("gapssg.cli.card:card", "Write a model card, README.md, beside the weights of a run."),
    "models": ("gapssg.cli.listings:list_models", "List the built-in models with their parameters and multiply-adds."),
    "methods": ("gapssg.cli.listings:list_methods", "List the data-free methods."),
    "recipes": ("gapssg.cli.listings:list_recipes", "List the recipes, or print one."),
}
_MARKUP: Literal["rich"] = "rich"
_EXAMPLES = "Examples:\n"


class _Commands(TyperGroup):
    """The commands by name; each is imported when it is called, so that `gapssg --help` stays instant."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else build_command(name), rest


def build_command(name: str) -> Any:
    """Import a command, and return it as Typer runs it; the examples in its docstring end its help text."""
    module, function = COMMANDS[name][0].split(":")
    callback = getattr(import_module(module), function)
    text, _, examples = (inspect.getdoc(callback) or "").partition(_EXAMPLES)
    lines = [line.strip() for line in examples.splitlines()]
    alone = typer.Typer(add_completion=False, rich_markup_mode=_MARKUP)
    alone.command(name, help=text, epilog="\n\n".join([_EXAMPLES.strip(), *lines]) if lines else None)(callback)
    return typer.main.get_command(alone)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=_MARKUP,
    help="Compress a trained image classifier without its training data.",
)


def _is_built_when_called() -> None:
    """Stand for a command in the list of commands."""


for _name, (_, _summary) in COMMANDS.items():
    app.command(_name, help=_summary)(_is_built_when_called)


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
