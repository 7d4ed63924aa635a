from __future__ import annotations

import torch

from gapssg.landscape.minima import local_minima
from gapssg.runs.results.landscape import LocalMinimum


def minima(loss: torch.Tensor) -> tuple[LocalMinimum, ...]:
    """The local minima with indices as coordinates."""
    return local_minima(loss, torch.arange(len(loss)).double().expand(loss.dim(), -1))


def places(loss: torch.Tensor) -> list[tuple[float, ...]]:
    return [minimum.coordinates for minimum in minima(loss)]


def test_a_bowl_has_one_minimum():
    axis = torch.linspace(-1, 1, 9)
    (minimum,) = minima((axis[:, None] - 0.25) ** 2 + 2 * axis[None] ** 2)
    assert minimum.coordinates == (5, 4)
    assert minimum.loss == 0
    assert not minimum.at_edge


def test_two_wells_are_found_the_lower_first():
    axis = torch.linspace(-2, 2, 17)
    assert places((axis**2 - 1) ** 2 + 0.1 * axis) == [(4,), (12,)]


def test_a_slope_has_its_minimum_at_the_edge():
    (minimum,) = minima(torch.arange(5.0))
    assert minimum.coordinates == (0,)
    assert minimum.at_edge


def test_a_diagonal_neighbour_counts():
    loss = torch.tensor([[1.0, 2, 2], [2, 1.5, 2], [2, 2, 3]])
    assert places(loss) == [(0, 0)]


def test_a_plateau_is_one_minimum_unless_a_neighbour_is_lower():
    assert places(torch.tensor([2.0, 1, 1, 1, 2])) == [(1,)]
    assert places(torch.tensor([2.0, 1, 1, 0, 2])) == [(3,)]


def test_values_that_are_not_finite_are_no_minima():
    assert places(torch.tensor([torch.nan, 3, torch.inf, -torch.inf, torch.nan])) == [(1,)]
