"""No step of a hot loop asks the device for a number: on a GPU each such question would stop the queue."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gapssg import DistillSettings
from gapssg.engine.distillation import Distillation
from gapssg.models.model_file import load_model
from gapssg.runtime import Runtime

_WAITING = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "unique", "masked_select"}


class Waiting(Exception):
    """An operation needs a value on the host."""


class NoWaiting(TorchDispatchMode):
    """Refuses operations whose result the host must see before it can go on."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1] if index is not None
        )
        if name in _WAITING or masks:
            raise Waiting(name)
        result = func(*args, **(kwargs or {}))
        return result


def make_distillation(teacher_file: Path, changes: Mapping[str, Any]) -> Distillation:
    method = {"synthesis_batch_size": 8, "generator_steps": 3, "generator_width": 8}
    values = {"teacher": teacher_file, "student": {"name": "wrn16_1"}, "batch_size": 8, "method": method}
    settings = DistillSettings.model_validate({**values, **changes})
    return Distillation(settings, Runtime(torch.device("cpu"), "fp32", False, 0), load_model(teacher_file))


def test_the_mode_notices_what_waits():
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
    inputs = distillation.batches(0, 0, 0)
    next(inputs)
    with NoWaiting():
        distillation.trainee.step(*next(inputs))
