"""`gapssg quickstart`: teacher, student, baseline and landscape in a row on the embedded data set."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from gapssg.cli import options
from gapssg.cli.command import DEVICE, Given, command
from gapssg.cli.console import count
from gapssg.cli.options import Panel
from gapssg.errors import InputError
from gapssg.evaluation.settings import EvaluateSettings
from gapssg.landscape.settings import LandscapeSettings
from gapssg.safe_paths import inside
from gapssg.settings import load_settings
from gapssg.synthesis.base import PoolMethodSettings
from gapssg.text import percent
from gapssg.training.settings import DistillSettings, PretrainSettings

RECIPE = "digits"
LANDSCAPE_GRID = 11
LANDSCAPE_SAMPLES = 225  # half of the test digits, to stay within 15 seconds on two cores


@command("pretrain-teacher", PretrainSettings, {Panel.RUNNING: ["seed", *DEVICE]})
def quickstart(
    context: typer.Context,
    given: Given[PretrainSettings],
    output: Annotated[Path, options.path_option("--output", "Directory for the runs.")] = Path("quickstart"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier quickstart.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train a digits teacher, distil a student without data, compare it with a baseline, draw its loss landscape.

    Examples:
        gapssg quickstart
        gapssg quickstart --output first-runs --device cpu
    """
    console = options.console_of(context)
    runtime = given.options
    runs = {name: inside(output) / name for name in ("teacher", "student", "noise-baseline")}
    files = {
        name: folder / ("model.safetensors" if name == "teacher" else "student.safetensors")
        for name, folder in runs.items()
    }
    data = {"eval_data.name": ("--eval-data", "digits")}
    teacher_settings = given.load(recipe=RECIPE)
    student_settings = load_settings(
        DistillSettings,
        section="distill",
        recipe=RECIPE,
        options={"teacher": ("--teacher", files["teacher"]), **data, **runtime},
    )
    # The baseline differs from the student in where its images come from, and in nothing else.
    method = student_settings.method
    assert isinstance(method, PoolMethodSettings)  # the recipe's
    noise_settings = student_settings.model_validate(
        {
            **student_settings.to_dict(),
            "method": {
                "name": "noise",
                "temperature": method.temperature,
                "synthesis_batch_size": method.synthesis_batch_size,
                "passes": method.passes,
            },
        }
    )
    evaluate_settings = load_settings(
        EvaluateSettings,
        section="eval",
        options={
            "models": ("FILE", [str(file) for file in files.values()]),
            "data.name": ("--data", "digits"),
            "teacher": ("--teacher", files["teacher"]),
            **{key: option for key, option in runtime.items() if key != "seed"},
        },
    )

    landscape_settings = load_settings(
        LandscapeSettings,
        section="landscape",
        options={
            "models": ("FILE", [str(runs["student"])]),
            "data.name": ("--data", "digits"),
            "grid": ("--grid", LANDSCAPE_GRID),
            "samples": ("--samples", LANDSCAPE_SAMPLES),
            "curvature.enabled": ("--no-curvature", False),
            **runtime,
        },
    )

    from gapssg.runs.directory import check_output

    folders = {**runs, "landscape": inside(output) / "landscape"}
    strange = sorted({entry.name for entry in output.iterdir()} - folders.keys()) if output.is_dir() else []
    if strange:
        raise InputError(f"--output {output} holds other files ({', '.join(strange[:3])}); name another directory")
    for folder in folders.values():
        check_output(folder, overwrite)

    from gapssg.evaluation.evaluate import evaluate
    from gapssg.landscape.measure import measure_landscape
    from gapssg.training.distill import distill
    from gapssg.training.pretrain_teacher import pretrain_teacher

    started = time.perf_counter()
    requests = console.invocation.requests
    with console.live() as display:
        console.say(f"1 of 5: a {teacher_settings.model.name} teacher learns the digits from real images")
        teacher = pretrain_teacher(
            teacher_settings, runs["teacher"], overwrite=overwrite, display=display, requests=requests
        )
        console.say(f"2 of 5: a {student_settings.student.name} student learns from the teacher and from no data")
        student = distill(student_settings, runs["student"], overwrite=overwrite, display=display, requests=requests)
        console.say("3 of 5: the same student, for as many steps, on noise: the baseline")
        noise = distill(noise_settings, runs["noise-baseline"], overwrite=overwrite, display=display, requests=requests)
        console.say("4 of 5: all three on the held-out digits")
        evaluation = evaluate(evaluate_settings, display=display)
        console.say("5 of 5: the loss around the student's weights")
        landscape = measure_landscape(
            landscape_settings, folders["landscape"], overwrite=overwrite, display=display, requests=requests
        )
    seconds = time.perf_counter() - started

    labels = ("teacher, real data", f"student, {method.name}", "student, noise")
    console.table(
        f"{evaluation.images} held-out digits, after {seconds:.0f} s",
        ["model", "architecture", "parameters", "top-1", "loss", "agreement", "gap"],
        [
            [
                label,
                report.architecture,
                count(report.parameters),
                percent(report.top1),
                f"{report.loss:.3f}",
                percent(report.agreement),
                "-" if report.reality_gap is None else f"{report.reality_gap:.3f}",
            ]
            for label, report in zip(labels, evaluation.models, strict=True)
        ],
    )
    console.note("agreement and (reality) gap: with the teacher's predictions and probabilities")
    for what, result in ((f"the student of {method.name}", student), ("the student of noise", noise)):
        console.failures(what, result.failures)
        console.warnings(what, result.warnings)
    console.say("what was made:")
    for file in files.values():
        console.say(f"  {file}")
    console.say(f"  {runs['student'] / 'samples'}: the images that the student learned from, one grid an epoch")
    console.say(
        f"  {folders['landscape'] / 'figures'}: the loss around the student's weights, one to turn in a browser"
    )
    console.result(
        {
            "command": "quickstart",
            "teacher": teacher,
            "student": student,
            "noise_baseline": noise,
            "evaluation": evaluation,
            "landscape": landscape,
            "timing": {"total": seconds},
        }
    )
