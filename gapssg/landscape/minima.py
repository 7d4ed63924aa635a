"""Local minima of a grid."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from gapssg.runs.results.landscape import LocalMinimum


def local_minima(loss: Tensor, axes: Tensor) -> tuple[LocalMinimum, ...]:
    """Return the local minima of a grid with one or two axes, the lowest first.

    A point is a local minimum if none of its neighbours (two on a line, eight in a plane) is lower. Connected points of
    equal loss count as one, and only if none of them has a lower neighbour. Values that are not finite count as
    infinite.

    Args:
        loss: (G,) or (G, G).
        axes: (D, G), the coordinates along each axis.
    """
    heights = torch.where(loss.isfinite(), loss.double(), torch.inf)
    values = {index: heights[index].item() for index in itertools.product(*map(range, heights.shape))}
    found, seen = [], set()
    for start, height in values.items():
        if start in seen or height == torch.inf:
            continue
        plateau, is_minimum = [start], True
        seen.add(start)
        for point in plateau:  # which grows during the iteration
            for neighbour in _neighbours(point):
                other = values.get(neighbour, torch.inf)
                is_minimum &= other >= height
                if other == height and neighbour not in seen:
                    seen.add(neighbour)
                    plateau.append(neighbour)
        if is_minimum:
            at_edge = any(i in (0, size - 1) for p in plateau for i, size in zip(p, heights.shape, strict=True))
            coordinates = tuple(axis[i].item() for axis, i in zip(axes, start, strict=True))
            found.append(LocalMinimum(coordinates=coordinates, loss=height, at_edge=at_edge))
    return tuple(sorted(found, key=lambda minimum: minimum.loss))


def _neighbours(point: tuple[int, ...]) -> list[tuple[int, ...]]:
    steps = itertools.product((-1, 0, 1), repeat=len(point))
    return [tuple(i + step for i, step in zip(point, steps, strict=True)) for steps in steps if any(steps)]
