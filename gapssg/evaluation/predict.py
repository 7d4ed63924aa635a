"""Logits and scores of a frozen classifier on many images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gapssg.core.augment import Normalization
from gapssg.core.runtime import Runtime, to_unit_range
from gapssg.data.image_set import ImageSet
from gapssg.errors import reporting_out_of_memory
from gapssg.evaluation.metrics import answers_of, check_finite, concatenated, score_answers
from gapssg.models.frozen import frozen
from gapssg.runs.results.common import Scores

_BATCH_SIZE = 500
_PIXELS_OF_A_BATCH = _BATCH_SIZE * 64 * 64


def batch_size_for(image_shape: Sequence[int]) -> int:
    """Return how many images (C, H, W) are classified at once: 500, or fewer if they have more than 64x64 pixels."""
    _, height, width = image_shape
    return max(1, min(_BATCH_SIZE, _PIXELS_OF_A_BATCH // (height * width)))


@contextmanager
def naming_a_smaller_batch(batch_size: int) -> Iterator[None]:
    """Turn an out-of-memory error while this many images are classified into a `RunError` that names half."""
    smaller = f"--batch-size {batch_size // 2} needs about half of it" if batch_size > 1 else None
    with reporting_out_of_memory(lambda: smaller or "use a smaller model, or another --device"):
        yield


def predict(
    module: nn.Module,
    images: Tensor,
    normalization: Normalization,
    runtime: Runtime,
    batch_size: int | None = None,
) -> Tensor:
    """Return the logits of a classifier, leaving it unchanged; several processes share the images.

    Args:
        module: Maps normalised images (N, C, H, W) to logits (N, K), on the runtime's device.
        images: (N, C, H, W), uint8 in [0, 255] or float in [0, 1].
        normalization: The normalisation of its input.
        runtime: Device and precision; its global switches are set only during the prediction.
        batch_size: Images per batch; by default that of `batch_size_for`.

    Returns:
        (N, K) float32 on the device.
    """
    count, images = len(images), runtime.own_rows(images)
    batches = []
    batch_size = batch_size or batch_size_for(images.shape[1:])
    with runtime.configured(), frozen(module), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size].to(runtime.device)
            if batch.dtype == torch.uint8:
                batch = to_unit_range(batch)
            with runtime.autocast():
                batches.append(module(normalization(batch)).float())
    return runtime.all_rows(torch.cat(batches), count)


def score_on(
    images: ImageSet,
    module: nn.Module,
    normalization: Normalization,
    runtime: Runtime,
    name: str = "the model",
    advice: str = "",
) -> Scores:
    """Return the scores of a classifier, left unchanged, batch by batch; raises as `check_finite` of this name."""
    size, answers = batch_size_for(images.input_shape), []
    for start in range(0, len(images), size):
        logits = predict(module, images.images[start : start + size], normalization, runtime)
        check_finite(logits, name, start, advice)
        answers.append(answers_of(logits, images.labels[start : start + size]))
    return score_answers(concatenated(answers), images.class_names)
