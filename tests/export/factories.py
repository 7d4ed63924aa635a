"""Models that some formats cannot export or cannot run, which tests name as `tests.export.factories:NAME`."""

from __future__ import annotations

from torch import Tensor, nn


class FixedBatch(nn.Module):
    """Makes its batch size a constant of a traced graph."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(256, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.view(len(images), -1))


class Losing(FixedBatch):
    """Loses one of seven images."""

    def forward(self, images: Tensor) -> Tensor:
        logits = self.linear(images.flatten(1))
        return logits[:6] if len(images) == 7 else logits


class Refusing(FixedBatch):
    """Does not take seven images."""

    def forward(self, images: Tensor) -> Tensor:
        if len(images) == 7:
            raise RuntimeError("seven are too many")
        return self.linear(images.flatten(1))


class DoublePrecision(nn.Module):
    """Computes in float64, which onnxruntime cannot do for convolutions."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, num_classes, 3).double()

    def forward(self, images: Tensor) -> Tensor:
        return self.convolution(images.double()).mean((2, 3)).float()


class SinglePrecision(FixedBatch):
    """Computes in float32, whatever the dtype of its weights."""

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1).float())


class MaxPooled(nn.Module):
    """Uses adaptive max pooling with a size that ONNX has no operator for."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveMaxPool2d(3)
        self.linear = nn.Linear(9, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.pool(images).flatten(1))
