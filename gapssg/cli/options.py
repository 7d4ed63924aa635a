"""The options that several commands share, and what becomes of them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from gapssg.cli.console import Console, Invocation
from gapssg.data.settings import DataSettings
from gapssg.errors import InputError, shortened
from gapssg.files import check_exists, user_path
from gapssg.models import check_model_name
from gapssg.models.reference import is_factory
from gapssg.safe_paths import inside
from gapssg.settings.base import Settings
from gapssg.settings.load import read_toml, recipe_names

if TYPE_CHECKING:
    from gapssg.runs.directory import Display
    from gapssg.runs.events import Epoch


FOLDER = "folder:"


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
"""What ends the help text of an option that has to be given."""


MODEL = "a name that [bold]gapssg models[/bold] lists, torchvision:NAME, timm:NAME, or package.module:factory"
"""What a model can be called, for help texts."""


def _remember(field: str) -> Any:
    """Make a callback that keeps a display option for the error boundary and the console."""

    def callback(context: typer.Context, value: bool) -> bool:
        setattr(context.ensure_object(Invocation), field, value)
        return value

    return callback


def path_option(name: str, help_text: str, **details: Any) -> Any:
    """Declare an option that takes a path."""
    return typer.Option(name, help=help_text, metavar="PATH", parser=path_parser(name), **details)


def path_parser(name: str) -> Callable[[str], Path]:
    """Make what reads the path that the option or argument `name` is given, for Typer."""

    def parse(text: str) -> Path:
        try:
            return user_path(text)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error

    return parse


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
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON object on stdout and all else on stderr.",
        callback=_remember("json"),
        is_eager=True,
        rich_help_panel=Panel.DISPLAY,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        help="Print only the result.",
        callback=_remember("quiet"),
        is_eager=True,
        rich_help_panel=Panel.DISPLAY,
    ),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Show the traceback of an error.",
        callback=_remember("debug"),
        is_eager=True,
        rich_help_panel=Panel.DISPLAY,
    ),
]

Value = TypeVar("Value")
Number = TypeVar("Number", int, float)


def console_of(context: typer.Context) -> Console:
    """Return the console that --json and --quiet ask for.

    With --json it alone writes to stdout from now on; what other code prints, such as a model of the user's, goes to
    stderr.
    """
    invocation = context.ensure_object(Invocation)
    console = Console(invocation)
    if invocation.json:
        context.with_resource(redirect_stdout(sys.stderr))
    return console


@contextmanager
def for_tensorboard(
    wanted: bool, resume: Path | None, display: Display, run: Path, kind: type[Epoch]
) -> Iterator[Display]:
    """Show a run, and write it for TensorBoard, too, if that is wanted, or was before the run was interrupted."""
    from gapssg.runs import tensorboard

    if not wanted and resume is not None and tensorboard.was_written(resume):
        wanted = tensorboard.is_installed()
        if not wanted:
            tensorboard.warn_that_it_ends(display, run)
    if not wanted:
        yield display
        return
    with tensorboard.also_for_tensorboard(display, run, kind) as both:
        yield both


def required(value: Value | None, option: str) -> Value:
    """Return `value`.

    Raises:
        InputError: It was not given.
    """
    if value is None:
        raise InputError(f"{option} is missing; add {option} and where to write")
    return value


def run_directory(
    command: str, output: Path | None, resume: Path | None, config: Path | None, recipe: str | None
) -> tuple[Path | None, Path | None]:
    """Return the directory of the run and the file of its settings, which a continued run has already.

    Raises:
        InputError: --resume stands beside an option that it makes meaningless, or names no run of this command.
    """
    if resume is None:
        return output, config
    for option, value in (("--output", output), ("--config", config), ("--recipe", recipe)):
        if value is not None:
            raise InputError(f"--resume continues a run in its own directory with its own settings; leave {option} out")
    file = inside(resume) / "settings.toml"
    try:
        began_as = _command_of(read_toml(file))
    except InputError as error:
        raise InputError(f"{resume} holds no run to resume: {error}") from error
    if began_as != command:
        raise InputError(f"{resume} is a run of {began_as}; use gapssg {began_as} --resume {shlex.quote(str(resume))}")
    return resume, file


def check_inputs(settings: Settings, weights: str | None = None) -> None:
    """Check that what settings name is there, before importing torch takes seconds; a command checks all else.

    Args:
        settings: Of a command.
        weights: A further file.

    Raises:
        InputError: A file or folder is not there.
    """
    for path in _paths_in((settings, *([user_path(weights)] if weights else []))):
        try:
            check_model_name(str(path))  # the command has advice for a model in place of a file
        except InputError:
            check_exists(path)


def check_run(settings: Settings, output: Path, overwrite: bool, resume: Path | None) -> None:
    """Check before torch is imported that a new run has what it reads, and may be written to `output`.

    Raises:
        InputError: It has not, or may not.
    """
    from gapssg.runs.directory import check_output

    if resume is None:
        check_inputs(settings)
        check_output(output, overwrite)


def _paths_in(value: Any) -> Iterator[Path]:
    """Yield the paths of what is read; where data sets are downloaded to need not be there."""
    match value:
        case Path():
            yield value
        case DataSettings():
            if value.name.startswith(FOLDER):
                yield user_path(value.name.removeprefix(FOLDER))
        case Settings():
            for _, part in value:
                yield from _paths_in(part)
        case tuple():
            for part in value:
                yield from _paths_in(part)


def check_estimate(estimate: bool, resume: Path | None) -> None:
    """Check that --estimate does not stand beside --resume.

    Raises:
        InputError: It does.
    """
    if estimate and resume is not None:
        raise InputError(
            "--estimate times a new run; leave --resume out, or --estimate: a resumed run shows its time left"
        )


def _command_of(settings: Mapping[str, Any]) -> str:
    if "grid" in settings:
        return "landscape"
    return "distill" if "student" in settings else "pretrain-teacher"


def decimals(option: str, text: str) -> list[float]:
    """Return the numbers that an option lists with commas.

    Raises:
        InputError: One is no number.
    """
    return _numbers(option, text, float)


def image_shape(option: str, text: str) -> list[int]:
    """Return channels, height and width.

    Raises:
        InputError: One is no number, or the channels stand last.
    """
    shape = _numbers(option, text, int)
    if len(shape) == 3 and shape[2] < 16 <= shape[0]:
        raise InputError(f"{option} {text} is to be channels, height, width: {shape[2]},{shape[0]},{shape[1]}")
    return shape


def _numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} {text!r} is to be numbers with commas between them, such as 3,64,64") from error


def check_factories(names: Iterable[str], resume: Path | None, named: Iterable[str | None], option: str) -> None:
    """Check that the code that a continued run imports is named again.

    A stranger's run directory must not choose what code is run.

    Args:
        names: The models and factories in the settings.
        resume: The directory of a run that is continued.
        named: What the command line names.
        option: Where it can name them.

    Raises:
        InputError: A factory is not named.
    """
    again = set(named)
    for name in names:
        if resume is not None and is_factory(name) and name not in again:
            raise InputError(
                f"the run in {resume} has the code of {shortened(name)} imported and run; "
                f"if you trust it, add {option} {shortened(name)}"
            )


def name_again(names: Iterable[str], option: str) -> str:
    """Return the options by which `check_factories` lets a run with these models and factories continue."""
    return "".join(f" {option} {name}" for name in dict.fromkeys(names) if is_factory(name))
