"""The features of a classifier beside its logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gapssg.models.head import ClassifierHead

LARGEST_READOUT = 64
"""The most outputs of the readout of a teacher's features."""


class WithFeatures(nn.Module):
    """A classifier that returns its logits (N, K) and, behind them, a linear map (N, D) of its features.

    The features are the inputs (N, F) of its last linear layer; inputs (N, ..., F), such as tokens, are averaged. The
    classifier is not copied, and is otherwise unchanged.

    Attributes:
        classifier: The classifier.
        readout: The linear map.
    """

    def __init__(self, classifier: nn.Module, last_layer: nn.Module, readout: nn.Linear) -> None:
        """Read the inputs of `last_layer`, a linear layer of `classifier`."""
        super().__init__()
        self.classifier, self.readout = classifier, readout
        self._reads = False
        self._inputs: list[Tensor] = []

        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if self._reads:
                self._inputs.append(inputs[0])

        # Registered once, because a compiled step would be interrupted to register it; and a function, because copies
        # of the classifier would contain a copy of the object of a method.
        last_layer.register_forward_pre_hook(keep)

    @property
    def size(self) -> int:
        """Outputs of the readout, D."""
        return self.readout.out_features

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits and features, (N, K + D)."""
        self._inputs.clear()
        self._reads = True
        logits = self.classifier(images)
        self._reads = False
        features = self._inputs.pop()
        self._inputs.clear()
        if features.ndim > 2:
            features = features.flatten(1, -2).mean(dim=1)
        return torch.cat([logits, self.readout(features)], dim=1)


def projection(features: int, generator: torch.Generator) -> nn.Linear:
    """Return a frozen linear map to at most `LARGEST_READOUT` outputs; its rows are random and orthonormal."""
    size = min(features, LARGEST_READOUT)
    layer = ClassifierHead(features, size, bias=False, device=generator.device)
    nn.init.orthogonal_(layer.weight, generator=generator)
    return layer.requires_grad_(False)


def regressor(features: int, outputs: int) -> nn.Linear:
    """Return a linear map to be trained, which starts with 0."""
    layer = ClassifierHead(features, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
