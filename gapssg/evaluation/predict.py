"""Logits and scores of a frozen classifier on many images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gapssg.core.augment import Normalization
from gapssg.core.runtime import Runtime, to_unit_range
from gapssg.data.image_set import ImageSet
from gapssg.evaluation.metrics import answers_of, concatenated, score_answers
from gapssg.models.frozen import frozen
from gapssg.runs.results import Scores

_BATCH_SIZE = 500


def predict(
    module: nn.Module, images: Tensor, normalization: Normalization, runtime: Runtime, batch_size: int = _BATCH_SIZE
) -> Tensor:
    """Return the logits of a classifier, leaving it unchanged; several processes share the images.

    Args:
        module: Maps normalised images (N, C, H, W) to logits (N, K), on the runtime's device.
        images: (N, C, H, W), uint8 in [0, 255] or float in [0, 1].
        normalization: The normalisation of its input.
        runtime: Device and precision; its global switches are set only during the prediction.
        batch_size: Images per batch.

    Returns:
        (N, K) float32 on the device.
    """
    count, images = len(images), runtime.own_rows(images)
    batches = []
    with runtime.configured(), frozen(module), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size].to(runtime.device)
            if batch.dtype == torch.uint8:
                batch = to_unit_range(batch)
            with runtime.autocast():
                batches.append(module(normalization(batch)).float())
    return runtime.all_rows(torch.cat(batches), count)


def score_on(images: ImageSet, module: nn.Module, normalization: Normalization, runtime: Runtime) -> Scores:
    """Return the scores of a classifier on labelled images, leaving it unchanged, with one batch of logits in memory.

    Raises:
        RunError: Its logits are not finite.
    """
    batches = zip(*(torch.split(each, _BATCH_SIZE) for each in (images.images, images.labels)), strict=True)
    answers = [answers_of(predict(module, batch, normalization, runtime), labels) for batch, labels in batches]
    return score_answers(concatenated(answers), images.class_names)
