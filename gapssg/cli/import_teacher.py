"""`gapssg import-teacher`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gapssg.cli import options
from gapssg.cli.console import count
from gapssg.errors import InputError
from gapssg.files import read_bounded
from gapssg.text import percent

_LONGEST_LIST_OF_NAMES = 2**20  # bytes


def import_teacher(
    context: typer.Context,
    model: Annotated[str | None, typer.Option("--model", help=f"Architecture: {options.MODEL}.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="FILE|default",
            help="Safetensors file of the state dict, or torchvision's or timm's own; without, the factory's.",
        ),
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option("--input-shape", metavar="C,H,W", help="Channels, height and width of an image.")
    ] = None,
    num_classes: Annotated[int | None, typer.Option("--num-classes", help="Number of classes.")] = None,
    class_names: Annotated[
        str | None,
        typer.Option(
            "--class-names",
            metavar="A,B,C|FILE",
            help="Names of the classes in the order of the logits, or a text file with one a line.",
        ),
    ] = None,
    mean: Annotated[
        str | None, typer.Option("--mean", help="Subtracted from images in [0, 1]: one number a channel, or one.")
    ] = None,
    deviation: Annotated[
        str | None, typer.Option("--std", help="What they are divided by: one number a channel, or one.")
    ] = None,
    crop_padding: Annotated[int | None, options.crop_padding_option("an eighth of the images' height")] = None,
    flip: Annotated[bool | None, options.flip_option("no flips")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="The model file to write, *.safetensors.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Evaluate on these first: digits, cifar10, cifar100 or folder:PATH.")
    ] = None,
    data_root: options.DataRoot = None,
    download: options.Download = None,
    image_size: options.ImageSize = None,
    overwrite: options.OverwriteFile = False,
    config: options.Config = None,
    overrides: options.Set = None,
    dry_run: options.DryRun = False,
    seed: options.Seed = None,
    device: options.Device = None,
    precision: options.Precision = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Make a model file from a classifier that was trained elsewhere."""
    from gapssg.engine.settings import ImportSettings
    from gapssg.settings import load_settings

    console = options.console_of(context)
    settings = load_settings(
        ImportSettings,
        section="import-teacher",
        config=config,
        overrides=overrides or (),
        options={
            "model.name": ("--model", model),
            "weights": ("--weights", weights),
            "input_shape": ("--input-shape", options.image_shape("--input-shape", input_shape)),
            "num_classes": ("--num-classes", num_classes),
            "class_names": ("--class-names", _names(class_names)),
            "mean": ("--mean", options.numbers("--mean", mean, float)),
            "deviation": ("--std", options.numbers("--std", deviation, float)),
            "crop_padding": ("--crop-padding", crop_padding),
            "flip": ("--flip", flip),
            **options.data_options("data", "--data", data, data_root, download, image_size),
            **options.runtime_options(seed, device, precision, None, None),
        },
    )
    if dry_run:
        console.settings(settings.to_dict(), settings.to_toml())
        return
    file = options.required(output, "--output")

    from gapssg.engine.import_teacher import import_teacher

    with console.live() as display:
        result = import_teacher(settings, file, overwrite=overwrite, display=display)
    console.table(
        f"Teacher in {file}",
        ["model", "parameters", "MACs", "classes", "images", "top-1"],
        [
            [
                result["architecture"],
                count(result["parameters"]),
                f"{result['macs'] / 1e6:.1f} M",
                str(result["num_classes"]),
                "x".join(map(str, result["input_shape"])),
                percent(result["top1"]),
            ]
        ],
    )
    if result["top1"] is None:
        console.note("top-1: not measured; --data names labelled images to measure it on")
    console.result(result)


def _names(text: str | None) -> list[str] | None:
    """Return the class names that an option lists, or that stand in the file that it names."""
    if text is None:
        return None
    if "," in text:
        return [name.strip() for name in text.split(",")]
    try:
        lines = read_bounded(Path(text), _LONGEST_LIST_OF_NAMES).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"--class-names {text} is no text file of names, one a line") from error
    return [line.strip() for line in lines if line.strip()]
