"""`gapssg distill`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from gapssg.cli import render
from gapssg.cli.command import DEVICE, MODEL_FACTORIES, Given, Shown, command, data_fields
from gapssg.cli.console import Console
from gapssg.cli.options import Panel, RunOptions
from gapssg.cli.runs import carry_out, check_estimate, check_factories, check_run, load_run
from gapssg.errors import InputError
from gapssg.runs.events import DistillationEpoch
from gapssg.settings.parts import CHECKPOINTS
from gapssg.training.settings import DistillCommandSettings


@command(
    "distill",
    DistillCommandSettings,
    {
        Panel.MAIN: ["teacher", "student.name", "method.name", "eval_data.name", "epochs", "until_settled"],
        Panel.TRAINING: [
            Shown("student.weights", "--student-weights"),
            *("pool", "method.synthesis_scale", "batch_size", "optimizer.learning_rate"),
            *("crop_padding", "crop_padding_mode", "flip"),
        ],
        Panel.DATA: [*data_fields("eval_data"), MODEL_FACTORIES],
        Panel.FILES: ["snapshot_every", "samples", "keep_pool"],
        Panel.RUNNING: [*CHECKPOINTS, "seed", *DEVICE],
    },
)
def distill(console: Console, given: Given[DistillCommandSettings], options: RunOptions) -> None:
    """Distil a student from a teacher, without any training data.

    Examples:
        gapssg distill --teacher teacher.safetensors --student wrn16_1 --output run
        gapssg distill --teacher teacher.safetensors --student resnet18 --eval-data folder:photos --output run
    """
    check_estimate(console, options)
    settings = load_run(console, given, options, beneath=_published)
    check_factories(console, given, options, [settings.student.name, *settings.model_factories], "--model-factory")
    if options.estimate:
        from gapssg.training.distill import estimate_distillation

        with console.live() as display:
            found = estimate_distillation(settings, display)
        console.estimate(found, settings if given.dry_run else None)
    elif given.dry_run:
        console.settings(settings)
    else:
        directory = check_run(settings, options)

        from gapssg.training.distill import distill

        result = carry_out(console, options, distill, settings, directory, DistillationEpoch)
        render.print_distillation(console, result, directory, settings)
        console.result(result)


def _published(values: Mapping[str, object]) -> Mapping[str, object]:
    """Return the published settings of the chosen method for the given teacher."""
    from gapssg.synthesis import method_classes, published_settings

    method, architecture = values["method.name"], None
    needs_teacher = any(
        each.published_for_teacher for each in method_classes() if each.model_fields["name"].default == method
    )
    if needs_teacher and isinstance(teacher := values.get("teacher"), str | Path):
        from gapssg.models.model_file import architecture_of

        # A teacher that cannot be read is refused by the run, with the reason; --dry-run needs none.
        with contextlib.suppress(InputError):
            architecture = architecture_of(teacher)
    return published_settings(method, architecture)
