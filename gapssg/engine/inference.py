"""Logits and scores of a frozen classifier on many images: the one way to predict."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gapssg.augment import Normalization
from gapssg.data.image_set import ImageSet
from gapssg.engine.metrics import score
from gapssg.models.frozen import frozen
from gapssg.runs.results import Scores
from gapssg.runtime import Runtime, to_unit_range


def predict(
    module: nn.Module, images: Tensor, normalization: Normalization, runtime: Runtime, batch_size: int = 500
) -> Tensor:
    """Return the logits of a classifier, leaving it as it was.

    Args:
        module: Normalised images (N, C, H, W) to logits (N, K), on the runtime's device.
        images: (N, C, H, W), uint8 in [0, 255] or float in [0, 1].
        normalization: What the classifier expects of its input.
        runtime: Device and precision; its switches are set for as long as it predicts.
        batch_size: Images at a time.

    Returns:
        (N, K) float32 on the device.
    """
    batches = []
    with runtime.configured(), frozen(module), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size].to(runtime.device)
            if batch.dtype == torch.uint8:
                batch = to_unit_range(batch)
            with runtime.autocast():
                batches.append(module(normalization(batch)).float())
    return torch.cat(batches)


def score_on(images: ImageSet, module: nn.Module, normalization: Normalization, runtime: Runtime) -> Scores:
    """Return the scores of a classifier on labelled images, leaving it as it was.

    Raises:
        RunError: Its logits are not finite.
    """
    return score(predict(module, images.images, normalization, runtime), images.labels, images.class_names)
