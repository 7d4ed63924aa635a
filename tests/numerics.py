"""One distillation step, its gradients, and how far two sets of gradients may be apart."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gapssg import DistillSettings
from gapssg.core.augment import Shifts
from gapssg.core.runtime import Runtime
from gapssg.models.model_file import load_model
from gapssg.training.distillation import Distillation

# Roundings of 40 layers (there and back) add up like a random walk to a share r of an activation; batch norm enlarges
# it some times. A ReLU whose input was that near to 0 changes sides: r of the activations do, and a share f of changed
# entries changes a gradient by sqrt(f). So float32, with r = 16 sqrt(40) 2**-24, is bounded by 0.25 % for one ReLU
# layer and by sqrt(13) times that for the 13 of a WRN-16; bf16, with r = sqrt(40) 2**-9, by 40 %.
OF_FLOAT32 = (13 * 16 * 40**0.5 * 2**-24) ** 0.5
OF_BF16 = (13 * 40**0.5 * 2**-9) ** 0.5


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the relative error in norm over all tensors together."""
    assert found.keys() == expected.keys()
    differences = torch.cat([(found[name].double() - expected[name].double()).flatten() for name in expected])
    return (differences.norm() / torch.cat([tensor.double().flatten() for tensor in expected.values()]).norm()).item()


def gradients_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def make_distillation(teacher: Path, student: str, runtime: Runtime, **changes: object) -> Distillation:
    values = {"teacher": teacher, "student": {"name": student}, "batch_size": 32}
    method = {"name": "gapssg", "synthesis_batch_size": 8, "generator_width": 4, **changes}
    settings = DistillSettings.model_validate({**values, "method": method, "runtime": {"compile": runtime.compiled}})
    return Distillation(settings, runtime, load_model(teacher))


def distil_once(distillation: Distillation) -> tuple[float, dict[str, Tensor], Tensor, Shifts]:
    """Make one step; return its loss, its gradients, and the images and shifts that it was made of."""
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(32, *distillation.card.input_shape, generator=draw)
    shifts = distillation.augmentation.draw(32, draw)
    distillation.student.train()
    loss = distillation.trainee.step(images, *shifts)["loss"].item()
    return loss, gradients_of(distillation.student), images, shifts
