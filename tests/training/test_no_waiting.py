"""No step of a hot loop asks the device for a number: on a GPU each such question would stop the queue."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from gapssg import DistillSettings
from gapssg.core.runtime import Runtime
from gapssg.models.model_file import load_model
from gapssg.training.distillation import Distillation
from tests.no_waiting import NoWaiting, Waiting


def make_distillation(teacher_file: Path, changes: Mapping[str, Any]) -> Distillation:
    method = {"synthesis_batch_size": 8, "generator_steps": 3, "generator_width": 8}
    values = {"teacher": teacher_file, "student": {"name": "wrn10_half"}, "batch_size": 8, "method": method}
    settings = DistillSettings.model_validate({**values, **changes})
    return Distillation(settings, Runtime(torch.device("cpu"), "fp32", False, 0), load_model(teacher_file))


def test_the_mode_detects_synchronising_operations():
    for question in (
        lambda x: x.sum().item(),
        lambda x: bool(x[0] > 0),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
    ):
        with pytest.raises(Waiting), NoWaiting():
            question(torch.ones(2))


def test_a_synthesis_step_waits_for_nothing(teacher_file: Path):
    distillation = make_distillation(teacher_file, {})
    steps = distillation.synthesizer.synthesis_steps(distillation.student, 0, 0)
    next(steps)
    with NoWaiting():
        next(steps)


def test_a_distillation_step_waits_for_nothing_from_the_pool_to_the_weights(teacher_file: Path):
    distillation = make_distillation(teacher_file, {})
    list(distillation.synthesizer.synthesis_steps(distillation.student, 0, 0))
    inputs = distillation.student_steps.batches(0, 0, 0)
    next(inputs)
    with NoWaiting():
        distillation.trainee.step(*next(inputs))
