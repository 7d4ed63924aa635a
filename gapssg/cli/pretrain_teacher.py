"""`gapssg pretrain-teacher`."""

from __future__ import annotations

from typing import Annotated

import typer

from gapssg.cli import options
from gapssg.cli.console import count
from gapssg.text import percent


def pretrain_teacher(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Option("--data", help="digits, cifar10, cifar100 or folder:PATH (with train/ and test/)."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help=f"Architecture: {options.MODEL}.")] = None,
    output: options.Output = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    crop_padding: Annotated[int | None, options.crop_padding_option("an eighth of the images' height")] = None,
    flip: Annotated[bool | None, options.flip_option("flips, but none for digits")] = None,
    checkpoint_every: options.CheckpointEvery = None,
    checkpoint_minutes: options.CheckpointMinutes = None,
    max_rollbacks: options.MaxRollbacks = None,
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
    """Train a teacher on real images."""
    from gapssg.engine.settings import PretrainSettings
    from gapssg.settings import load_settings

    console = options.console_of(context)
    console.invocation.command = "pretrain-teacher"
    options.check_estimate(estimate, resume)
    output, config = options.run_directory("pretrain-teacher", output, resume, config, recipe)
    settings = load_settings(
        PretrainSettings,
        section="pretrain-teacher",
        recipe=recipe,
        config=config,
        overrides=overrides or (),
        options={
            **options.data_options("data", "--data", data, data_root, download, image_size),
            "model.name": ("--model", model),
            "epochs": ("--epochs", epochs),
            "batch_size": ("--batch-size", batch_size),
            "optimizer.learning_rate": ("--learning-rate", learning_rate),
            "crop_padding": ("--crop-padding", crop_padding),
            "flip": ("--flip", flip),
            "checkpoint_every": ("--checkpoint-every", checkpoint_every),
            "checkpoint_minutes": ("--checkpoint-minutes", checkpoint_minutes),
            "max_rollbacks": ("--max-rollbacks", max_rollbacks),
            **options.runtime_options(seed, device, precision, compiled, deterministic),
        },
    )
    settings = options.without_download(settings, "data", resume, download)
    options.check_factories((settings.model.name,), resume, (model,), "--model")
    console.invocation.again_named = options.name_again((settings.model.name,), "--model")
    if estimate:
        from gapssg.engine.pretrain import estimate_pretraining

        with console.live() as shown:
            found = estimate_pretraining(settings, shown)
        console.estimate(found, (settings.to_dict(), settings.to_toml()) if dry_run else None)
        return
    if dry_run:
        console.settings(settings.to_dict(), settings.to_toml())
        return
    directory = options.required(output, "--output")

    from gapssg.cli.signals import listen
    from gapssg.engine.pretrain import pretrain_teacher
    from gapssg.engine.record import PretrainingEpoch

    with (
        console.live() as shown,
        options.for_tensorboard(tensorboard, resume, shown, directory, PretrainingEpoch) as display,
    ):
        result = pretrain_teacher(
            settings,
            directory,
            overwrite=overwrite,
            resume=resume is not None,
            display=display,
            requests=listen(),
        )
    made = result["model"]
    console.table(
        f"Teacher in {directory}",
        ["model", "parameters", "top-1", "best top-1", "seconds"],
        [
            [
                made["architecture"],
                count(made["parameters"]),
                percent(made["top1"]),
                f"{percent(made['best_top1'])}, epoch {made['best_epoch']}",
                f"{result['timing']['total']:.0f}",
            ]
        ],
    )
    console.note("best top-1: chosen by the test split, so it flatters; top-1 is of the last epoch")
    console.result(result)
