"""`gapssg pretrain-teacher`."""

from __future__ import annotations

from gapssg.cli import options, render
from gapssg.cli.command import DEVICE, Given, command, data_fields
from gapssg.cli.console import Console
from gapssg.cli.options import Panel
from gapssg.cli.runs import carry_out, check_estimate, check_factories, check_run, load_run
from gapssg.runs.events import PretrainingEpoch
from gapssg.settings.parts import CHECKPOINTS
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
    console: Console,
    given: Given[PretrainSettings],
    output: options.Output = None,
    recipe: options.Recipe = None,
    resume: options.Resume = None,
    overwrite: options.Overwrite = False,
    tensorboard: options.TensorBoard = False,
    logger: options.Loggers = None,
    estimate: options.Estimate = False,
) -> None:
    """Train a teacher on real images.

    Examples:
        gapssg pretrain-teacher --data digits --model wrn16_1 --recipe digits --output teacher
        gapssg pretrain-teacher --data folder:photos --model resnet18 --output teacher
    """
    check_estimate(console, estimate, resume)
    directory, settings = load_run(console, given, output, resume, recipe=recipe)
    check_factories(console, given, resume, [settings.model.name], "--model")
    if estimate:
        from gapssg.training.pretrain_teacher import estimate_pretraining

        with console.live() as display:
            found = estimate_pretraining(settings, display)
        console.estimate(found, settings if given.dry_run else None)
        return
    if given.dry_run:
        console.settings(settings)
        return
    directory = check_run(settings, directory, overwrite, resume)

    from gapssg.training.pretrain_teacher import pretrain_teacher

    result = carry_out(
        console,
        pretrain_teacher,
        settings,
        directory,
        PretrainingEpoch,
        overwrite=overwrite,
        resume=resume,
        tensorboard=tensorboard,
        loggers=logger or (),
    )
    render.print_pretraining(console, result, directory)
    console.result(result)
