"""`gapssg export`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from gapssg.cli import options
from gapssg.cli.command import MODEL_FACTORIES, Given, Shown, command, data_fields
from gapssg.cli.console import Console, count
from gapssg.cli.options import Panel
from gapssg.export.settings import ExportSettings
from gapssg.files import check_output_file
from gapssg.text import percent

if TYPE_CHECKING:
    from gapssg.runs.results import Comparison, ExportResult, ExportTiming, Int8Verification

_COLUMNS = ["", "images", "largest difference", "of the largest", "same prediction"]


@command(
    "export",
    ExportSettings,
    {
        Panel.MAIN: [
            Shown("model", "FILE|DIR", is_argument=True),
            "to",
            Shown("fold_normalization", "--fold-normalization"),
            *("data.name", "tolerance"),
        ],
        Panel.INT8: [
            Shown("int8.enabled", "--int8"),
            *("int8.pool", "int8.calibration_images", "int8.min_agreement"),
        ],
        Panel.DATA: [*data_fields("data"), MODEL_FACTORIES],
        Panel.RUNNING: ["batch_size", "seed"],
    },
)
def export(
    context: typer.Context,
    given: Given[ExportSettings],
    output: options.OutputFile = None,
    overwrite: options.OverwriteFile = False,
    config: options.Config = None,
    overrides: options.Set = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write a model as ONNX, torch.export or TorchScript, after verifying the exported outputs.

    Examples:
        gapssg export run --to onnx --fold-normalization --output student.onnx
        gapssg export run --to onnx --int8 --data digits --output student-int8.onnx
    """
    console = options.console_of(context)
    settings = given.load(config=config, overrides=overrides)
    if dry_run:
        console.settings(settings.to_dict(), settings.to_toml())
        return
    file = options.required(output, "--output")
    options.check_inputs(settings)
    check_output_file(file, overwrite)

    from gapssg.export.export import export_model

    with console.live() as display:
        result = export_model(settings, file, overwrite=overwrite, display=display)
    print_export(console, result)
    console.result(result)


def print_export(console: Console, result: ExportResult) -> None:
    """Print what was written, and how far it is from the model."""
    verification = result.verification
    tolerance = f"{verification.tolerance:.1e} of the largest"
    takes = "pixels in [0, 1]" if result.metadata.normalization_folded else "normalised images"
    console.note(f"{result.file}: {result.format}, {count(result.bytes)} bytes, takes {takes}")
    rows = [_comparison("random images", verification.random)]
    if verification.test is not None:
        rows.append(_comparison(f"test images of {result.data}", verification.test))
    console.table(f"logits of the exported model and of the model (tolerance {tolerance})", _COLUMNS, rows)
    if verification.top1 is not None:
        top1 = verification.top1
        console.note(f"top-1 of the model {percent(top1.model)}, of the exported model {percent(top1.exported)}")
    if result.int8 and result.timing:
        _print_int8(console, result.data, result.int8, result.timing)


def _print_int8(console: Console, data: str | None, int8: Int8Verification, timing: ExportTiming) -> None:
    rows = [_comparison("other images of the pool", int8.pool)]
    if int8.test is not None:
        rows.append(_comparison(f"test images of {data}", int8.test))
    calibration = count(int8.calibration_images)
    console.table(f"logits in int8, calibrated on {calibration} images of the pool, and in float32", _COLUMNS, rows)
    rates = timing.images_per_second
    rows = [["bytes", count(int8.bytes.float32), count(int8.bytes.int8)]]
    if int8.top1 is not None:
        rows.append(["top-1", percent(int8.top1.float32), percent(int8.top1.int8)])
    rows.append(["images/s", f"{rates.float32:.0f}", f"{rates.int8:.0f}"])
    console.table(f"by onnxruntime, {timing.batch_size} images at a time", ["", "float32", "int8"], rows)


def _comparison(images: str, comparison: Comparison) -> list[str]:
    return [
        images,
        count(comparison.images),
        f"{comparison.largest_difference:.1e}",
        f"{comparison.relative_difference:.1e}",
        percent(comparison.agreement),
    ]
