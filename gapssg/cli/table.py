"""`gapssg table`: rows and methods of the published table, run and compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gapssg.cli import options
from gapssg.cli.command import DEVICE, Given, Shown, command
from gapssg.cli.console import Console
from gapssg.cli.options import Panel
from gapssg.errors import InputError
from gapssg.table.settings import TableSettings, parse_variant

if TYPE_CHECKING:
    from gapssg.runs.results import TableSummary


def _names(_: str, texts: list[str]) -> list[str]:
    """Return the names of an option that is repeated, or has commas between names, or both."""
    return [name.strip() for text in texts for name in text.split(",")]


def _variants(_: str, texts: list[str]) -> list[dict[str, Any]]:
    return [parse_variant(text).to_dict() for text in texts]


@command(
    "table",
    TableSettings,
    {
        Panel.MAIN: [
            Shown("rows", is_repeatable=True, parse=_names),
            Shown("methods", is_repeatable=True, parse=_names),
            Shown("variants", "--variant", "NAME:KEY=VALUE[,...]", is_repeatable=True, parse=_variants),
            *("seeds", "budget", "scratch"),
        ],
        Panel.DATA: ["data", "data_name", "data_root", Shown("download", "--download"), "image_size"],
        Panel.RUNNING: DEVICE,
        Panel.SETTINGS: [
            Shown("changes", "--set", "KEY=VALUE"),
            Shown("pretrain_changes", "--set-pretrain", "KEY=VALUE"),
        ],
    },
)
def table(
    context: typer.Context,
    given: Given[TableSettings],
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Directory of the table; a second run continues.", parser=options.path_parser("DIR")
        ),
    ],
    show: Annotated[bool, typer.Option("--show", help="Print what is known so far, and run nothing.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Run rows and methods of the published table, each cell once, and compare them.

    Examples:
        gapssg table results --rows cifar10-resnet34-wrn16_1 --methods gapssg,fast --budget short --download
        gapssg table results --show
    """
    from gapssg.table.ledger import Ledger

    console = options.console_of(context)
    if show:
        from gapssg.table.summary import summarise

        ledger = Ledger(directory)
        ledger.check_format()
        known = summarise(ledger)
        _finish(console, known)
        console.result({"command": "table", **dict(known)})
        return
    from gapssg.table.plan import plan_tasks

    if not given.options["rows"][1]:
        raise InputError("--rows is missing; add --rows and the rows to run, or --show")
    settings = given.load()
    tasks = plan_tasks(settings, directory)
    Ledger(directory).check_if_begun()
    console.invocation.again = "; the same command continues"

    from gapssg.table.run import run_table

    with console.live() as display:
        result = run_table(tasks, directory, display=display, requests=console.invocation.requests)
    _finish(console, result)
    console.result(result)
    for label, sentence in result.failed.items():
        console.note(f"failed: {label}: {sentence}")
    for label, holder in result.elsewhere.items():
        console.note(f"not done yet: {label}, which {holder} makes")
    if not result.elsewhere:
        from gapssg.table.figures import write_table_figures

        for line, sentence in write_table_figures(directory, result).items():
            console.say(f"no figures of {line}: {sentence}")
    if result.failed:
        raise typer.Exit(1)


def _finish(console: Console, summary: TableSummary) -> None:
    """Print a table."""
    from gapssg.table.summary import with_deviation

    for row in summary.rows:
        changed = f", with {', '.join(row.changes)}" if row.changes else ""
        console.table(
            f"{row.row}, budget {row.budget}{changed}",
            ["column", "seeds", "top-1 %", "published", "seconds", "device", "notes"],
            [
                [
                    entry.column,
                    str(len(entry.seeds)),
                    with_deviation(entry.top1, entry.deviation),
                    with_deviation(entry.published_top1, entry.published_deviation),
                    "-" if entry.seconds is None else f"{entry.seconds:.0f}",
                    entry.device or "-",
                    " ".join(entry.marks),
                ]
                for entry in row.entries
            ],
        )
    for mark, note in summary.notes.items():
        console.note(f"{mark}: {note}")
    if summary.rows:
        console.note("top-1: after the last epoch, mean and standard deviation over seeds")
