"""The image prior for teachers without batch norm: the statistics of the teacher's normalised input.

The normalisation of a teacher has the mean and standard deviation of its training images. It acts like a batch norm
before the first layer, so the statistics losses apply to it: normalised images should have mean 0 and variance 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gapssg.core.augment import Normalization
from gapssg.synthesis.batch_norm import Moments, batch_moments, relative_statistics_distance, statistics_distance

PHOTOGRAPH_MEAN, PHOTOGRAPH_DEVIATION = 0.45, 0.23
"""Rounded statistics of ImageNet, in [0, 1], averaged over its three channels."""
_EPS = 1e-5  # as in a batch norm; it keeps the gradient finite for a channel without variance


def expected_input_statistics(normalization: Normalization) -> tuple[Tensor, Tensor]:
    """Return the mean and variance of each channel that a teacher's normalised input should have, (C,) float32.

    They are 0 and 1 if the normalisation can have the statistics of images: those in [0, 1] with mean m have a variance
    below m (1 - m), which only images of black and white pixels reach. Conventions such as mean 0 and deviation 1, or
    0.5 and 0.5, do not pass; then the statistics of photographs are expected instead.
    """
    mean, deviation = normalization.mean.flatten(), normalization.deviation.flatten()
    of_images = (deviation.square() < mean * (1 - mean)).all()
    photographs = (PHOTOGRAPH_MEAN - mean) / deviation, (PHOTOGRAPH_DEVIATION / deviation).square()
    return (
        torch.where(of_images, torch.zeros_like(mean), photographs[0]),
        torch.where(of_images, torch.ones_like(mean), photographs[1]),
    )


@contextmanager
def observed_input_statistics(
    teacher: nn.Module,
    distances: list[Tensor],
    expected: tuple[Tensor, Tensor],
    relative: bool = False,
    moments: Moments = batch_moments,
) -> Iterator[None]:
    """Collect the statistics distance of the teacher's input, as `batch_norm.observed_statistics` those of its layers.

    Each forward pass appends one 0-dimensional tensor, the distance from the `expected` mean and variance (C,). A
    captured step reads those from the memory where they were when it was recorded, so they must live as long as it.
    """
    mean, variance = expected

    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if relative:
            distances.append(relative_statistics_distance(inputs[0], mean, variance, _EPS, moments))
        else:
            distances.append(statistics_distance(inputs[0], mean, variance, moments))

    # Before a hook that permutes the images for a teacher that takes (N, H, W, C).
    handle = teacher.register_forward_pre_hook(hook, prepend=True)
    try:
        yield
    finally:
        handle.remove()
