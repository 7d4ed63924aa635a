"""A teacher, a student and a synthesis context for tests."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from gapssg.core.augment import Augmentation, Normalization
from gapssg.core.runtime import Runtime
from gapssg.models import create_model
from gapssg.synthesis.context import SynthesisContext

SHAPE = (1, 16, 16)


def make_context(runtime: Runtime, teacher_name: str = "wrn10_half") -> SynthesisContext:
    teacher = create_model(teacher_name, num_classes=5, input_shape=SHAPE, seed=1)
    with torch.no_grad():
        teacher.train()(torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0)))
    return SynthesisContext(
        teacher=runtime.place(teacher.eval().requires_grad_(False)),
        normalization=Normalization.from_statistics((0.3,), (0.4,), runtime.device),
        augmentation=Augmentation(2, True),
        image_shape=SHAPE,
        num_classes=5,
        batch_size=8,
        epochs=3,
        runtime=runtime,
    )


def make_student(runtime: Runtime, name: str = "wrn10_half") -> nn.Module:
    return runtime.place(create_model(name, num_classes=5, input_shape=SHAPE, seed=2))


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())
