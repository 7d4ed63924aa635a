"""`gapssg export`."""

from __future__ import annotations

from gapssg.cli import options, render
from gapssg.cli.command import MODEL_FACTORIES, Given, Shown, command, data_fields
from gapssg.cli.console import Console
from gapssg.cli.options import Panel
from gapssg.export.settings import ExportSettings, format_by_suffix
from gapssg.files import check_output_file


@command(
    "export",
    ExportSettings,
    {
        Panel.MAIN: [
            Shown("model", "FILE|DIR", is_argument=True),
            Shown("to", default="by the suffix of --output"),
            Shown("fold_normalization", "--fold-normalization"),
            *("data.name", "tolerance"),
        ],
        Panel.INT8: [
            Shown("int8.enabled", "--int8"),
            *("int8.pool", "int8.calibration_images", "int8.min_agreement"),
            Shown("int8.max_drop_points", "--max-drop"),
        ],
        Panel.DATA: [*data_fields("data"), MODEL_FACTORIES],
        Panel.RUNNING: ["batch_size", "seed"],
    },
)
def export(
    console: Console,
    given: Given[ExportSettings],
    output: options.OutputFile = None,
    overwrite: options.OverwriteFile = False,
) -> None:
    """Write a model in a format of other programs, after verifying the exported outputs.

    Examples:
        gapssg export run --fold-normalization --output student.onnx
        gapssg export run --int8 --data digits --output student-int8.onnx
        gapssg export teacher.safetensors --int8 --pool run --max-drop 1 --output teacher-int8.onnx
        gapssg export run --to openvino --output student
        gapssg export run --to calibration --output calibration
    """
    settings = given.load(beneath=lambda values: format_by_suffix(values.get("to"), output))
    file = options.required(output)
    options.check_inputs(settings)
    if not file.is_dir():  # some formats are folders
        check_output_file(file, overwrite)

    from gapssg.export.export import export_model

    with console.live() as display:
        result = export_model(settings, file, overwrite=overwrite, display=display)
    render.print_export(console, result)
    console.result(result)
