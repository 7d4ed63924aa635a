"""`gapssg distill`."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from gapssg.cli import options
from gapssg.cli.command import CHECKPOINTS, DEVICE, MODEL_FACTORIES, Given, Shown, command, data_fields
from gapssg.cli.console import count
from gapssg.cli.options import Panel
from gapssg.errors import InputError
from gapssg.runs.results import DistillResult
from gapssg.text import percent
from gapssg.training.settings import DistillSettings


@command(
    "distill",
    DistillSettings,
    {
        Panel.MAIN: ["teacher", "student.name", "method.name", "eval_data.name", "epochs"],
        Panel.TRAINING: [
            Shown("student.weights", "--student-weights"),
            *("pool", "batch_size", "optimizer.learning_rate", "crop_padding", "crop_padding_mode", "flip"),
        ],
        Panel.DATA: [*data_fields("eval_data"), MODEL_FACTORIES],
        Panel.FILES: ["snapshot_every", "samples", "keep_pool"],
        Panel.RUNNING: [*CHECKPOINTS, "seed", *DEVICE],
    },
)
def distill(
    context: typer.Context,
    given: Given[DistillSettings],
    output: options.Output = None,
    recipe: options.Recipe = None,
    resume: options.Resume = None,
    overwrite: options.Overwrite = False,
    tensorboard: options.TensorBoard = False,
    config: options.Config = None,
    overrides: options.Set = None,
    dry_run: options.DryRun = False,
    estimate: options.Estimate = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Distil a student from a teacher, without any training data.

    Examples:
        gapssg distill --teacher teacher.safetensors --student wrn16_1 --output run
        gapssg distill --teacher teacher.safetensors --student resnet18 --eval-data folder:photos --output run
    """
    console = options.console_of(context)
    console.invocation.command = given.section
    options.check_estimate(estimate, resume)
    output, config = options.run_directory(given.section, output, resume, config, recipe)
    settings = given.load(
        recipe=recipe,
        config=config,
        overrides=overrides,
        resume=resume,
        beneath=_published if resume is None else None,
    )
    factories = (settings.student.name, *settings.model_factories)
    options.check_factories(factories, resume, given.texts(), "--model-factory")
    console.invocation.again_named = options.name_again(factories, "--model-factory")
    if estimate:
        from gapssg.training.distill import estimate_distillation

        with console.live() as shown:
            found = estimate_distillation(settings, shown)
        console.estimate(found, (settings.to_dict(), settings.to_toml()) if dry_run else None)
        return
    if dry_run:
        console.settings(settings.to_dict(), settings.to_toml())
        return
    directory = options.required(output, "--output")
    options.check_run(settings, directory, overwrite, resume)

    from gapssg.runs.events import DistillationEpoch
    from gapssg.training.distill import distill

    with (
        console.live() as shown,
        options.for_tensorboard(tensorboard, resume, shown, directory, DistillationEpoch) as display,
    ):
        result = distill(
            settings,
            directory,
            overwrite=overwrite,
            resume=resume is not None,
            display=display,
            requests=console.invocation.requests,
        )
    teacher, student = result.teacher, result.student
    console.table(
        f"Student in {directory}",
        ["model", "parameters", "top-1", "best top-1", "agreement", "baseline", "seconds"],
        [
            [f"teacher {teacher.architecture}", count(teacher.parameters), percent(teacher.top1), *"----"],
            [
                *(f"student {student.architecture}", count(student.parameters), percent(student.top1)),
                "-" if student.best_epoch is None else f"{percent(student.best_top1)}, epoch {student.best_epoch}",
                *(percent(student.agreement), percent(student.agreement_baseline), f"{result.timing.total:.0f}"),
            ],
        ],
    )
    if student.best_epoch is not None:
        console.note("best top-1: chosen by the evaluation data, so it flatters; top-1 is of the last epoch")
    if student.agreement is not None:
        console.note("agreement: with the teacher, on the last synthesised images before the student trained on them")
        console.note("baseline: what always giving the teacher's commonest answer would reach on these images")
    else:
        console.note("agreement: none, because the student has trained on every image of the pool")
    if student.balanced_accuracy is not None:
        lowest = student.lowest_recall
        of_lowest = f", lowest on class '{student.lowest_class}': {percent(lowest)}" if lowest is not None else ""
        console.note(f"balanced accuracy of the student: {percent(student.balanced_accuracy)}{of_lowest}")
    console.say("next:")
    for words in _next_commands(directory, settings):
        console.say(f"  {shlex.join(words)}{console.invocation.again_named}")
    console.failures("the student", result.failures)
    console.warnings("the student", result.warnings)
    console.result(result)


def _next_commands(run: Path, settings: DistillSettings) -> list[list[str]]:
    """Return the commands that say more of the student, show it, and make a file for other programs."""
    data = "folder:PATH" if settings.eval_data is None else settings.eval_data.name
    student, teacher = str(run / DistillResult.model_file), str(settings.teacher)
    return [
        ["gapssg", "eval", student, "--teacher", teacher, "--data", data],
        ["gapssg", "report", str(run), "--output", "report.html"],
        ["gapssg", "export", str(run), "--to", "onnx", "--output", "student.onnx"],
    ]


def _published(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the published settings of the method that is chosen, for the teacher that is given."""
    from gapssg.synthesis import method_classes, published_settings

    method, architecture = values["method.name"], None
    asks = any(each.published_for_teacher for each in method_classes() if each.model_fields["name"].default == method)
    if asks and isinstance(values.get("teacher"), str | Path):
        from gapssg.models.model_file import architecture_of

        # A teacher that cannot be read is refused by the run, which says why; --dry-run needs none.
        with contextlib.suppress(InputError):
            architecture = architecture_of(values["teacher"])
    return published_settings(method, architecture)
