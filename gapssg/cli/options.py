"""The options that several commands share, and their parsers and checks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from gapssg.cli.console import Console, Invocation
from gapssg.data import FOLDER
from gapssg.data.settings import DataSettings
from gapssg.errors import InputError
from gapssg.files import check_exists, read_bounded, user_path
from gapssg.models import check_model_name
from gapssg.models.hub import is_hub_reference, parse_reference
from gapssg.models.names import SMALLEST_IMAGE_SIDE
from gapssg.settings.base import Settings
from gapssg.settings.load import recipe_names

_LARGEST_LIST_OF_NAMES = 2**20  # bytes


class Panel(StrEnum):
    """The panels of a help text; the first one has what a newcomer needs."""

    MAIN = "Options"
    TRAINING = "Training"
    MEASURING = "Measuring"
    INT8 = "Int8"
    DATA = "Data and models"
    FILES = "Files"
    RUNNING = "Running"
    SETTINGS = "Settings"
    DISPLAY = "Display"


REQUIRED = r"[red]\[required][/red]"
"""The end of the help text of a required option."""

MODEL = "a name that [bold]gapssg models[/bold] lists, torchvision:NAME, timm:NAME, or package.module:factory"
"""The names of models, for help texts."""


def path_option(name: str, help_text: str, **details: Any) -> Any:
    """Declare an option that takes a path."""
    return typer.Option(name, help=help_text, metavar="PATH", parser=path_parser(name), **details)


def directory_argument(help_text: str) -> Any:
    """Declare an argument that takes a directory."""
    return typer.Argument(metavar="DIR", help=help_text, parser=path_parser("DIR"))


def path_parser(name: str) -> Callable[[str], Path]:
    """Return the parser of a path for Typer; its errors name the option or argument."""

    def parse(text: str) -> Path:
        try:
            return user_path(text)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error

    return parse


def _display_option(field: str, help_text: str) -> Any:
    """Declare an option that is recorded in the `Invocation`, for the error boundary and the console."""

    def record(context: typer.Context, value: bool) -> bool:
        setattr(context.ensure_object(Invocation), field, value)
        return value

    return typer.Option(f"--{field}", help=help_text, callback=record, is_eager=True, rich_help_panel=Panel.DISPLAY)


Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Start from a recipe; [bold]gapssg recipes[/bold] lists them.",
        autocompletion=lambda incomplete: [name for name in recipe_names() if name.startswith(incomplete)],
    ),
]
Config = Annotated[
    Path | None,
    path_option("--config", "TOML file of settings, as --dry-run prints them.", rich_help_panel=Panel.SETTINGS),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override one setting; repeatable.", rich_help_panel=Panel.SETTINGS
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the resolved settings as TOML and stop.", rich_help_panel=Panel.SETTINGS),
]
Estimate = Annotated[
    bool,
    typer.Option(
        "--estimate",
        help="Time a few steps, print how long the run would take, and stop; needs no --output and writes nothing.",
        rich_help_panel=Panel.SETTINGS,
    ),
]
Output = Annotated[
    Path | None,
    path_option("--output", f"Directory of the run; it holds all that the run writes. {REQUIRED}"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a run that is already in --output.")]
OutputFile = Annotated[Path | None, path_option("--output", f"The file to write. {REQUIRED}")]
ModelFile = Annotated[Path | None, path_option("--output", f"The model file to write, *.safetensors. {REQUIRED}")]
OverwriteFile = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is already there.")]
Resume = Annotated[
    Path | None, path_option("--resume", "Continue the interrupted run in this directory, with its settings.")
]
TensorBoard = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Write the numbers and sample images for TensorBoard, too, under tensorboard/; resumed runs keep logging.",
        rich_help_panel=Panel.FILES,
    ),
]
Loggers = Annotated[
    list[str] | None,
    typer.Option(
        "--logger",
        metavar="NAME",
        help="Write the numbers and sample images to this experiment tracker, too, such as wandb or mlflow; name it "
        "again with --resume. Repeatable.",
        rich_help_panel=Panel.FILES,
    ),
]


@dataclass(frozen=True)
class RunOptions:
    """The options of a command that writes a run directory; a training command has all of them."""

    output: Output = None
    recipe: Recipe = None
    resume: Resume = None
    overwrite: Overwrite = False
    tensorboard: TensorBoard = False
    logger: Loggers = None
    estimate: Estimate = False


Json = Annotated[bool, _display_option("json", "Print one JSON object on stdout and all else on stderr.")]
Quiet = Annotated[bool, _display_option("quiet", "Print only the result.")]
Debug = Annotated[bool, _display_option("debug", "Show the traceback of an error.")]

Number = TypeVar("Number", int, float)


def console_of(context: typer.Context) -> Console:
    """Return the console of an invocation.

    With --json, only the console writes to stdout; the output of other code, such as the user's own models, is sent to
    stderr.
    """
    invocation = context.ensure_object(Invocation)
    console = Console(invocation)
    if invocation.json:
        context.with_resource(redirect_stdout(sys.stderr))
    return console


def required(output: Path | None) -> Path:
    """Return the path of --output, or raise `InputError` if it is missing."""
    if output is None:
        raise InputError("--output is missing; add --output and where to write")
    return output


def check_inputs(settings: Settings, weights: str | None = None) -> None:
    """Raise `InputError` unless the files in settings, and `weights`, exist; called before torch is imported.

    References to the Hub must be well-formed.
    """
    for path in paths_in((settings, *([user_path(weights)] if weights else []))):
        if is_hub_reference(path):
            parse_reference(path)
            continue
        try:
            check_model_name(str(path))  # for a model instead of a file the command has a better message
        except InputError:
            check_exists(path)


def paths_in(value: object) -> Iterator[Path]:
    """Yield the paths of inputs; the folder that data sets are downloaded to need not exist."""
    match value:
        case Path():
            yield value
        case DataSettings():
            if value.name.startswith(FOLDER):
                yield user_path(value.name.removeprefix(FOLDER))
        case Settings():
            for _, part in value:
                yield from paths_in(part)
        case tuple():
            for part in value:
                yield from paths_in(part)


def decimals(option: str, text: str) -> list[float]:
    """Parse comma-separated numbers; raise `InputError` if one is not a number."""
    return _numbers(option, text, float)


def image_shape(option: str, text: str) -> list[int]:
    """Parse channels, height and width; raise `InputError` if one is not a number, or the channels are last."""
    shape = _numbers(option, text, int)
    if len(shape) == 3 and shape[2] < SMALLEST_IMAGE_SIDE <= shape[0]:
        raise InputError(f"{option} {text} must be channels, height, width: {shape[2]},{shape[0]},{shape[1]}")
    return shape


def image_size(option: str, text: str) -> int | list[int]:
    """Parse the side of a square, or height and width; raise `InputError` if one is not a number."""
    sides = _numbers(option, text, int)
    return sides[0] if len(sides) == 1 else sides


def number_or_word(option: str, text: str) -> int | str:
    """Return a text of digits as a number, and another text as it is."""
    return int(text) if text.isdecimal() else text


def _numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} {text!r} must be comma-separated numbers, such as 3,64,64") from error


def names(option: str, text: str) -> list[str]:
    """Parse comma-separated names, or read a text file of them, one a line; raise `InputError` if it is none."""
    if "," in text:
        return [name.strip() for name in text.split(",")]
    try:
        lines = read_bounded(user_path(text), _LARGEST_LIST_OF_NAMES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{option} {text} is not a text file of names, one a line") from error
    return [line.strip() for line in lines if line.strip()]
