"""`gapssg import-teacher`."""

from __future__ import annotations

import typer

from gapssg.cli import options
from gapssg.cli.command import Given, Shown, command, data_fields
from gapssg.cli.console import count
from gapssg.cli.options import Panel
from gapssg.errors import InputError
from gapssg.evaluation.settings import DEFAULT_WEIGHTS, ImportSettings, check_teacher_file
from gapssg.files import read_bounded, user_path
from gapssg.text import percent

_LONGEST_LIST_OF_NAMES = 2**20  # bytes


def _names(option: str, text: str) -> list[str]:
    """Return the class names that an option lists, or that stand in the file that it names."""
    if "," in text:
        return [name.strip() for name in text.split(",")]
    try:
        lines = read_bounded(user_path(text), _LONGEST_LIST_OF_NAMES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{option} {text} is no text file of names, one a line") from error
    return [line.strip() for line in lines if line.strip()]


@command(
    "import-teacher",
    ImportSettings,
    {
        Panel.MAIN: [
            "model.name",
            Shown("weights", metavar="FILE|default"),
            Shown("input_shape", metavar="C,H,W", parse=options.image_shape),
            "num_classes",
            Shown("class_names", metavar="A,B,C|FILE", parse=_names),
            Shown("mean", metavar="M,M,M", parse=options.decimals),
            Shown("deviation", "--std", metavar="S,S,S", parse=options.decimals),
            "data.name",
        ],
        Panel.TRAINING: ["crop_padding", "crop_padding_mode", "flip"],
        Panel.DATA: data_fields("data"),
        Panel.RUNNING: ["seed", "runtime.device", "runtime.precision"],
    },
)
def import_teacher(
    context: typer.Context,
    given: Given[ImportSettings],
    output: options.ModelFile = None,
    overwrite: options.OverwriteFile = False,
    config: options.Config = None,
    overrides: options.Set = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Make a model file from a classifier that was trained elsewhere.

    Examples:
        gapssg import-teacher --model timm:resnet18 --weights default --input-shape 3,224,224 --output t.safetensors
        gapssg import-teacher --model wrn16_1 --weights w.safetensors --input-shape 1,16,16 --output t.safetensors
    """
    console = options.console_of(context)
    settings = given.load(config=config, overrides=overrides)
    if dry_run:
        console.settings(settings.to_dict(), settings.to_toml())
        return
    file = options.required(output, "--output")
    options.check_inputs(settings, None if settings.weights == DEFAULT_WEIGHTS else settings.weights)
    check_teacher_file(file, settings, overwrite)

    from gapssg.evaluation.import_teacher import import_teacher

    with console.live() as display:
        result = import_teacher(settings, file, overwrite=overwrite, display=display)
    console.table(
        f"Teacher in {file}",
        ["model", "parameters", "MACs", "classes", "images", "top-1"],
        [
            [
                *(result.architecture, count(result.parameters), f"{result.macs / 1e6:.1f} M"),
                *(str(result.num_classes), "x".join(map(str, result.input_shape)), percent(result.top1)),
            ]
        ],
    )
    if result.top1 is None:
        console.note("top-1: not measured; --data names labelled images to measure it on")
    console.result(result)
