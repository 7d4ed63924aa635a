"""Sharpness of a loss at a point: plain functions of a loss and vectors (P,)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gapssg.runs.results.landscape import Measurement

_RINGS, _HALVINGS = 10, 5
Product = Callable[[Tensor], Tensor]
"""A symmetric matrix, given by its product with a vector (P,)."""


def trace(product: Product, size: int, samples: int, generator: torch.Generator) -> Measurement:
    """Estimate the trace of a symmetric matrix (size, size) by Hutchinson's method, with its standard error.

    The mean of `v^T A v` over random signs v (Hutchinson 1989); exact where the matrix is diagonal.

    Args:
        product: The matrix.
        size: P.
        samples: Random vectors, at least 2.
        generator: Draws them, on its device.
    """
    values = torch.empty(samples, dtype=torch.float64)
    for index in range(samples):
        signs = random_signs(size, generator)
        values[index] = (product(signs).double() @ signs.double()).item()
    return measurement(values.mean().item(), (values.std() / math.sqrt(samples)).item())


def random_signs(size: int, generator: torch.Generator) -> Tensor:
    """Return a random vector (size,) float32 of 1 and -1 on the generator's device."""
    return torch.randint(0, 2, (size,), generator=generator, device=generator.device).float() * 2 - 1


def measurement(value: float, error: float) -> Measurement:
    """Return a number and its error, each None if not finite."""
    return Measurement(value=finite(value), error=finite(error))


def finite(value: float) -> float | None:
    """Return a number if it is finite, else None."""
    return value if math.isfinite(value) else None


def epsilon_sharpness(
    loss_and_gradient: Callable[[Tensor], tuple[float, Tensor]], weights: Tensor, epsilon: float, steps: int
) -> float:
    """Return the largest increase of the loss in a small box around the weights, relative to 1 + loss.

    Keskar et al., "On Large-Batch Training for Deep Learning", ICLR 2017, metric 2.1 with A = I, as a fraction (the
    paper has per cent): (max f - f(w)) / (1 + f(w)) over |d_i| <= epsilon * (|w_i| + 1). The maximum is approximated by
    projected sign-gradient ascent, so the result is a lower bound.

    Args:
        loss_and_gradient: Maps weights (P,) to the loss and its gradient (P,).
        weights: (P,), the centre.
        epsilon: Half the side of the box, relative to |w| + 1.
        steps: Gradient steps; the first goes to a corner of the box, later ones are shorter.
    """
    sides = epsilon * (weights.abs() + 1)
    centre, gradient = loss_and_gradient(weights)
    offset, highest = torch.zeros_like(weights), centre
    for step in range(steps):
        offset = (offset + gradient.sign() * sides * 2 / (2 + step)).clamp(-sides, sides)
        value, gradient = loss_and_gradient(weights + offset)
        highest = max(highest, value) if math.isfinite(value) else math.inf
    return (highest - centre) / (1 + centre)


def radius_of_doubling(
    measure: Callable[[tuple[float, ...]], float],
    rays: Sequence[tuple[float, ...]],
    reaches: Sequence[float],
    centre_loss: float,
) -> float | None:
    """Return the smallest distance at which the loss on one of several rays reaches twice its centre value.

    Each ray is measured at 10 equal distances; the first interval that crosses is bisected 5 times, so that the result
    is too large by at most the ray's reach / 320 (spikes within an interval are not seen).

    Args:
        measure: Returns the loss at a point.
        rays: Points at distance 1 from the centre, relative to it.
        reaches: Largest distance on each ray.
        centre_loss: The loss at the centre.

    Returns:
        The distance, or None if no ray crosses within its reach.
    """
    nearest: float | None = None
    for ray, reach in zip(rays, reaches, strict=True):
        if reach <= 0:
            continue

        def is_doubled(distance: float, ray: tuple[float, ...] = ray) -> bool:
            return not measure(tuple(distance * part for part in ray)) < 2 * centre_loss  # True for NaN

        for low, high in itertools.pairwise([reach * ring / _RINGS for ring in range(_RINGS + 1)]):
            if nearest is not None and low >= nearest:
                break
            if is_doubled(high):
                for _ in range(_HALVINGS):
                    middle = (low + high) / 2
                    low, high = (low, middle) if is_doubled(middle) else (middle, high)
                nearest = high if nearest is None else min(nearest, high)
                break
    return nearest
