"""The program: its subcommands, and the boundary at which errors become one sentence."""

from __future__ import annotations

import inspect
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any, Literal

import typer
import typer.main
from typer.core import TyperGroup

from gapssg._version import __version__
from gapssg.cli.console import Invocation, lenient_streams
from gapssg.cli.processes import check_command, joined, leave
from gapssg.cli.signals import listening
from gapssg.errors import GapssgError, InputError, reporting_out_of_memory, shortened
from gapssg.files import check_current_folder
from gapssg.runs.requests import Stopped
from gapssg.text import printable

_ENDINGS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
_LONGEST_LINE = 5000  # a path may have 4,096 bytes
# Newer versions of Typer have their own copy of click; this is click's UsageError in either.
_USAGE_ERROR = typer.BadParameter.__mro__[1]

# The function of each command, and its line in the list of commands: the first line of its docstring.
COMMANDS = {
    "pretrain-teacher": ("gapssg.cli.pretrain_teacher:pretrain_teacher", "Train a teacher on real images."),
    "import-teacher": (
        "gapssg.cli.import_teacher:import_teacher",
        "Make a model file from a classifier that was trained elsewhere.",
    ),
    "distill": ("gapssg.cli.distill:distill", "Distil a student from a teacher, without any training data."),
    "eval": ("gapssg.cli.evaluate:evaluate", "Evaluate model files on real images; several files give one table."),
    "estimate": (
        "gapssg.cli.estimate:estimate",
        "Predict without real images how often a student disagrees with its teacher, with an interval.",
    ),
    "predict": (
        "gapssg.cli.predict:predict",
        "Classify images by a model: classes and probabilities as a table, CSV or JSON.",
    ),
    "export": (
        "gapssg.cli.export:export",
        "Write a model in a format of other programs, after verifying the exported outputs.",
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
    "push": ("gapssg.cli.push:push", "Upload a model, its card and its description to the Hugging Face Hub."),
    "audit": (
        "gapssg.cli.audit:audit",
        "Measure whether synthetic images and models reveal the training images, before a release.",
    ),
    "models": (
        "gapssg.cli.listings:list_models",
        "List the built-in models with their parameters and multiply-adds, or propose students for a teacher.",
    ),
    "methods": ("gapssg.cli.listings:list_methods", "List the data-free methods."),
    "recipes": ("gapssg.cli.listings:list_recipes", "List the recipes, or print one."),
}
_MARKUP: Literal["rich"] = "rich"
_EXAMPLES = "Examples:\n"


class _Commands(TyperGroup):
    """The commands by name; each is imported only when it is called, so that `gapssg --help` is instant."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        check_command(name)
        return name, None if name is None else build_command(name), rest


def build_command(name: str) -> Any:
    """Import a command and build it; its help text ends in the examples of its docstring."""
    module, function = COMMANDS[name][0].split(":")
    callback = getattr(import_module(module), function)
    text, _, examples = (inspect.getdoc(callback) or "").partition(_EXAMPLES)
    lines = [" ".join(line.split()) for line in examples.replace("\\\n", " ").splitlines()]
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


def _placeholder() -> None:
    """Represent a command, which is built when it is called, in the list of commands."""


for _name, (_, _summary) in COMMANDS.items():
    app.command(_name, help=_summary)(_placeholder)


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
    """Run the program and exit: 0 done, 1 failed while running, 2 bad input, 128 + N stopped by signal N."""
    invocation = Invocation()
    with lenient_streams() as stdout, listening() as invocation.requests:
        status = _run(invocation)
        stdout.flush()
        if stdout.refusal is not None and status == 0:
            status = _report_lost_output(stdout.refusal, invocation)
        leave(invocation, status)
    sys.exit(status)


def _run(invocation: Invocation) -> int:
    """Run a command and report its error; return the exit status."""
    status = 0
    failure: Exception | Stopped | None = None
    try:
        with reporting_out_of_memory(), _checking_current_folder(), joined(invocation):
            status = app(standalone_mode=False, obj=invocation) or 0
    except (KeyboardInterrupt, typer.Abort):
        failure = Stopped(signal.SIGINT)
    except (Exception, Stopped) as error:
        failure = error
    requests = invocation.requests
    requests.attended = True  # the program ends by itself now
    if requests.raised and requests.stop is not None:
        failure = Stopped(requests.stop)  # another package may have replaced the exception
    if failure is not None and not invocation.speaks:
        return getattr(failure, "exit_status", GapssgError.exit_status)
    if isinstance(failure, Stopped):
        sys.stderr.write(f"{_ENDINGS.get(failure.signal_number, 'stopped')}{_how_to_continue(invocation)}\n")
        return failure.exit_status
    return status if failure is None else _report_error(failure, invocation)


@contextmanager
def _checking_current_folder() -> Iterator[None]:
    """Report in one sentence that the current folder was removed, wherever that is noticed."""
    try:
        yield
    except FileNotFoundError:
        check_current_folder()
        raise


def _how_to_continue(invocation: Invocation) -> str:
    if invocation.again:
        return invocation.again
    if invocation.command and invocation.checkpoint:
        again = shlex.join(["gapssg", invocation.command, "--resume", invocation.checkpoint])
        return f"; continue with: {printable(again)}{invocation.again_named}"
    return "; restart with --overwrite" if invocation.started else ""


def _report_error(error: Exception, invocation: Invocation) -> int:
    """Print an error as one sentence; return the exit status."""
    if invocation.debug:
        traceback.print_exception(error)
    status = GapssgError.exit_status
    if isinstance(error, GapssgError):
        lines, status = error.lines, error.exit_status
    elif isinstance(error, _USAGE_ERROR):
        lines, status = (error.format_message(),), InputError.exit_status  # type: ignore[attr-defined]
    else:
        hint = "" if invocation.debug else "; run again with --debug for the traceback, and please report it"
        lines = (f"unexpected {type(error).__name__}: {' '.join(str(error).split())}{hint}",)
    if any(lines):  # there is none if the help was printed instead
        shown = "\n".join(shortened(printable(line), _LONGEST_LINE) for line in lines)
        sys.stderr.write(f"error: {shown}\n")
    return status


def _report_lost_output(refusal: OSError, invocation: Invocation) -> int:
    """Report that stdout was not written; return the exit status: the results of a run are in its directory, too."""
    is_kept = invocation.started and not invocation.json
    kept = "; the results of the run are in its directory" if invocation.started else ""
    reason = refusal.strerror or refusal
    sys.stderr.write(f"{'warning' if is_kept else 'error'}: stdout cannot be written: {reason}{kept}\n")
    return 0 if is_kept else GapssgError.exit_status
