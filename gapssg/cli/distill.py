"""`gapssg distill`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gapssg.cli import options
from gapssg.cli.console import count
from gapssg.errors import InputError
from gapssg.text import percent


def distill(
    context: typer.Context,
    teacher: Annotated[Path | None, typer.Option("--teacher", help="The teacher's model file.")] = None,
    student: Annotated[
        str | None, typer.Option("--student", help=f"The student's architecture: {options.MODEL}.")
    ] = None,
    output: options.Output = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="Data-free method; `gapssg methods` lists them (default gapssg-fast)."),
    ] = None,
    eval_data: Annotated[
        str | None,
        typer.Option("--eval-data", help="Real images that only evaluation reads: digits, cifar10, folder:PATH, ..."),
    ] = None,
    pool: Annotated[
        Path | None,
        typer.Option("--pool", help="Distil from the sample pool of this earlier run; synthesise nothing."),
    ] = None,
    student_weights: Annotated[
        Path | None, typer.Option("--student-weights", help="Model file or safetensors file to start from.")
    ] = None,
    epochs: options.Epochs = None,
    model_factory: options.ModelFactory = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    crop_padding: Annotated[int | None, options.crop_padding_option("as the teacher's file says")] = None,
    flip: Annotated[bool | None, options.flip_option("as the teacher's file says")] = None,
    checkpoint_every: options.CheckpointEvery = None,
    checkpoint_minutes: options.CheckpointMinutes = None,
    max_rollbacks: options.MaxRollbacks = None,
    snapshot_every: Annotated[
        int | None, typer.Option("--snapshot-every", help="Keep the weights every so many epochs.")
    ] = None,
    samples: Annotated[
        bool | None,
        typer.Option("--samples/--no-samples", help="Write a grid of the newest images each epoch."),
    ] = None,
    keep_pool: Annotated[
        bool | None, typer.Option("--keep-pool/--no-keep-pool", help="Write the sample pool, for --pool.")
    ] = None,
    data_root: options.DataRoot = None,
    download: options.Download = None,
    image_size: options.ImageSize = None,
    tensorboard: options.TensorBoard = False,
    overwrite: options.Overwrite = False,
    resume: options.Resume = None,
    recipe: options.Recipe = None,
    config: options.Config = None,
    overrides: options.Set = None,
    dry_run: options.DryRun = False,
    estimate: options.Estimate = False,
    seed: options.Seed = None,
    device: options.Device = None,
    precision: options.Precision = None,
    compiled: options.Compile = None,
    deterministic: options.Deterministic = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Distil a student from a teacher, without any training data."""
    from gapssg.engine.settings import DistillSettings
    from gapssg.settings import load_settings

    console = options.console_of(context)
    console.invocation.command = "distill"
    options.check_estimate(estimate, resume)
    output, config = options.run_directory("distill", output, resume, config, recipe)
    settings = load_settings(
        DistillSettings,
        section="distill",
        recipe=recipe,
        config=config,
        overrides=overrides or (),
        options={
            "teacher": ("--teacher", teacher),
            "student.name": ("--student", student),
            "student.weights": ("--student-weights", student_weights),
            "method.name": ("--method", method),
            "pool": ("--pool", pool),
            "model_factories": ("--model-factory", model_factory if resume is None else None),
            **options.data_options("eval_data", "--eval-data", eval_data, data_root, download, image_size),
            "epochs": ("--epochs", epochs),
            "batch_size": ("--batch-size", batch_size),
            "optimizer.learning_rate": ("--learning-rate", learning_rate),
            "crop_padding": ("--crop-padding", crop_padding),
            "flip": ("--flip", flip),
            "checkpoint_every": ("--checkpoint-every", checkpoint_every),
            "checkpoint_minutes": ("--checkpoint-minutes", checkpoint_minutes),
            "max_rollbacks": ("--max-rollbacks", max_rollbacks),
            "snapshot_every": ("--snapshot-every", snapshot_every),
            "samples": ("--samples", samples),
            "keep_pool": ("--keep-pool", keep_pool),
            **options.runtime_options(seed, device, precision, compiled, deterministic),
        },
        beneath=_published if resume is None else None,
    )
    settings = options.without_download(settings, "eval_data", resume, download)
    factories = (settings.student.name, *settings.model_factories)
    options.check_factories(factories, resume, (student, *(model_factory or ())), "--model-factory")
    console.invocation.again_named = options.name_again(factories, "--model-factory")
    if estimate:
        from gapssg.engine.distill import estimate_distillation

        with console.live() as shown:
            found = estimate_distillation(settings, shown)
        console.estimate(found, (settings.to_dict(), settings.to_toml()) if dry_run else None)
        return
    if dry_run:
        console.settings(settings.to_dict(), settings.to_toml())
        return
    directory = options.required(output, "--output")

    from gapssg.cli.signals import listen
    from gapssg.engine.distill import distill
    from gapssg.engine.record import DistillationEpoch

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
            requests=listen(),
        )
    teacher_facts, student_facts = result["teacher"], result["student"]
    console.table(
        f"Student in {directory}",
        [
            "model",
            "parameters",
            "top-1",
            "best top-1",
            "agreement",
            "baseline",
            "seconds",
        ],
        [
            [
                f"teacher {teacher_facts['architecture']}",
                count(teacher_facts["parameters"]),
                percent(teacher_facts["top1"]),
                "-",
                "-",
                "-",
                "-",
            ],
            [
                f"student {student_facts['architecture']}",
                count(student_facts["parameters"]),
                percent(student_facts["top1"]),
                "-"
                if student_facts["best_epoch"] is None
                else f"{percent(student_facts['best_top1'])}, epoch {student_facts['best_epoch']}",
                percent(student_facts["agreement"]),
                percent(student_facts["agreement_baseline"]),
                f"{result['timing']['total']:.0f}",
            ],
        ],
    )
    if student_facts["best_epoch"] is not None:
        console.note("best top-1: chosen by the evaluation data, so it flatters; top-1 is of the last epoch")
    if student_facts["agreement"] is not None:
        console.note("agreement: with the teacher, on the last synthesised images before the student trained on them")
        console.note("baseline: what always giving the teacher's commonest answer would reach on these images")
    else:
        console.note("agreement: none, because the student has trained on every image of the pool")
    if student_facts["balanced_accuracy"] is not None:
        lowest = student_facts["lowest_recall"]
        of_lowest = (
            f", lowest on class '{student_facts['lowest_class']}': {percent(lowest)}" if lowest is not None else ""
        )
        console.note(f"balanced accuracy of the student: {percent(student_facts['balanced_accuracy'])}{of_lowest}")
    console.failures("the student", result["failures"])
    console.warnings("the student", result["warnings"])
    console.result(result)


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
