"""`gapssg eval`."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from gapssg.cli import options, render
from gapssg.cli.command import DEVICE, MODEL_FACTORIES, Given, Shown, command, data_fields
from gapssg.cli.console import Console
from gapssg.cli.options import Panel
from gapssg.evaluation.settings import EvaluateSettings
from gapssg.runs.evaluations import keep_evaluations, weights_of_run
from gapssg.runs.events import Note
from gapssg.runs.failures import doubts_of_run, known_failures, passes_on_real_images


@command(
    "eval",
    EvaluateSettings,
    {
        Panel.MAIN: [Shown("models", "FILE", is_argument=True), "data.name", "teacher", Shown("latency", "--latency")],
        Panel.DATA: [*data_fields("data"), MODEL_FACTORIES],
        Panel.RUNNING: ["batch_size", *DEVICE],
    },
)
def evaluate(
    console: Console,
    given: Given[EvaluateSettings],
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Print per-class accuracies and the confusion matrix too.")
    ] = False,
) -> None:
    """Evaluate model files on real images; several files give one table.

    Examples:
        gapssg eval student.safetensors --data folder:photos
        gapssg eval student.safetensors --teacher teacher.safetensors --data digits --per-class
        gapssg eval teacher.safetensors student.safetensors --data folder:photos --latency
    """
    settings = given.load()
    options.check_inputs(settings)

    from gapssg.evaluation.evaluate import evaluate

    with console.live() as display:
        result = evaluate(settings, display=display, processes=console.invocation.processes)
        for message in keep_evaluations(result) if console.invocation.writes else ():
            display.event(Note(message=message))
        for warning in chain.from_iterable(doubts_of_run(Path(model.file)) for model in result.models):
            display.event(warning)
    render.print_evaluation(console, result)
    if per_class:
        render.print_classes(console, result)
    failed = [model for model in result.models if model.failures]
    if failed:
        add = "" if all(model.own_teacher for model in failed) else "add --teacher FILE to compare; "
        console.say(f"if you doubt the labels, {add}repeat this command once they are corrected")
    judged = []
    for model in result.models:
        is_shown_usable = weights_of_run(Path(model.file)) is None and passes_on_real_images(model)
        known = () if is_shown_usable else known_failures(Path(model.file)) or ()
        unsaved = [each for each in model.failures if not any(failure.startswith(each) for failure in known)]
        judged.append(model.model_copy(update={"failures": (*unsaved, *known)}))
        console.failures(model.file, judged[-1].failures)
    console.result(result.model_copy(update={"models": tuple(judged)}))
