"""`gapssg landscape`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from gapssg.cli import options
from gapssg.cli.command import DEVICE, MODEL_FACTORIES, Given, Shown, command, data_fields
from gapssg.cli.console import Console
from gapssg.cli.options import Panel
from gapssg.landscape.settings import LandscapeSettings
from gapssg.text import percent

if TYPE_CHECKING:
    from gapssg.runs.results import LandscapeResult, Measurement


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
            *("samples", "curvature.enabled"),
            Shown("recalibrate", "--recalibrate"),
            Shown("biases_and_norms", "--biases-and-norms"),
            Shown("own_scale", "--own-scale/--one-scale"),
        ],
        Panel.DATA: ["teacher", *data_fields("data"), MODEL_FACTORIES],
        Panel.RUNNING: ["batch_size", "seed", *DEVICE],
    },
)
def landscape(
    context: typer.Context,
    given: Given[LandscapeSettings],
    output: options.Output = None,
    resume: options.Resume = None,
    overwrite: options.Overwrite = False,
    config: options.Config = None,
    overrides: options.Set = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure and draw the loss around the weights of models.

    Examples:
        gapssg landscape run --data pool --output landscape
        gapssg landscape student.safetensors teacher.safetensors --data digits --dimensions 1 --output landscape
    """
    console = options.console_of(context)
    console.invocation.command = given.section
    output, config = options.run_directory(given.section, output, resume, config, None)
    settings = given.load(config=config, overrides=overrides, resume=resume)
    options.check_factories(settings.model_factories, resume, given.texts(), "--model-factory")
    console.invocation.again_named = options.name_again(settings.model_factories, "--model-factory")
    if dry_run:
        console.settings(settings.to_dict(), settings.to_toml())
        return
    directory = options.required(output, "--output")
    options.check_run(settings, directory, overwrite, resume)

    from gapssg.landscape.measure import measure_landscape

    with console.live() as display:
        result = measure_landscape(
            settings,
            directory,
            overwrite=overwrite,
            resume=resume is not None,
            display=display,
            requests=console.invocation.requests,
        )
    print_landscape(console, result)
    console.result(result)


def print_landscape(console: Console, result: LandscapeResult) -> None:
    """Print one row a surface, and where the figures are."""
    with_curvature = any(surface.curvature for surface in result.surfaces)
    columns = ["landscape", "loss", result.accuracy.split()[0], "lowest", "minima", "radius"]
    columns += ["eigenvalue", "trace", "sharpness"] if with_curvature else []
    rows = []
    for surface in result.surfaces:
        row = [surface.label, _figures(surface.centre.loss), percent(surface.centre.accuracy)]
        lowest = "centre" if surface.centre_is_global_minimum else _figures(surface.lowest_loss)
        row += [lowest, str(len(surface.minima)), _figures(surface.radius_of_doubling)]
        curvature = surface.curvature
        if curvature:
            row += [_with_error(curvature.largest_eigenvalue), _with_error(curvature.trace)]
            row += [_figures(curvature.epsilon_sharpness)]
        rows.append(row + ["-"] * (len(columns) - len(row)))
    rate = result.timing.points_per_second
    title = f"Loss ({result.loss}) on {result.samples:,} samples of {result.data}"
    if len(rows) == 1 and with_curvature:
        (names, *values) = zip(columns, *rows, strict=True)
        console.table(title, names, values)
    else:
        console.table(title, columns, rows)
    console.note("lowest: of all points; radius: in which the loss stays under twice that of the centre")
    for surface in result.surfaces:
        if surface.curvature and surface.curvature.missing:
            console.note(f"{surface.label}: {surface.curvature.missing}")
    if rate is not None:
        console.say(f"{rate:.1f} points/s; {result.timing.total:.0f} s in all")
    for figure in result.figures:
        if figure.endswith((".png", ".html")):
            console.say(f"  {figure}")


def _figures(number: float | None) -> str:
    return "-" if number is None else f"{number:.3g}"


def _with_error(measured: Measurement) -> str:
    if measured.value is None:
        return "-"
    return f"{_figures(measured.value)} ± {_figures(measured.error)}"
