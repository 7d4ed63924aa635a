"""`gapssg table`: rows and methods of the published table, run and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gapssg.cli import options
from gapssg.cli.console import Console
from gapssg.errors import InputError


def table(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the table; a second run continues.")],
    show: Annotated[bool, typer.Option("--show", help="Print what is known so far, and run nothing.")] = False,
    rows: Annotated[
        list[str] | None,
        typer.Option("--rows", help="Rows, with commas or repeated; `gapssg recipes` lists them (those for table)."),
    ] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--methods", help="Methods, with commas or repeated (default all but noise).")
    ] = None,
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            metavar="NAME:KEY=VALUE[,...]",
            help="A further column: gapssg, or the method.name given, with changed settings; repeatable.",
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Runs of each cell (default 3).")] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="full (published settings, the default), short (the recipe's) or smoke."),
    ] = None,
    scratch: Annotated[
        bool | None, typer.Option("--scratch/--no-scratch", help="Train students on the real images, too.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Real images instead of the rows' own, such as folder:PATH.")
    ] = None,
    data_name: Annotated[
        str | None, typer.Option("--data-name", help="Their name in the rows (default: of the folder).")
    ] = None,
    data_root: options.DataRoot = None,
    download: options.Download = None,
    image_size: options.ImageSize = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a setting of all distillations.", rich_help_panel="Settings"
        ),
    ] = None,
    pretrain_overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set-pretrain",
            metavar="KEY=VALUE",
            help="Change a setting of all training on real images.",
            rich_help_panel="Settings",
        ),
    ] = None,
    device: options.Device = None,
    precision: options.Precision = None,
    compiled: options.Compile = None,
    deterministic: options.Deterministic = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Run rows and methods of the published table, each cell once, and compare them."""
    from gapssg.table.ledger import Ledger

    console = options.console_of(context)
    if show:
        from gapssg.table.summary import summarise

        ledger = Ledger(directory)
        ledger.check_format()
        _finish(console, summarise(ledger))
        return
    from gapssg.settings import load_settings
    from gapssg.table.plan import plan_tasks
    from gapssg.table.settings import TableSettings, parse_variant

    if not rows:
        raise InputError("--rows is missing; add --rows and the rows to run, or --show")
    columns = [parse_variant(variant).to_dict() for variant in variants or ()]
    settings = load_settings(
        TableSettings,
        section="table",
        options={
            "rows": ("--rows", _names(rows)),
            "methods": ("--methods", _names(methods)),
            "variants": ("--variant", columns or None),
            "seeds": ("--seeds", seeds),
            "budget": ("--budget", budget),
            "scratch": ("--scratch", scratch),
            "data": ("--data", data),
            "data_name": ("--data-name", data_name),
            "data_root": ("--data-root", data_root),
            "download": ("--download", download or None),
            "image_size": ("--image-size", image_size),
            "changes": ("--set", overrides or None),
            "pretrain_changes": ("--set-pretrain", pretrain_overrides or None),
            **{
                key: option
                for key, option in options.runtime_options(None, device, precision, compiled, deterministic).items()
                if key != "seed"
            },
        },
    )
    tasks = plan_tasks(settings, directory)
    Ledger(directory).check_if_begun()
    console.invocation.again = "; the same command continues"

    from gapssg.cli.signals import listen
    from gapssg.table.run import run_table

    with console.live() as display:
        summary = run_table(tasks, directory, display=display, requests=listen())
    _finish(console, summary)
    for label, sentence in summary["failed"].items():
        console.note(f"failed: {label}: {sentence}")
    for label, holder in summary["elsewhere"].items():
        console.note(f"not done yet: {label}, which {holder} makes")
    if not summary["elsewhere"]:
        from gapssg.table.figures import write_table_figures

        for line, sentence in write_table_figures(directory, summary).items():
            console.say(f"no figures of {line}: {sentence}")
    if summary["failed"]:
        raise typer.Exit(1)


def _names(texts: list[str] | None) -> list[str] | None:
    """Return the names of an option that is repeated, or has commas between names, or both."""
    return [name.strip() for text in texts for name in text.split(",")] if texts else None


def _finish(console: Console, summary: dict[str, Any]) -> None:
    """Print a table."""
    from gapssg.table.summary import entries_of, with_deviation

    for row in summary["rows"]:
        changed = f", with {', '.join(row['changes'])}" if row["changes"] else ""
        console.table(
            f"{row['row']}, budget {row['budget']}{changed}",
            ["column", "seeds", "top-1 %", "published", "seconds", "device", "notes"],
            [
                [
                    entry["column"],
                    str(len(entry["seeds"])),
                    with_deviation(entry["top1"], entry["deviation"]),
                    with_deviation(entry["published_top1"], entry["published_deviation"]),
                    "-" if entry["seconds"] is None else f"{entry['seconds']:.0f}",
                    entry["device"] or "-",
                    " ".join(entry["marks"]),
                ]
                for entry in entries_of(row)
            ],
        )
    for mark, note in summary["notes"].items():
        console.note(f"{mark}: {note}")
    if summary["rows"]:
        console.note("top-1: after the last epoch, mean and standard deviation over seeds")
    console.result({"command": "table", **summary})
