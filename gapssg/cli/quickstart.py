"""`gapssg quickstart`: teacher, student, baseline and landscape in a row on the embedded data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import typer

from gapssg.cli import options, render
from gapssg.cli.command import DEVICE, Given, command
from gapssg.cli.console import Console
from gapssg.cli.options import Panel
from gapssg.errors import InputError
from gapssg.evaluation.settings import EvaluateSettings
from gapssg.files import is_file
from gapssg.landscape.settings import LandscapeSettings
from gapssg.runs.results.common import RunResult
from gapssg.safe_paths import inside
from gapssg.settings.base import Settings
from gapssg.settings.load import SETTINGS, load_settings
from gapssg.synthesis.noise import NoiseSettings
from gapssg.training.settings import DistillSettings, PretrainSettings

Result = TypeVar("Result", bound=RunResult)

RECIPE = "quickstart"
DATA = "digits"
PICTURES = ("predictions.png", "predictions.svg")
LANDSCAPE_GRID = 9
LANDSCAPE_SAMPLES = 225  # half of the test digits


class _Steps(NamedTuple):
    """The settings of the five steps."""

    teacher: PretrainSettings
    student: DistillSettings
    noise: DistillSettings
    evaluation: EvaluateSettings
    landscape: LandscapeSettings


@command("pretrain-teacher", PretrainSettings, {Panel.RUNNING: ["seed", *DEVICE]}, reads_files=False)
def quickstart(
    console: Console,
    given: Given[PretrainSettings],
    output: Annotated[Path, options.path_option("--output", "Directory for the runs.")] = Path("quickstart"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted quickstart.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier quickstart.")] = False,
) -> None:
    """Train a digits teacher, distil a student without data, compare it with a baseline, draw its loss landscape.

    Examples:
        gapssg quickstart
        gapssg quickstart --output first-runs --device cpu
    """
    folders = {name: inside(output) / name for name in ("teacher", "student", "noise-baseline", "landscape")}
    teacher_run, student_run, noise_run, landscape_run = folders.values()
    files = [
        teacher_run / "model.safetensors",
        student_run / "student.safetensors",
        noise_run / "student.safetensors",
    ]
    steps = _settings(given, files)
    _check_output(output, folders, overwrite or resume)
    if resume and not is_file(teacher_run / SETTINGS):
        raise InputError(f"{output} holds no quickstart to continue; leave --resume out to start one")
    console.invocation.again = "; the same command with --resume continues"

    from gapssg.evaluation.evaluate import evaluate
    from gapssg.landscape.measure import measure_landscape
    from gapssg.training.distill import distill
    from gapssg.training.pretrain_teacher import pretrain_teacher

    started = time.perf_counter()
    requests = console.invocation.requests
    with console.live() as show:
        make = partial(_make, resume=resume, overwrite=overwrite, display=show, requests=requests)
        console.say(f"1 of 5: a {steps.teacher.model.name} teacher learns the digits from real images")
        teacher = make(pretrain_teacher, steps.teacher, teacher_run)
        console.say(f"2 of 5: a {steps.student.student.name} student learns from the teacher and from no data")
        student = make(distill, steps.student, student_run)
        console.say("3 of 5: the same student, for as many steps, on noise: the baseline")
        noise = make(distill, steps.noise, noise_run)
        console.say("4 of 5: all three on the held-out digits")
        evaluation = evaluate(steps.evaluation, display=show)
        console.say("5 of 5: the loss around the student's weights")
        landscape = make(measure_landscape, steps.landscape, landscape_run)
        pictures = _draw_predictions(output, steps, files, student_run)
    seconds = time.perf_counter() - started
    render.print_quickstart(console, evaluation, [student, noise], seconds)
    written: dict[Path, str] = {
        **{file: "" for file in files},
        pictures[0]: ": synthetic and real digits, and what teacher and student say to them",
        student_run / "samples": ": the images that the student learned from, one grid an epoch",
        landscape_run / "figures": ": the loss around the student's weights, one to turn in a browser",
    }
    console.say("written:")
    for file, what in written.items():
        console.say(f"  {file}{what}")
    results = {"teacher": teacher, "student": student, "noise_baseline": noise, "evaluation": evaluation}
    timing = {"total": seconds}
    console.result({"command": "quickstart", **results, "landscape": landscape, "timing": timing})


def _make(
    function: Callable[..., Result], settings: Settings, run: Path, *, resume: bool, overwrite: bool, **given: object
) -> Result:
    """Start a run, or resume it if it has a checkpoint."""
    from gapssg.runs.checkpoint import has_checkpoint

    resumes = resume and has_checkpoint(run)
    return function(settings, run, overwrite=overwrite or (resume and not resumes), resume=resumes, **given)


def _draw_predictions(output: Path, steps: _Steps, files: Sequence[Path], run: Path) -> list[Path]:
    from gapssg.core.runtime import Runtime
    from gapssg.data import load_split
    from gapssg.models.model_file import load_model
    from gapssg.report.predictions import draw_predictions

    teacher, student, *_ = map(load_model, files)
    images = load_split(DATA, "test")
    runtime = Runtime.from_settings(steps.evaluation.runtime, seed=0)
    return draw_predictions(inside(output), teacher, student, run, images, runtime)


def _settings(given: Given[PretrainSettings], files: Sequence[Path]) -> _Steps:
    """Return the settings of the steps; the model files are those of teacher, student and noise baseline."""
    runtime = given.options
    teacher = {"teacher": ("--teacher", files[0])}
    student_settings = load_settings(
        DistillSettings,
        section="distill",
        recipe=RECIPE,
        options={**teacher, "eval_data.name": ("--eval-data", DATA), **runtime},
    )
    # The baseline differs from the student in the source of its images, and in nothing else.
    method = student_settings.method
    shared = {name: getattr(method, name) for name in NoiseSettings.model_fields if name != "name"}
    noise_settings = student_settings.model_validate(
        {**student_settings.to_dict(), "method": {"name": "noise", **shared}}
    )
    evaluate_settings = load_settings(
        EvaluateSettings,
        section="eval",
        options={
            **teacher,
            "models": ("FILE", [str(file) for file in files]),
            "data.name": ("--data", DATA),
            **{key: option for key, option in runtime.items() if key != "seed"},
        },
    )
    landscape_settings = load_settings(
        LandscapeSettings,
        section="landscape",
        options={
            "models": ("FILE", [str(files[1].parent)]),
            "data.name": ("--data", DATA),
            "grid": ("--grid", LANDSCAPE_GRID),
            "samples": ("--samples", LANDSCAPE_SAMPLES),
            "curvature.enabled": ("--no-curvature", False),
            **runtime,
        },
    )
    return _Steps(given.load(recipe=RECIPE), student_settings, noise_settings, evaluate_settings, landscape_settings)


def _check_output(output: Path, folders: Mapping[str, Path], overwrite: bool) -> None:
    from gapssg.runs.directory import check_output

    ours = {*folders, *PICTURES}
    others = sorted({entry.name for entry in output.iterdir()} - ours) if output.is_dir() else []
    if others:
        raise InputError(f"--output {output} holds other files ({', '.join(others[:3])}); name another directory")
    for folder in folders.values():
        check_output(folder, overwrite=True)
        if not overwrite and is_file(folder / SETTINGS):
            raise InputError(f"{output} already holds a quickstart; add --resume to continue it, or --overwrite")
