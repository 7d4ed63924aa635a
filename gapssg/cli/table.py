"""`gapssg table`: rows and methods of the published table, run and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gapssg.cli import options, render
from gapssg.cli.command import DEVICE, Given, Shown, command
from gapssg.cli.console import Console
from gapssg.cli.options import Panel
from gapssg.errors import InputError
from gapssg.table.settings import TableSettings, parse_variant


def _names(_: str, texts: list[str]) -> list[str]:
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
    reads_files=False,
)
def table(
    console: Console,
    given: Given[TableSettings],
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Directory of the table; a second run continues.", parser=options.path_parser("DIR")
        ),
    ],
    show: Annotated[bool, typer.Option("--show", help="Print what is known so far, and run nothing.")] = False,
) -> None:
    """Run rows and methods of the published table, each cell once, and compare them.

    Examples:
        gapssg table results --rows cifar10-resnet34-wrn16_1 --methods gapssg,fast --budget short --download
        gapssg table results --show
    """
    if show:
        _show(console, directory)
        return
    from gapssg.table.ledger import Ledger
    from gapssg.table.plan import plan_tasks

    if not given.options["rows"][1]:
        raise InputError("--rows is missing; add --rows and the rows to run, or --show")
    tasks = plan_tasks(given.load(), directory)
    Ledger(directory).check_startable()
    console.invocation.again = "; the same command continues"

    from gapssg.table.figures import write_table_figures
    from gapssg.table.run import run_table

    with console.live() as display:
        result = run_table(tasks, directory, display=display, requests=console.invocation.requests)
    render.print_table(console, result)
    console.result(result)
    for label, sentence in result.failed.items():
        console.note(f"failed: {label}: {sentence}")
    for label, holder in result.elsewhere.items():
        console.note(f"not done yet: {label}, left to {holder}")
    if not result.elsewhere:
        for line, sentence in write_table_figures(directory, result).items():
            console.say(f"no figures of {line}: {sentence}")
    if result.failed:
        raise typer.Exit(1)


def _show(console: Console, directory: Path) -> None:
    from gapssg.table.ledger import Ledger
    from gapssg.table.summary import summarise

    ledger = Ledger(directory)
    ledger.check_format()
    known = summarise(ledger)
    render.print_table(console, known)
    console.result({"command": "table", **dict(known)})
