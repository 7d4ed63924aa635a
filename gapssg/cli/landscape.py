"""`gapssg landscape`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gapssg.cli import options
from gapssg.cli.console import Console
from gapssg.text import percent


def landscape(
    context: typer.Context,
    models: Annotated[
        list[Path] | None, typer.Argument(help="Model files and run directories.", metavar="FILE|DIR...")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="digits, cifar10, cifar100, folder:PATH, or pool: the run's synthetic samples."),
    ] = None,
    output: options.Output = None,
    grid: Annotated[int | None, typer.Option("--grid", help="Points along each direction (default 25).")] = None,
    half_width: Annotated[
        float | None, typer.Option("--range", help="Half the width of the grid (default 1.0; see docs/landscape.md).")
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option("--dimensions", help="1: a curve, 2: a surface (default 2).")
    ] = None,
    directions: Annotated[
        str | None,
        typer.Option(
            "--directions",
            help="random (filter-normalised), pca (of a run's snapshots, with its training route), or models "
            "(through two, with --dimensions 1, or three).",
        ),
    ] = None,
    biases_and_norms: Annotated[
        bool | None, typer.Option("--biases-and-norms", help="Random directions move biases and batch norms, too.")
    ] = None,
    snapshots: Annotated[
        bool | None,
        typer.Option("--snapshots", help="Measure each snapshot of the runs, not their last weights; draws a sheet."),
    ] = None,
    epochs: Annotated[
        list[int] | None, typer.Option("--epoch", help="With --snapshots: only this epoch; repeatable.")
    ] = None,
    recalibrate: Annotated[
        bool | None,
        typer.Option("--recalibrate", help="Estimate the batch-norm statistics anew, from the samples, at each point."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Measure on at most so many samples (default 2000).")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option("--teacher", help="With --data pool: the teacher, if it is not where it was.")
    ] = None,
    curvature: Annotated[
        bool | None,
        typer.Option("--curvature/--no-curvature", help="Eigenvalue and trace of the Hessian, and sharpness."),
    ] = None,
    own_scale: Annotated[
        bool | None, typer.Option("--own-scale/--one-scale", help="A colour scale for each surface, or one for all.")
    ] = None,
    model_factory: options.ModelFactory = None,
    batch_size: options.BatchSize = None,
    data_root: options.DataRoot = None,
    download: options.Download = None,
    image_size: options.ImageSize = None,
    overwrite: options.Overwrite = False,
    resume: options.Resume = None,
    config: options.Config = None,
    overrides: options.Set = None,
    dry_run: options.DryRun = False,
    seed: options.Seed = None,
    device: options.Device = None,
    precision: options.Precision = None,
    compiled: options.Compile = None,
    deterministic: options.Deterministic = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure and draw the loss around the weights of models."""
    from gapssg.landscape.settings import LandscapeSettings
    from gapssg.settings import load_settings

    console = options.console_of(context)
    console.invocation.command = "landscape"
    output, config = options.run_directory("landscape", output, resume, config, None)
    settings = load_settings(
        LandscapeSettings,
        section="landscape",
        config=config,
        overrides=overrides or (),
        options={
            "models": ("FILE|DIR", [str(model) for model in models] if models else None),
            **options.data_options("data", "--data", data, data_root, download, image_size),
            "teacher": ("--teacher", teacher),
            "model_factories": ("--model-factory", model_factory if resume is None else None),
            "samples": ("--samples", samples),
            "dimensions": ("--dimensions", dimensions),
            "grid": ("--grid", grid),
            "range": ("--range", half_width),
            "directions": ("--directions", directions),
            "biases_and_norms": ("--biases-and-norms", biases_and_norms or None),
            "snapshots": ("--snapshots", snapshots or None),
            "epochs": ("--epoch", epochs or None),
            "recalibrate": ("--recalibrate", recalibrate or None),
            "curvature.enabled": ("--curvature", curvature),
            "own_scale": ("--own-scale", own_scale),
            "batch_size": ("--batch-size", batch_size),
            **options.runtime_options(seed, device, precision, compiled, deterministic),
        },
    )
    settings = options.without_download(settings, "data", resume, download)
    options.check_factories(settings.model_factories, resume, model_factory or (), "--model-factory")
    console.invocation.again_named = options.name_again(settings.model_factories, "--model-factory")
    if dry_run:
        console.settings(settings.to_dict(), settings.to_toml())
        return
    directory = options.required(output, "--output")

    from gapssg.cli.signals import listen
    from gapssg.landscape.measure import measure_landscape

    with console.live() as display:
        result = measure_landscape(
            settings,
            directory,
            overwrite=overwrite,
            resume=resume is not None,
            display=display,
            requests=listen(),
        )
    print_landscape(console, result)
    console.result(result)


def print_landscape(console: Console, result: dict[str, Any]) -> None:
    """Print one row a surface, and where the figures are."""
    with_curvature = any(surface["curvature"] for surface in result["surfaces"])
    columns = ["landscape", "loss", result["accuracy"].split()[0], "lowest", "minima", "radius"]
    columns += ["eigenvalue", "trace", "sharpness"] if with_curvature else []
    rows = []
    for surface in result["surfaces"]:
        row = [surface["label"], _figures(surface["centre"]["loss"]), percent(surface["centre"]["accuracy"])]
        lowest = "centre" if surface["centre_is_global_minimum"] else _figures(surface["lowest_loss"])
        row += [lowest, str(len(surface["minima"])), _figures(surface["radius_of_doubling"])]
        curvature = surface["curvature"]
        if with_curvature:
            row += [_with_error(curvature["largest_eigenvalue"]), _with_error(curvature["trace"])]
            row += [_figures(curvature["epsilon_sharpness"])]
        rows.append(row)
    rate = result["timing"]["points_per_second"]
    title = f"Loss ({result['loss']}) on {result['samples']:,} samples of {result['data']}"
    if len(rows) == 1 and with_curvature:
        (names, *values) = zip(columns, *rows, strict=True)
        console.table(title, names, values)
    else:
        console.table(title, columns, rows)
    console.note("lowest: of all points; radius: in which the loss stays under twice that of the centre")
    if rate is not None:
        console.say(f"{rate:.1f} points/s; {result['timing']['total']:.0f} s in all")
    for figure in result["figures"]:
        if figure.endswith((".png", ".html")):
            console.say(f"  {figure}")


def _figures(number: float | None) -> str:
    return "-" if number is None else f"{number:.3g}"


def _with_error(estimate: dict[str, float | None]) -> str:
    return f"{_figures(estimate['value'])} ± {_figures(estimate['error'])}"
