"""Directions in weight space: plain functions of vectors (P,) in the order of a `Layout`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gapssg.landscape.layout import Layout

# Smaller relative differences of weights are rounding.
_RELATIVE_ROUNDING = 1e-6


class Principal(NamedTuple):
    """Principal components of a training route.

    Attributes:
        directions: (D, P), orthonormal.
        coordinates: (S, D), the snapshots in these directions.
        explained: (D,), each direction's share of the route's variance about its end, in [0, 1].
    """

    directions: Tensor
    coordinates: Tensor
    explained: Tensor


def filter_normalised(noise: Tensor, weights: Tensor, layout: Layout, *, biases_and_norms: bool) -> Tensor:
    """Scale each filter of a random direction to the norm of the same filter of the weights.

    Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, section 4. A filter is the weights of one
    output channel (of a linear layer: one row). One-dimensional parameters (biases and batch-norm parameters) get 0 or,
    with `biases_and_norms`, are each scaled as a whole.

    Args:
        noise: (P,), the random direction.
        weights: (P,), the weights at the centre.
        layout: The order of the parameters.
        biases_and_norms: Whether one-dimensional parameters change.
    """
    direction = noise.clone()
    own = layout.split(weights)
    for name, part in layout.split(direction).items():
        if part.dim() > 1:
            rows, target = part.view(len(part), -1), own[name].reshape(len(part), -1)
        elif biases_and_norms:
            rows, target = part.view(1, -1), own[name].view(1, -1)
        else:
            part.zero_()
            continue
        length = rows.norm(dim=1, keepdim=True)
        rows.mul_(target.norm(dim=1, keepdim=True) / length.clamp_min(torch.finfo(length.dtype).tiny))
    return direction


def random_directions(weights: Tensor, layout: Layout, seeds: Sequence[int], *, biases_and_norms: bool) -> Tensor:
    """Return one filter-normalised Gaussian direction for each seed, (D, P).

    The noise is drawn on the CPU, so that models of one architecture get the same noise on every device.
    """
    noises = (torch.randn(len(weights), generator=torch.Generator().manual_seed(seed)) for seed in seeds)
    return torch.stack(
        [filter_normalised(noise, weights, layout, biases_and_norms=biases_and_norms) for noise in noises]
    )


def principal_directions(snapshots: Tensor, centre: Tensor, count: int) -> Principal:
    """Return the first principal components of a training route, centred at the final weights.

    Li et al. 2018, section 7. Each component points to the side of the snapshot that is farthest along it.

    Args:
        snapshots: (S, P).
        centre: (P,), the final weights.
        count: D, the number of directions.

    Raises:
        ValueError: The snapshots span fewer than `count` directions.
    """
    offsets = (snapshots - centre).double()
    values, vectors = torch.linalg.eigh(offsets @ offsets.T)  # S x S: the snapshots are few, the weights many
    values, vectors = values.flip(0), vectors.flip(1)
    if len(values) < count or values[count - 1] <= (_RELATIVE_ROUNDING * centre.double().norm()) ** 2:
        raise ValueError(f"the snapshots lie in fewer than {count} directions")
    directions = (vectors[:, :count].T @ offsets) / values[:count, None].sqrt()
    coordinates = offsets @ directions.T
    farthest = coordinates.gather(0, coordinates.abs().argmax(dim=0, keepdim=True))[0].sign()
    explained = values[:count] / values.clamp_min(0).sum()
    return Principal((directions * farthest[:, None]).float(), coordinates * farthest, explained)


def directions_through(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the line through two points or the plane through three, and the coordinates of the points in it.

    The first point is the origin, the second has coordinate 1 on the first axis. In a plane, both directions have the
    length of the first and are orthogonal (Garipov et al., "Loss Surfaces, Mode Connectivity", 2018).

    Args:
        points: (2, P) or (3, P).

    Returns:
        Directions (D, P) and coordinates (D + 1, D).

    Raises:
        ValueError: The points do not span a line or a plane.
    """
    offsets = (points[1:] - points[0]).double()
    first = offsets[0]
    rounding = _RELATIVE_ROUNDING * points[0].double().norm()
    if first.norm() <= rounding:
        raise ValueError("the first two have the same weights")
    if len(offsets) == 1:
        return first[None].float(), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    along = (offsets[1] @ first) / first.square().sum()
    second = offsets[1] - along * first
    across = second.norm() / first.norm()
    if second.norm() <= rounding:
        raise ValueError("the three lie on one line")
    directions = torch.stack([first, second / across]).float()
    return directions, torch.tensor([[0, 0], [1, 0], [along, across]], dtype=torch.float64)
