"""A classifier with one convolution, whose steps take no time and compile in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor, nn

from gapssg.models import MODELS, ModelEntry, create_model
from gapssg.models.model_file import save_model
from tests.conftest import make_card

TINY_NOISE: dict[str, Any] = {
    "student": {"name": "tiny"},
    "method": {"name": "noise", "synthesis_batch_size": 16},
    "runtime": {"device": "cpu", "precision": "fp32", "compile": False},
}
"""Settings of a distillation that takes no time, over `tests.run_fixtures.TINY`."""


@contextmanager
def tiny_model() -> Iterator[None]:
    """Let the name `tiny` stand for a classifier with one convolution."""
    with mock.patch("gapssg.models.names.MODELS", {**MODELS, "tiny": ModelEntry("tests.tiny:tiny", "for tests")}):
        yield


class _Tiny(nn.Module):
    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, 4, 4, stride=4)
        self.norm = nn.BatchNorm2d(4)
        self.classifier = nn.Linear(4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.norm(self.convolution(images)).relu().mean((2, 3)))
        return logits


def tiny(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Build a classifier with one convolution."""
    return _Tiny(num_classes, input_shape[0])


def write_tiny_teacher(path: Path) -> Path:
    """Write a `tiny` with random weights for 3x16x16 images of 10 classes."""
    card = make_card(architecture="tiny", input_shape=(3, 16, 16), mean=(0.5,) * 3, deviation=(0.25,) * 3, flip=True)
    save_model(path, create_model("tiny", num_classes=10, input_shape=card.input_shape), card)
    return path
