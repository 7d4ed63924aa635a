"""`gapssg inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gapssg.cli import options, render
from gapssg.cli.command import MODEL_FACTORIES, Given, Shown, command
from gapssg.cli.console import Console
from gapssg.cli.options import Panel
from gapssg.evaluation.settings import InspectSettings
from gapssg.files import is_file, is_folder
from gapssg.models.hub import is_hub_reference
from gapssg.models.names import MODELS
from gapssg.runs.failures import warn_of_failure


@command(
    "inspect",
    InspectSettings,
    {Panel.MAIN: ["num_classes", Shown("input_shape", metavar="C,H,W", parse=options.image_shape), MODEL_FACTORIES]},
)
def inspect(
    console: Console,
    given: Given[InspectSettings],
    model: Annotated[
        str | None, typer.Argument(help=f"A model file, or {options.MODEL}. {options.REQUIRED}", metavar="MODEL|FILE")
    ] = None,
) -> None:
    """Show a model's layers, cost and description, and which methods can distil from it.

    Examples:
        gapssg inspect teacher.safetensors
        gapssg inspect torchvision:resnet18 --input-shape 3,224,224 --num-classes 100
    """
    is_run = model is not None and model not in MODELS and is_folder(model)
    names_file = model is not None and (
        is_run or is_file(model) or Path(model).suffix == ".safetensors" or is_hub_reference(model)
    )
    named = {
        "file": ("FILE", model if names_file else None),
        "model.name": ("MODEL", None if names_file else model),
    }
    settings = given.load(also=named)
    options.check_inputs(settings)

    from gapssg.evaluation.inspect_model import inspect

    with console.live() as display:
        result = inspect(settings)
        if result.file is not None:
            warn_of_failure(Path(result.file), display)
    render.print_inspection(console, result)
    console.result(result)
