"""Settings of a distillation whose work stays within a number of floating-point operations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gapssg import DistillSettings
from gapssg.models import create_model
from gapssg.models.model_file import load_model
from gapssg.models.profile import profile_model
from gapssg.settings.load import load_settings
from gapssg.synthesis.base import RunSize

MOST_EPOCHS = 4096


def parsed_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Return the settings that are written as KEY=VALUE, the values as JSON."""
    return {key: json.loads(value) for key, value in (each.split("=", 1) for each in settings)}


def settings_from(given: dict[str, Any]) -> DistillSettings:
    """Return the settings of a distillation, given by dotted name."""
    options = {key: ("this benchmark", value) for key, value in given.items()}
    return load_settings(DistillSettings, section="distill", options=options)


def settings_within(
    tflop: float, teacher: Path, student: str, given: dict[str, Any], factories: Sequence[str] = ()
) -> DistillSettings:
    """Return the settings of a run with as many epochs as the budget allows.

    Args:
        tflop: The budget, 10^12 floating-point operations in teacher and student, as `Work.flops` counts them.
        teacher: The teacher's file.
        student: Name of the student's architecture.
        given: Other settings by dotted name.
        factories: The factories that the teacher's file names.

    Raises `SystemExit` if a single epoch takes more, or `MOST_EPOCHS` take less.
    """
    model = load_model(teacher, tuple(factories))
    shape, classes = model.card.input_shape, model.card.num_classes
    networks = (model.module, create_model(student, num_classes=classes, input_shape=shape))
    macs = [profile_model(network, shape).macs for network in networks]
    given = {**given, "teacher": str(teacher), "student.name": student, "model_factories": list(factories)}
    few, many = 0, MOST_EPOCHS  # the budget lies between them
    while many - few > 1:
        middle = (few + many) // 2
        settings = settings_from({**given, "epochs": middle})
        fits = settings.method.work(RunSize(middle, settings.batch_size)).flops(*macs) <= tflop * 1e12
        few, many = (middle, many) if fits else (few, middle)
    if few == 0:
        method = given.get("method.name", "the default method")
        raise SystemExit(f"an epoch of {method} takes more than {tflop:g} TFLOP")
    if many == MOST_EPOCHS:
        raise SystemExit(f"{MOST_EPOCHS:,} epochs may take less than {tflop:g} TFLOP")
    return settings_from({**given, "epochs": few})
