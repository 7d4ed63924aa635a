"""`gapssg export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gapssg.cli import options
from gapssg.cli.console import Console, count
from gapssg.text import percent

_COLUMNS = ["", "images", "largest difference", "of the largest", "same prediction"]


def export(
    context: typer.Context,
    model: Annotated[
        Path | None, typer.Argument(help="A model file or a run directory.", metavar="FILE|DIR", show_default=False)
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="onnx, torch-export or torchscript.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="The file to write.")] = None,
    overwrite: options.OverwriteFile = False,
    fold_normalization: Annotated[
        bool | None,
        typer.Option("--fold-normalization", help="Let the exported model take pixels in [0, 1] and normalise them."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Compare on these test images, too: digits, cifar10, cifar100 or folder:PATH."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            help="Largest difference of a logit, relative to the largest (default: what float32 rounding explains).",
        ),
    ] = None,
    int8: Annotated[
        bool | None, typer.Option("--int8", help="Quantise to 8-bit integers, calibrated on a sample pool (ONNX).")
    ] = None,
    pool: Annotated[
        Path | None, typer.Option("--pool", help="With --int8: the run whose pool calibrates (default DIR itself).")
    ] = None,
    calibration_images: Annotated[
        int | None, typer.Option("--calibration-images", help="With --int8: at most so many of them (default 512).")
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option("--min-agreement", help="With --int8: least share of equal predictions (default 0.95)."),
    ] = None,
    model_factory: options.ModelFactory = None,
    batch_size: options.BatchSize = None,
    data_root: options.DataRoot = None,
    download: options.Download = None,
    image_size: options.ImageSize = None,
    config: options.Config = None,
    overrides: options.Set = None,
    dry_run: options.DryRun = False,
    seed: options.Seed = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write a model as ONNX, torch.export or TorchScript, after verifying the exported outputs."""
    from gapssg.export.settings import ExportSettings
    from gapssg.settings import load_settings

    console = options.console_of(context)
    settings = load_settings(
        ExportSettings,
        section="export",
        config=config,
        overrides=overrides or (),
        options={
            "model": ("FILE|DIR", None if model is None else str(model)),
            "to": ("--to", to),
            "fold_normalization": ("--fold-normalization", fold_normalization or None),
            **options.data_options("data", "--data", data, data_root, download, image_size),
            "tolerance": ("--tolerance", tolerance),
            "int8.enabled": ("--int8", int8 or None),
            "int8.pool": ("--pool", pool),
            "int8.calibration_images": ("--calibration-images", calibration_images),
            "int8.min_agreement": ("--min-agreement", min_agreement),
            "model_factories": ("--model-factory", model_factory),
            "batch_size": ("--batch-size", batch_size),
            "seed": ("--seed", seed),
        },
    )
    if dry_run:
        console.settings(settings.to_dict(), settings.to_toml())
        return
    file = options.required(output, "--output")

    from gapssg.export.export import export_model

    with console.live() as display:
        result = export_model(settings, file, overwrite=overwrite, display=display)
    print_export(console, result)
    console.result(result)


def print_export(console: Console, result: dict[str, Any]) -> None:
    """Print what was written, and how far it is from the model."""
    verification, int8 = result["verification"], result["int8"]
    tolerance = f"{verification['tolerance']:.1e} of the largest"
    takes = "pixels in [0, 1]" if result["metadata"]["normalization_folded"] else "normalised images"
    console.note(f"{result['file']}: {result['format']}, {count(result['bytes'])} bytes, takes {takes}")
    rows = [_comparison("random images", verification["random"])]
    if verification["test"] is not None:
        rows.append(_comparison(f"test images of {result['data']}", verification["test"]))
    console.table(f"logits of the exported model and of the model (tolerance {tolerance})", _COLUMNS, rows)
    if verification["top1"] is not None:
        top1 = verification["top1"]
        console.note(f"top-1 of the model {percent(top1['model'])}, of the exported model {percent(top1['exported'])}")
    if int8 is not None:
        _print_int8(console, result)


def _print_int8(console: Console, result: dict[str, Any]) -> None:
    int8, rates = result["int8"], result["timing"]["images_per_second"]
    rows = [_comparison("other images of the pool", int8["pool"])]
    if int8["test"] is not None:
        rows.append(_comparison(f"test images of {result['data']}", int8["test"]))
    calibration = count(int8["calibration_images"])
    console.table(f"logits in int8, calibrated on {calibration} images of the pool, and in float32", _COLUMNS, rows)
    names = ("float32", "int8")
    rows = [["bytes", *(count(int8["bytes"][name]) for name in names)]]
    if int8["top1"] is not None:
        rows.append(["top-1", *(percent(int8["top1"][name]) for name in names)])
    rows.append(["images/s", *(f"{rates[name]:.0f}" for name in names)])
    console.table(f"by onnxruntime, {result['timing']['batch_size']} images at a time", ["", *names], rows)


def _comparison(images: str, comparison: dict[str, Any]) -> list[str]:
    return [
        images,
        count(comparison["images"]),
        f"{comparison['largest_difference']:.1e}",
        f"{comparison['relative_difference']:.1e}",
        percent(comparison["agreement"]),
    ]
