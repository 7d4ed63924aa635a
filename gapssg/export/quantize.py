"""Post-training quantisation to 8-bit integers, calibrated on the sample pool of a run instead of data."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gapssg.core.runtime import Runtime
from gapssg.errors import InputError
from gapssg.export.formats import Classifier, Files, Quantizer
from gapssg.models.description import ModelCard
from gapssg.runs.results.export import ExportMetadata, LogitsComparison
from gapssg.synthesis.shards import read_shard
from gapssg.text import percent

_MOST_HELD_OUT = 1000  # an agreement of 98 % has a standard error of half a point
_SECONDS_OF_TIMING = 0.5


class PoolImages(NamedTuple):
    """Random images of a pool.

    Attributes:
        calibration: (N, C, H, W) uint8, for the ranges of activations.
        targets: (N,) int64, the classes for which these were synthesised.
        held_out: (M, C, H, W) uint8, other images, on which predictions are compared.
    """

    calibration: Tensor
    targets: Tensor
    held_out: Tensor


def draw_images(
    shards: Sequence[Path], card: ModelCard, count: int, runtime: Runtime, *, holds_out: bool = True
) -> PoolImages:
    """Draw at most `count` images of a pool for calibration, and others to compare on.

    Args:
        shards: The files of the pool.
        card: The description of the model.
        count: The largest number of calibration images.
        runtime: The source of the random order.
        holds_out: Whether at least half of the pool is kept for comparing.

    Raises:
        InputError: The pool has too few images, or its images do not fit the model.
    """
    contents = [read_shard(shard, card.input_shape, card.num_classes) for shard in shards]
    images, targets = (torch.cat(parts) for parts in list(zip(*contents, strict=True))[:2])
    if holds_out and len(images) < 2:
        raise InputError(f"the pool in {shards[0].parent} has one image, which leaves none to compare on")
    order = torch.randperm(len(images), generator=runtime.random_stream("calibration"))
    count = min(count, len(images) // 2 if holds_out else len(images))
    chosen, others = order[:count], order[count : count + _MOST_HELD_OUT]
    return PoolImages(images[chosen], targets[chosen], images[others])


def quantize_within(
    quantizer: Quantizer,
    metadata: ExportMetadata,
    most: float | None,
    drop: Callable[[Files], float],
    error: Callable[[Files], float],
) -> tuple[Files, tuple[str, ...]]:
    """Quantise a model, and keep the layers that lose most in float32 until the drop is at most `most`.

    The layers are ordered by the error of the logits if no other layer computes in 8 bits.

    Args:
        quantizer: The quantiser of the model.
        metadata: The description of the model.
        most: The largest drop; None quantises all layers.
        drop: Returns the drop of an int8 model.
        error: Returns the error of the logits of an int8 model.

    Returns:
        The int8 model, and the layers that compute in float32.

    Raises:
        InputError: The drop is too large even if a single layer computes in 8 bits.
    """

    def quantized(float_layers: Collection[str]) -> Files:
        assert metadata.int8 is not None
        int8 = metadata.int8.model_copy(update={"float_layers": tuple(float_layers)})
        return quantizer.quantize(float_layers, metadata.model_copy(update={"int8": int8}))

    files = quantized(())
    if most is None or drop(files) <= most:
        return files, ()
    layers = quantizer.layers
    errors = {layer: error(quantized([other for other in layers if other != layer])) for layer in layers}
    worst_first = sorted(layers, key=errors.__getitem__, reverse=True)
    for count in range(1, len(layers)):
        files = quantized(worst_first[:count])
        if drop(files) <= most:
            return files, tuple(worst_first[:count])
    raise InputError(
        f"int8 loses more than {100 * most:g} points even if one of {len(layers)} layers computes in 8 bits; nothing "
        "was kept (change the limit with --max-drop)"
    )


def check_agreement(comparison: LogitsComparison, least: float) -> None:
    """Raise InputError unless an int8 model agrees with the float32 model on at least the share `least` of images."""
    if comparison.agreement < least:
        raise InputError(
            f"the int8 model disagrees: it agrees with the float32 model on {percent(comparison.agreement)} of "
            f"{comparison.images:,} other images of the pool, less than {percent(least)}; nothing was kept "
            "(change the limit with --min-agreement)"
        )


def images_per_second(classifiers: Sequence[Classifier], images: Tensor) -> list[float]:
    """Return the throughput of classifiers on a batch, timed alternately so that other load affects all alike."""
    for classify in classifiers:
        classify(images)  # warm-up
    seconds = [0.0 for _ in classifiers]
    rounds = 0
    while min(seconds) < _SECONDS_OF_TIMING:
        for index, classify in enumerate(classifiers):
            started = time.perf_counter()
            classify(images)
            seconds[index] += time.perf_counter() - started
        rounds += 1
    return [rounds * len(images) / each for each in seconds]
