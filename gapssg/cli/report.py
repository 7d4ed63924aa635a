"""`gapssg report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from gapssg.cli import options
from gapssg.cli.command import DEVICE, MODEL_FACTORIES, Given, Shown, command, data_fields
from gapssg.cli.console import Console
from gapssg.cli.options import Panel
from gapssg.report.settings import ReportSettings, check_page


@command(
    "report",
    ReportSettings,
    {
        Panel.MAIN: [Shown("runs", "DIR", is_argument=True), "data.name", "teacher"],
        Panel.DATA: [*data_fields("data"), MODEL_FACTORIES],
        Panel.RUNNING: ["batch_size", *DEVICE],
    },
    reads_files=False,
)
def report(
    console: Console,
    given: Given[ReportSettings],
    output: Annotated[
        Path | None, options.path_option("--output", f"The page; its name ends in .html. {options.REQUIRED}")
    ] = None,
    overwrite: options.OverwriteFile = False,
) -> None:
    """Write one page about finished runs, for a browser.

    Examples:
        gapssg report run --output report.html
        gapssg report run landscape --data folder:photos --output report.html
    """
    settings = given.load()
    page = options.required(output)
    options.check_inputs(settings)
    check_page(page, overwrite)

    from gapssg.report.page import write_report

    with console.live() as display:
        result = write_report(settings, page, overwrite=overwrite, display=display)
    for run in result.runs:
        say = console.alarm if run.failures else console.note
        say("; ".join([f"{run.run}: {run.verdict.removesuffix('.')}", *run.failures[1:]]) + ".")
    console.say(f"written: {page}")
    console.result(result)
