"""`gapssg pretrain-teacher`."""

from __future__ import annotations

import typer

from gapssg.cli import options
from gapssg.cli.command import CHECKPOINTS, DEVICE, Given, command, data_fields
from gapssg.cli.console import count
from gapssg.cli.options import Panel
from gapssg.text import percent
from gapssg.training.settings import PretrainSettings


@command(
    "pretrain-teacher",
    PretrainSettings,
    {
        Panel.MAIN: ["data.name", "model.name", "epochs"],
        Panel.TRAINING: ["batch_size", "optimizer.learning_rate", "crop_padding", "flip"],
        Panel.DATA: data_fields("data"),
        Panel.RUNNING: [*CHECKPOINTS, "seed", *DEVICE],
    },
)
def pretrain_teacher(
    context: typer.Context,
    given: Given[PretrainSettings],
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
    """Train a teacher on real images.

    Examples:
        gapssg pretrain-teacher --data digits --model wrn16_1 --recipe digits --output teacher
        gapssg pretrain-teacher --data folder:photos --model resnet18 --output teacher
    """
    console = options.console_of(context)
    console.invocation.command = given.section
    options.check_estimate(estimate, resume)
    output, config = options.run_directory(given.section, output, resume, config, recipe)
    settings = given.load(recipe=recipe, config=config, overrides=overrides, resume=resume)
    options.check_factories((settings.model.name,), resume, given.texts(), "--model")
    console.invocation.again_named = options.name_again((settings.model.name,), "--model")
    if estimate:
        from gapssg.training.pretrain_teacher import estimate_pretraining

        with console.live() as shown:
            found = estimate_pretraining(settings, shown)
        console.estimate(found, (settings.to_dict(), settings.to_toml()) if dry_run else None)
        return
    if dry_run:
        console.settings(settings.to_dict(), settings.to_toml())
        return
    directory = options.required(output, "--output")
    options.check_run(settings, directory, overwrite, resume)

    from gapssg.runs.events import PretrainingEpoch
    from gapssg.training.pretrain_teacher import pretrain_teacher

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
            requests=console.invocation.requests,
        )
    made = result.model
    console.table(
        f"Teacher in {directory}",
        ["model", "parameters", "top-1", "best top-1", "seconds"],
        [
            [
                *(made.architecture, count(made.parameters), percent(made.top1)),
                *(f"{percent(made.best_top1)}, epoch {made.best_epoch}", f"{result.timing.total:.0f}"),
            ]
        ],
    )
    console.note("best top-1: chosen by the test split, so it flatters; top-1 is of the last epoch")
    console.result(result)
