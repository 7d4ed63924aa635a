"""`gapssg eval`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from gapssg.cli import options
from gapssg.cli.command import DEVICE, MODEL_FACTORIES, Given, Shown, command, data_fields
from gapssg.cli.console import Console, count
from gapssg.cli.options import Panel
from gapssg.errors import shortened
from gapssg.evaluation.settings import EvaluateSettings
from gapssg.runs.evaluations import keep_evaluations
from gapssg.runs.events import Note
from gapssg.text import percent

if TYPE_CHECKING:
    from gapssg.runs.results import EvaluatedModel, EvaluateResult

_MOST_CLASSES_IN_A_TABLE = 20
_FEWEST_CLASSES_FOR_TOP5 = 5
_MOST_MODELS_IN_COLUMNS = 4
_LONGEST_CLASS_NAME = 20


@command(
    "eval",
    EvaluateSettings,
    {
        Panel.MAIN: [Shown("models", "FILE", is_argument=True), "data.name", "teacher"],
        Panel.DATA: [*data_fields("data"), MODEL_FACTORIES],
        Panel.RUNNING: ["batch_size", *DEVICE],
    },
)
def evaluate(
    context: typer.Context,
    given: Given[EvaluateSettings],
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Print per-class accuracies and the confusion matrix too.")
    ] = False,
    config: options.Config = None,
    overrides: options.Set = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Evaluate model files on real images; several files give one table.

    Examples:
        gapssg eval student.safetensors --data folder:photos
        gapssg eval student.safetensors --teacher teacher.safetensors --data digits --per-class
    """
    console = options.console_of(context)
    settings = given.load(config=config, overrides=overrides)
    if dry_run:
        console.settings(settings.to_dict(), settings.to_toml())
        return
    options.check_inputs(settings)

    from gapssg.evaluation.evaluate import evaluate

    with console.live() as display:
        result = evaluate(settings, display=display)
        if reason := keep_evaluations(result):
            display.event(Note(message=reason))
    print_evaluation(console, result)
    if per_class:
        for report in result.models:
            _print_classes(console, report, result.class_names)
    console.result(result)


def print_evaluation(console: Console, result: EvaluateResult) -> None:
    """Print one row a model, and which file each is."""
    teacher = result.teacher
    with_top5 = len(result.class_names) > _FEWEST_CLASSES_FOR_TOP5
    columns = ["", "model", "parameters", "MACs", "top-1", *(["top-5"] if with_top5 else [])]
    columns += ["balanced", "lowest class", "loss", "ECE", "images/s"]
    columns += ["agreement", "gap"] if teacher else []
    rows = []
    for number, report in enumerate(result.models, 1):
        row = [str(number), report.architecture, count(report.parameters), f"{report.macs / 1e6:.1f} M"]
        row += [percent(report.top1), *([percent(report.top5)] if with_top5 else [])]
        row += [percent(report.balanced_accuracy), _lowest(report)]
        row += [f"{report.loss:.3f}", f"{report.expected_calibration_error:.3f}"]
        row += [f"{result.timing.images_per_second[number - 1]:.0f}"]
        if report.reality_gap is not None:
            row += [percent(report.agreement), f"{report.reality_gap:.3f}"]
        rows.append(row)
    for number, report in enumerate(result.models, 1):
        console.note(f"{number}: {report.file}")
    title = f"{count(result.images)} test images of {result.data}"
    if len(rows) <= _MOST_MODELS_IN_COLUMNS:  # as many as fit beside each other in 80 columns
        (numbers, *metrics) = zip(columns, *rows, strict=True)
        console.table(title, numbers, metrics)
    else:
        console.table(title, columns, rows)
    if teacher:
        console.note(f"agreement and (reality) gap: with {teacher.file}")


def _lowest(report: EvaluatedModel) -> str:
    """Return the lowest accuracy of a class and the name of that class."""
    if report.lowest_recall is None:
        return "-"
    return f"{percent(report.lowest_recall)} ({shortened(report.lowest_class, _LONGEST_CLASS_NAME)})"


def _print_classes(console: Console, report: EvaluatedModel, class_names: Sequence[str]) -> None:
    matrix = report.confusion_matrix if len(class_names) <= _MOST_CLASSES_IN_A_TABLE else None
    columns = ["class", "accuracy", *(class_names if matrix else [])]
    rows = [
        [name, percent(accuracy), *(map(str, matrix[number]) if matrix else [])]
        for number, (name, accuracy) in enumerate(zip(class_names, report.per_class_accuracy, strict=True))
    ]
    console.table(f"{report.file}: accuracy by class, and how often each class was predicted", columns, rows)
