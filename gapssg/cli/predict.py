"""`gapssg predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from gapssg.cli import options, render
from gapssg.cli.command import DEVICE, MODEL_FACTORIES, Given, Shown, command
from gapssg.cli.console import Console
from gapssg.cli.options import Panel
from gapssg.evaluation.settings import PREDICTIONS, PredictSettings, check_predictions_file
from gapssg.files import check_ending

_Output = Annotated[
    Path | None, options.path_option("--output", "Write the predictions to this CSV file instead of printing them.")
]


@command(
    "predict",
    PredictSettings,
    {
        Panel.MAIN: [Shown("model", "FILE", is_argument=True), Shown("images", "IMAGE|DIR", is_argument=True), "top"],
        Panel.DATA: [MODEL_FACTORIES],
        Panel.RUNNING: ["batch_size", *DEVICE],
    },
)
def predict(
    console: Console,
    given: Given[PredictSettings],
    output: _Output = None,
    overwrite: options.OverwriteFile = False,
) -> None:
    """Classify images by a model: classes and probabilities as a table, CSV or JSON.

    Examples:
        gapssg predict student.safetensors photo.jpg photos/new --top 5
        gapssg predict student.safetensors photos/new --output predictions.csv
        gapssg predict student.onnx photos/new
    """
    if output is not None:
        check_ending(output, PREDICTIONS)  # with --dry-run, too
    settings = given.load()
    options.check_inputs(settings)
    if output is not None:
        check_predictions_file(output, settings, overwrite)

    from gapssg.evaluation.predict_files import predict

    with console.live() as display:
        result = predict(settings, output, overwrite=overwrite, display=display)
    render.print_predictions(console, result, output)
    console.result(result)
