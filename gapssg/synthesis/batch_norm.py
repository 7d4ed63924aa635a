"""The batch-norm statistics loss: how far the statistics of a batch are from those of the training data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gapssg.models.profile import batch_norm_layers


def batch_moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and biased variance of each channel over samples and positions.

    Args:
        inputs: (N, C, ...) of any floating type; bfloat16 is accumulated in float32.

    Returns:
        Two tensors (C,), float32 or float64.
    """
    wide = inputs if inputs.dtype == torch.float64 else inputs.float()
    variance, mean = torch.var_mean(wide, dim=[0, *range(2, inputs.ndim)], correction=0)
    return mean, variance


def statistics_distance(inputs: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """Return `||mean - running_mean||_2 + ||var - running_var||_2` of one batch-norm layer's inputs.

    Yin et al., "Dreaming to Distill" (DeepInversion), CVPR 2020, equation 4, without the squares, as
    GapSSG and its predecessors use it.
    """
    mean, variance = batch_moments(inputs)
    distance: Tensor = (mean - running_mean).norm() + (variance - running_var).norm()
    return distance


@contextmanager
def observed_statistics(teacher: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the statistics distance of every batch-norm layer that the teacher runs through.

    Yields:
        A list that each forward pass of the teacher appends one 0-dimensional tensor a layer to.
    """
    distances: list[Tensor] = []

    def observe(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        distances.append(statistics_distance(inputs[0], layer.running_mean, layer.running_var))  # type: ignore[arg-type]

    handles = [layer.register_forward_pre_hook(observe) for layer in batch_norm_layers(teacher)]
    try:
        yield distances
    finally:
        for handle in handles:
            handle.remove()
