"""The parts of synthesis losses written out in float64, without code shared with the package."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from gapssg.core.runtime import Runtime
from gapssg.synthesis.inversion import Inversion
from tests.synthesis.context import make_student

COUNT = 8
TARGETS = torch.tensor([0, 1, 1, 2, 3, 3, 4, 4])


class Networks:
    """Teacher and student in float64, with the inputs of the teacher's batch norms in the last pass."""

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        self.teacher, self.student = (copy.deepcopy(each).double() for each in (teacher, student))
        self.layers = [layer for layer in self.teacher.modules() if isinstance(layer, nn.BatchNorm2d)]
        self.inputs: list[Tensor] = []
        for layer in self.layers:
            layer.register_forward_pre_hook(lambda _, inputs: self.inputs.append(inputs[0]))

    def logits(self, views: Tensor) -> tuple[Tensor, Tensor]:
        self.inputs.clear()
        return self.teacher(views), self.student(views)

    def moments(self) -> list[tuple[Tensor, Tensor]]:
        means = [inputs.mean(dim=(0, 2, 3)) for inputs in self.inputs]
        return [
            (mean, ((inputs - mean[:, None, None]) ** 2).mean(dim=(0, 2, 3)))
            for mean, inputs in zip(means, self.inputs, strict=True)
        ]

    def statistics_loss(self, moments: list[tuple[Tensor, Tensor]]) -> Tensor:
        distances = []
        for (mean, variance), layer in zip(moments, self.layers, strict=True):
            distances.append(((mean - layer.running_mean) ** 2).sum().sqrt())
            distances.append(((variance - layer.running_var) ** 2).sum().sqrt())
        return sum(distances, torch.zeros((), dtype=torch.float64))

    def features(self) -> Tensor:
        return torch.cat([inputs.mean(dim=(2, 3)) for inputs in self.inputs], dim=1)


def leaning_student(teacher: nn.Module, runtime: Runtime) -> nn.Module:
    """Return a student that, as from now on the teacher, predicts one class for most images."""
    student = make_student(runtime, "tiny").eval()
    with torch.no_grad():
        for network in (teacher, student):
            network.get_parameter("classifier.bias")[0] += 1
    return student


def make_networks(inversion: Inversion, runtime: Runtime) -> Networks:
    """Give the inversion such a student."""
    inversion._student = student = leaning_student(inversion.context.teacher, runtime)
    inversion._targets.copy_(TARGETS)
    return Networks(inversion.context.teacher, student)


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def step(inversion: Inversion, draws: tuple[Tensor, ...]) -> dict[str, Tensor]:
    with inversion._observing():
        outputs = inversion._loss(*draws)
    torch.autograd.backward(outputs["loss"])
    return outputs


def shifted(images: Tensor, rows: Tensor, columns: Tensor, flips: Tensor) -> Tensor:
    """Crops of images with two pixels of padding, some of them flipped."""
    views = []
    for image, row, column, flip in zip(images, rows, columns, flips, strict=True):
        view = nn.functional.pad(image, (2, 2, 2, 2))[:, 2 + row : 18 + row, 2 + column : 18 + column]
        views.append(view.flip(2) if flip else view)
    return torch.stack(views)


def normalized(images: Tensor) -> Tensor:
    return (images - 0.3) / 0.4


def cross_entropy(logits: Tensor) -> Tensor:
    return -logits.log_softmax(1)[torch.arange(COUNT), TARGETS].mean()


def masked_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    p, q = teacher.softmax(1), student.softmax(1)
    agree = p.argmax(1) == q.argmax(1)
    assert agree.any()
    return (p * (p / q).log()).sum(1)[agree].sum() / COUNT


def assert_follows(outputs: dict[str, Tensor], expected: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Compare loss and gradients in float32 with the float64 reference."""
    torch.autograd.backward(expected)
    assert outputs["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in pairs:
        assert ours.grad is not None
        assert theirs.grad is not None
        scale = theirs.grad.abs().max().item()
        assert scale > 0
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=1e-4 * scale)
