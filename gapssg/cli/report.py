"""`gapssg report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gapssg.cli import options


def report(
    context: typer.Context,
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run directories, finished; landscapes, too.", metavar="DIR...")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="The page; its name ends in .html.")] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Evaluate the models on the test images of digits, cifar10, folder:PATH, ..."),
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option("--teacher", help="With --data: the teacher, if it is not where it was.")
    ] = None,
    model_factory: options.ModelFactory = None,
    batch_size: options.BatchSize = None,
    data_root: options.DataRoot = None,
    download: options.Download = None,
    image_size: options.ImageSize = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page that is already there.")] = False,
    device: options.Device = None,
    precision: options.Precision = None,
    compiled: options.Compile = None,
    deterministic: options.Deterministic = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write one page about finished runs, for a browser."""
    from gapssg.report.settings import ReportSettings
    from gapssg.settings import load_settings

    console = options.console_of(context)
    runtime = options.runtime_options(None, device, precision, compiled, deterministic)
    settings = load_settings(
        ReportSettings,
        section="report",
        options={
            "runs": ("DIR", [str(run) for run in runs] if runs else None),
            **options.data_options("data", "--data", data, data_root, download, image_size),
            "teacher": ("--teacher", teacher),
            "model_factories": ("--model-factory", model_factory),
            "batch_size": ("--batch-size", batch_size),
            **{key: option for key, option in runtime.items() if key != "seed"},
        },
    )
    page = options.required(output, "--output")

    from gapssg.report.page import write_report

    with console.live() as display:
        result = write_report(settings, page, overwrite=overwrite, display=display)
    for run in result["runs"]:
        say = console.alarm if run["failures"] else console.note
        say(f"{run['run']}: {run['verdict']}")
    console.say(f"written: {page}")
    console.result(result)
