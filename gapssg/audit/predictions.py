"""Predictions of a model for many labelled images, and its features."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gapssg.audit.attacks import margins
from gapssg.core.augment import Normalization
from gapssg.core.runtime import Runtime
from gapssg.data.image_set import ImageSet
from gapssg.errors import NotFinite
from gapssg.evaluation.metrics import answers_of, check_finite
from gapssg.evaluation.predict import predict
from gapssg.models.description import ModelCard
from gapssg.models.profile import last_linear_layer


class Predictions(NamedTuple):
    """The predictions of a model for N labelled images, on the CPU."""

    margins: Tensor
    """(N,) float64, as `attacks.margins` returns them."""
    is_right: Tensor
    """(N,) bool."""


def predictions_of(
    module: nn.Module, normalization: Normalization, images: ImageSet, runtime: Runtime, batch_size: int, name: str
) -> Predictions:
    """Predict images in float32, whatever the precision of the runtime, with the logits of one batch in memory.

    Raises `NotFinite`, with the model's `name`, if the logits are not finite.
    """
    exact, parts = replace(runtime, precision="fp32"), []
    for start in range(0, len(images), batch_size):
        batch, labels = (each[start : start + batch_size] for each in (images.images, images.labels))
        logits = predict(module, batch, normalization, exact, batch_size)
        check_finite(logits, name, start, "its privacy cannot be measured")
        parts.append((margins(logits, labels).cpu(), answers_of(logits, labels).is_top1))
    return Predictions(*map(torch.cat, zip(*parts, strict=True)))


def features_of(module: nn.Module, card: ModelCard, images: Tensor, runtime: Runtime, batch_size: int) -> Tensor | None:
    """Return the inputs of the last linear layer, (N, F) float32, for images (N, C, H, W) uint8, or None.

    `module`, of the architecture that `card` describes, and the features are on the runtime's device. Raises
    `NotFinite` if the features are not finite.
    """
    layer = last_linear_layer(module, card.input_shape, card.num_classes)
    if layer is None:
        return None
    normalization = Normalization.from_statistics(card.mean, card.deviation, runtime.device)
    exact, taken, parts = replace(runtime, precision="fp32"), [], []
    with ExitStack() as hooks:
        hooks.callback(layer.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0])).remove)
        for batch in torch.split(images, batch_size):
            predict(module, batch, normalization, exact, batch_size)
            parts.append(taken[-1].flatten(1).float())
            taken.clear()
    features = torch.cat(parts)
    if not features.isfinite().all():
        raise NotFinite(f"the features of {card.architecture} are not finite; its privacy cannot be measured")
    return features
