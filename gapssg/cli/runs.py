"""What the commands that write a run directory share, by their `RunOptions`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gapssg.cli.command import MODEL_FACTORIES, Given
from gapssg.cli.console import Console
from gapssg.cli.options import RunOptions, check_inputs, paths_in, required
from gapssg.data.settings import DataSettings
from gapssg.errors import InputError, shortened
from gapssg.models.hub import local_file
from gapssg.models.reference import is_factory
from gapssg.safe_paths import inside
from gapssg.settings.base import Settings
from gapssg.settings.load import SETTINGS, AnySettings, read_toml

if TYPE_CHECKING:
    from gapssg.runs.events import Epoch

Result = TypeVar("Result")


def load_run(
    console: Console,
    given: Given[AnySettings],
    options: RunOptions,
    *,
    beneath: Callable[[Mapping[str, object]], Mapping[str, object]] | None = None,
) -> AnySettings:
    """Return the settings of a run, as `Given.load` resolves them.

    A resumed run has its own settings: `--model-factory` only confirms its factories, and it downloads only if
    `--download` is given again, and a model of the Hub only if it is named again, because an untrusted run directory
    must not choose what is fetched. Raises `InputError` if --resume is combined with an option that contradicts it, or
    as `settings_of_run` and `Given.load`.
    """
    console.invocation.command = given.section
    given = replace(given, console=None)  # its command prints the settings, after further checks
    if options.resume is None:
        return given.load(recipe=options.recipe, beneath=beneath)
    given_too = {
        "--output": options.output is not None,
        "--overwrite": options.overwrite,
        "--config": given.config is not None,
        "--recipe": options.recipe is not None,
    }
    for option, is_given in given_too.items():
        if is_given:
            raise InputError(f"--resume continues a run in its own directory with its own settings; leave {option} out")
    config = settings_of_run(given.section, options.resume)
    kept = {key: option for key, option in given.options.items() if key != MODEL_FACTORIES.key}
    settings = replace(given, options=kept, config=config).load()
    for path in paths_in(settings):
        if str(path) not in given.texts():
            local_file(path, fetch=False)
    downloads = any(option == "--download" and value for option, value in kept.values())
    return settings if downloads else _without_download(settings)


def settings_of_run(command: str, resume: Path) -> Path:
    """Return the file of the settings of a run; raise `InputError` if the directory holds no run of this command."""
    file = inside(resume) / SETTINGS
    try:
        started_as = _command_of(read_toml(file))
    except InputError as error:
        raise InputError(f"{resume} holds no run to resume: {error}") from error
    if started_as != command:
        raise InputError(
            f"{resume} is a run of {started_as}; use gapssg {started_as} --resume {shlex.quote(str(resume))}"
        )
    return file


def check_factories(
    console: Console, given: Given[AnySettings], options: RunOptions, names: Sequence[str], option: str
) -> None:
    """Check that the code a resumed run imports is named again: an untrusted run must not choose what code is run.

    Args:
        console: Told which options a later --resume needs.
        given: What the command line names.
        options: Whether, and which, run is resumed.
        names: The models and factories in the settings.
        option: The option that can name them.

    Raises:
        InputError: A factory is not named.
    """
    factories = [name for name in dict.fromkeys(names) if is_factory(name)]
    for name in factories:
        if options.resume is not None and name not in given.texts():
            raise InputError(
                f"the run in {options.resume} imports and runs the code of {shortened(name)}; "
                f"if you trust it, add {option} {shortened(name)}"
            )
    console.invocation.again_named = "".join(f" {option} {name}" for name in factories)


def check_estimate(console: Console, options: RunOptions) -> None:
    """Raise `InputError` if --estimate is combined with --resume or several processes."""
    if options.estimate and console.invocation.processes is not None:
        raise InputError("--estimate times the steps of one process; start it without torchrun")
    if options.estimate and options.resume is not None:
        raise InputError(
            "--estimate times a new run; leave --resume out, or --estimate: a resumed run shows its time left"
        )


def check_run(settings: Settings, options: RunOptions) -> Path:
    """Return the directory of a run; check before torch is imported that it may be written and its inputs exist.

    Raises `InputError` if there is no --output, it may not be written, or an input is missing.
    """
    from gapssg.runs.directory import check_output

    if options.resume is not None:
        return options.resume
    directory = required(options.output)
    check_inputs(settings)
    check_output(directory, options.overwrite)
    return directory


def carry_out(
    console: Console,
    options: RunOptions,
    run: Callable[..., Result],
    settings: Settings,
    directory: Path,
    epoch: type[Epoch],
) -> Result:
    """Call the function of a training command, show its run, and return its result."""
    from gapssg.runs.loggers import TENSORBOARD, LoggingDisplay

    invocation = console.invocation
    names = [*(options.logger or ()), *([TENSORBOARD] if options.tensorboard else [])]
    with (
        console.live() as live,
        LoggingDisplay(names, live, directory, settings, epoch) if invocation.writes else nullcontext(live) as display,
    ):
        named = invocation.again_named
        again = [name for name in options.logger or () if name != TENSORBOARD]  # for a run that is interrupted
        invocation.again_named += "".join(f" --logger {name}" for name in again)
        result = run(
            settings,
            directory,
            overwrite=options.overwrite,
            resume=options.resume is not None,
            display=display,
            requests=invocation.requests,
            processes=invocation.processes,
        )
        invocation.again_named = named
        return result


def _command_of(settings: Mapping[str, object]) -> str:
    if "grid" in settings:
        return "landscape"
    return "distill" if "student" in settings else "pretrain-teacher"


def _without_download(settings: AnySettings) -> AnySettings:
    parts = {name: part for name, part in settings if isinstance(part, DataSettings)}
    return settings.model_copy(
        update={name: part.model_copy(update={"download": False}) for name, part in parts.items()}
    )
