"""`gapssg landscape`."""

from __future__ import annotations

from typing import Annotated

import typer

from gapssg.cli import options, render
from gapssg.cli.command import DEVICE, MODEL_FACTORIES, Given, Shown, command, data_fields
from gapssg.cli.console import Console
from gapssg.cli.options import Panel
from gapssg.cli.runs import check_factories, check_run, load_run
from gapssg.errors import InputError
from gapssg.landscape.settings import LandscapeSettings

_Row = Annotated[
    str | None,
    typer.Option(
        "--row",
        metavar="NAME",
        help="Of a table with several lines, the row whose students are measured.",
        rich_help_panel=Panel.MEASURING,
    ),
]


@command(
    "landscape",
    LandscapeSettings,
    {
        Panel.MAIN: [
            Shown("models", "FILE|DIR", is_argument=True),
            *("data.name", "grid", "range", "dimensions", "directions"),
        ],
        Panel.MEASURING: [
            Shown("snapshots", "--snapshots"),
            Shown("epochs", "--epoch"),
            *("samples", "curvature.enabled", "curvature.spectrum"),
            Shown("recalibrate", "--recalibrate"),
            Shown("biases_and_norms", "--biases-and-norms"),
            Shown("own_scale", "--own-scale/--one-scale"),
        ],
        Panel.DATA: ["teacher", *data_fields("data"), MODEL_FACTORIES],
        Panel.RUNNING: ["batch_size", "seed", *DEVICE],
    },
)
def landscape(
    console: Console,
    given: Given[LandscapeSettings],
    output: options.Output = None,
    resume: options.Resume = None,
    overwrite: options.Overwrite = False,
    row: _Row = None,
) -> None:
    """Measure and draw the loss around the weights of models.

    The directory of a table stands for its students, one of each method.

    Examples:
        gapssg landscape run --data pool --output landscape
        gapssg landscape student.safetensors teacher.safetensors --data digits --dimensions 1 --output landscape
        gapssg landscape table --data cifar10 --snapshots --epoch 20 --epoch 40 --epoch 140 --output landscapes
    """
    run = options.RunOptions(output=output, resume=resume, overwrite=overwrite)
    settings = load_run(console, given, run)
    if resume is None:
        settings = _with_students(settings, row)
    check_factories(console, given, run, settings.model_factories, "--model-factory")
    if given.dry_run:
        console.settings(settings)
        return
    directory = check_run(settings, run)

    from gapssg.landscape.measure import measure_landscape

    resumes, requests = resume is not None, console.invocation.requests
    with console.live() as display:
        result = measure_landscape(
            settings, directory, overwrite=overwrite, resume=resumes, display=display, requests=requests
        )
    render.print_landscape(console, result)
    console.result(result)


def _with_students(settings: LandscapeSettings, row: str | None) -> LandscapeSettings:
    """Return the settings with the students of a table in place of its directory.

    Raises `InputError` if `students_of` does, or there is no table for --row.
    """
    from gapssg.table.students import is_table, students_of

    tables = [path for path in settings.models if is_table(path)]
    if row is not None and not tables:
        raise InputError("--row chooses a line of a table; name the table's directory, or leave --row out")
    if not tables:
        return settings
    models = [run for path in settings.models for run in (students_of(path, row) if path in tables else (path,))]
    return LandscapeSettings.model_validate({**settings.to_dict(), "models": models})
