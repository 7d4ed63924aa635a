"""`gapssg inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gapssg.cli import options
from gapssg.cli.command import MODEL_FACTORIES, Given, Shown, command
from gapssg.cli.console import Console, count
from gapssg.cli.options import Panel
from gapssg.evaluation.settings import InspectSettings
from gapssg.files import is_file

if TYPE_CHECKING:
    from gapssg.runs.results import InspectResult


@command(
    "inspect",
    InspectSettings,
    {Panel.MAIN: ["num_classes", Shown("input_shape", metavar="C,H,W", parse=options.image_shape), MODEL_FACTORIES]},
)
def inspect(
    context: typer.Context,
    given: Given[InspectSettings],
    model: Annotated[
        str | None, typer.Argument(help=f"A model file, or {options.MODEL}. {options.REQUIRED}", metavar="MODEL|FILE")
    ] = None,
    config: options.Config = None,
    overrides: options.Set = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show a model's layers, cost and description, and which methods can distil from it.

    Examples:
        gapssg inspect teacher.safetensors
        gapssg inspect torchvision:resnet18 --input-shape 3,224,224 --num-classes 100
    """
    console = options.console_of(context)
    names_file = model is not None and (is_file(model) or Path(model).suffix == ".safetensors")
    named = {
        "file": ("FILE", model if names_file else None),
        "model.name": ("MODEL", None if names_file else model),
    }
    settings = given.load(config=config, overrides=overrides, also=named)
    if dry_run:
        console.settings(settings.to_dict(), settings.to_toml())
        return
    options.check_inputs(settings)

    from gapssg.evaluation.inspect_model import inspect

    result = inspect(settings)
    _print(console, result)
    console.result(result)


def _print(console: Console, result: InspectResult) -> None:
    console.table(
        "Layers with weights, statistics or multiply-adds, in the order in which they run; those that do not run last",
        ["layer", "type", "output", "parameters", "MACs", "observed"],
        [
            [
                layer.name or "-",
                layer.type,
                "x".join(map(str, layer.output_shape or ())) or "-",
                count(layer.parameters),
                f"{layer.macs / 1e6:.2f} M" if layer.macs else "-",
                "yes" if layer.observed else "",
            ]
            for layer in result.layers
        ],
    )
    arguments = ", ".join(f"{key}={value!r}" for key, value in result.arguments.items())
    rows = [
        ["architecture", result.architecture + (f" ({arguments})" if arguments else "")],
        ["images", "x".join(map(str, result.input_shape))],
        ["classes", count(result.num_classes)],
        ["parameters", count(result.parameters)],
        ["MACs of an image", f"{result.macs / 1e6:.1f} M"],
        ["batch-norm layers observed", str(len(result.observed_batch_norm_layers))],
    ]
    if (card := result.card) is not None:
        made_by = {key: str(value) for key, value in card.provenance if key != "versions" and value is not None}
        rows += [
            ["class names", ", ".join(card.class_names)],
            ["mean", ", ".join(f"{each:.4g}" for each in card.mean)],
            ["standard deviation", ", ".join(f"{each:.4g}" for each in card.deviation)],
            ["architecture returns", card.outputs],
            ["random crops", f"padding {card.crop_padding} ({card.crop_padding_mode or 'mode not known'})"],
            ["random flips", "yes" if card.flip else "no"],
            *([f"made by: {key}", value] for key, value in made_by.items()),
            *([f"version of {key}", str(value)] for key, value in card.provenance.versions.items()),
            ["SHA-256", result.sha256 or "-"],
        ]
    console.table(result.file or result.architecture, ["", "model"], rows)
    console.table(
        "Methods that can distil from it",
        ["method", "runs"],
        [[name, "yes" if lacks is None else f"no: it needs {lacks}"] for name, lacks in result.methods.items()],
    )
