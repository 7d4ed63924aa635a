"""`gapssg pretrain-teacher`."""

from __future__ import annotations

from gapssg.cli import render
from gapssg.cli.command import DEVICE, Given, command, data_fields
from gapssg.cli.console import Console
from gapssg.cli.options import Panel, RunOptions
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
def pretrain_teacher(console: Console, given: Given[PretrainSettings], options: RunOptions) -> None:
    """Train a teacher on real images.

    Examples:
        gapssg pretrain-teacher --data digits --model wrn16_1 --recipe digits --output teacher
        gapssg pretrain-teacher --data folder:photos --model resnet18 --output teacher
    """
    check_estimate(console, options)
    settings = load_run(console, given, options)
    check_factories(console, given, options, [settings.model.name], "--model")
    if options.estimate:
        from gapssg.training.pretrain_teacher import estimate_pretraining

        with console.live() as display:
            found = estimate_pretraining(settings, display)
        console.estimate(found, settings if given.dry_run else None)
    elif given.dry_run:
        console.settings(settings)
    else:
        directory = check_run(settings, options)

        from gapssg.training.pretrain_teacher import pretrain_teacher

        result = carry_out(console, options, pretrain_teacher, settings, directory, PretrainingEpoch)
        render.print_pretraining(console, result, directory)
        console.result(result)
