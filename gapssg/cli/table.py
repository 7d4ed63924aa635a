"""`gapssg table`: rows and methods of the published table, run and compared."""

from __future__ import annotations

import sys
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import JsonValue

from gapssg.cli import options, render
from gapssg.cli.command import DEVICE, Given, Shown, command
from gapssg.cli.console import Console
from gapssg.cli.options import Panel
from gapssg.errors import InputError
from gapssg.table.settings import TableSettings, parse_variant

if TYPE_CHECKING:
    from gapssg.runs.results.table import TableResult


_Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Make the runs on a Ray cluster: auto for that of this machine, HOST:PORT, or ray://HOST:PORT.",
        rich_help_panel=Panel.RUNNING,
    ),
]
_CpusPerRun = Annotated[
    float | None,
    typer.Option(
        metavar="FLOAT", help="Processor cores of a run, with --ray; by default 1.", rich_help_panel=Panel.RUNNING
    ),
]
_GpusPerRun = Annotated[
    float | None,
    typer.Option(
        metavar="FLOAT",
        help="GPUs of a run, such as 0.5, with --ray; by default 1 if the cluster has GPUs.",
        rich_help_panel=Panel.RUNNING,
    ),
]


def _names(_: str, texts: list[str]) -> list[str]:
    return [name.strip() for text in texts for name in text.split(",")]


def _variants(_: str, texts: list[str]) -> list[dict[str, JsonValue]]:
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
    directory: Annotated[Path, options.directory_argument("Directory of the table; a second run continues.")],
    show: Annotated[bool, typer.Option("--show", help="Print what is known so far, and run nothing.")] = False,
    ray: _Ray = None,
    cpus_per_run: _CpusPerRun = None,
    gpus_per_run: _GpusPerRun = None,
) -> None:
    """Run rows and methods of the published table, each cell once, and compare them.

    Examples:
        gapssg table results --rows cifar10-resnet34-wrn16_1 --methods gapssg,fast --budget short --download
        gapssg table results --rows digits --seeds 5 --ray auto --cpus-per-run 2
        gapssg table results --show
    """
    if show:
        _show(console, directory)
        return
    from gapssg.table.ledger import Ledger
    from gapssg.table.plan import plan_tasks

    if not given.options["rows"][1]:
        raise InputError("--rows is missing; add --rows and the rows to run, or --show")
    for option, value in {"--cpus-per-run": cpus_per_run, "--gpus-per-run": gpus_per_run}.items():
        if value is not None and ray is None:
            raise InputError(f"{option} is for runs on a cluster; add --ray and its address, or leave it out")
    tasks = plan_tasks(given.load(), directory)
    Ledger(directory).check_startable()
    console.invocation.again = "; the same command continues"

    from gapssg.table.run import run_table

    with console.live() as display, ExitStack() as opened:
        runs: dict[str, Any] = {"display": display, "requests": console.invocation.requests}
        if ray is not None:
            from gapssg.table.ray_cluster import Share, ray_cluster

            opened.enter_context(redirect_stdout(sys.stderr))  # Ray prints that processes have died
            share = Share(1.0 if cpus_per_run is None else cpus_per_run, gpus_per_run)
            runs["place"] = opened.enter_context(ray_cluster(ray, share, tasks, directory, **runs))
        result = run_table(tasks, directory, **runs)
    _report(console, directory, result)


def _report(console: Console, directory: Path, result: TableResult) -> None:
    """Print the table, what is missing in it, and its figures; exit with status 1 if a run failed."""
    from gapssg.table.figures import write_table_figures

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
