from __future__ import annotations

import pytest
import torch

from gapssg.landscape.directions import directions_through, principal_directions, random_directions
from gapssg.landscape.layout import Layout
from gapssg.models import create_model

MODULE = create_model("wrn10_half", num_classes=10, input_shape=(1, 16, 16), seed=1)
LAYOUT = Layout.of(MODULE)
WEIGHTS = LAYOUT.flatten(MODULE.state_dict())


def test_a_layout_splits_what_it_flattened():
    for name, part in LAYOUT.split(WEIGHTS).items():
        assert torch.equal(part, MODULE.get_parameter(name))
    assert "norm.running_var" in Layout.of(MODULE, statistics=True).shapes
    assert "norm.running_var" not in LAYOUT.shapes


def test_each_filter_of_a_random_direction_has_the_norm_of_the_filter_of_the_weights():
    (direction,) = random_directions(WEIGHTS, LAYOUT, [5], biases_and_norms=False)
    for name, part in LAYOUT.split(direction).items():
        own = MODULE.get_parameter(name)
        if own.dim() > 1:
            torch.testing.assert_close(part.flatten(1).norm(dim=1), own.flatten(1).norm(dim=1))
            assert not torch.allclose(part, own)
        else:
            assert not part.any(), name


def test_biases_and_norms_change_on_request_each_scaled_as_a_whole():
    (direction,) = random_directions(WEIGHTS, LAYOUT, [5], biases_and_norms=True)
    part = LAYOUT.split(direction)["norm.weight"]
    torch.testing.assert_close(part.norm(), MODULE.norm.weight.norm())
    assert not LAYOUT.split(direction)["norm.bias"].any()  # the biases are 0, so their norm is


def test_models_of_one_architecture_get_the_same_noise():
    doubled = random_directions(2 * WEIGHTS, LAYOUT, [5, 6], biases_and_norms=False)
    torch.testing.assert_close(doubled, 2 * random_directions(WEIGHTS, LAYOUT, [5, 6], biases_and_norms=False))
    assert not torch.equal(doubled[0], doubled[1])


def test_one_component_explains_a_straight_route():
    centre, step = torch.randn(50), torch.randn(50)
    route = torch.stack([centre - step * k for k in (3.0, 2.0, 1.0)])
    found = principal_directions(route, centre, 1)
    torch.testing.assert_close(found.explained, torch.ones(1, dtype=torch.float64), rtol=0, atol=1e-9)
    lengths = step.double().norm() * torch.tensor([3.0, 2.0, 1.0])
    torch.testing.assert_close(found.coordinates[:, 0], lengths.double(), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="fewer than 2 directions"):
        principal_directions(route, centre, 2)


def test_two_components_reconstruct_a_planar_route():
    centre = torch.zeros(6)
    route = torch.tensor([[3.0, 0, 0, 0, 0, 0], [2.0, 1, 0, 0, 0, 0], [1.0, -1, 0, 0, 0, 0]])
    found = principal_directions(route, centre, 2)
    torch.testing.assert_close(found.coordinates @ found.directions.double(), route.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.directions @ found.directions.T, torch.eye(2))
    assert found.explained.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("count", [2, 3])
def test_models_are_at_their_coordinates_on_their_line_or_plane(count):
    points = torch.randn(count, 40)
    directions, coordinates = directions_through(points)
    torch.testing.assert_close(points[0] + coordinates.float() @ directions, points)
    assert coordinates[1, 0] == 1
    if count == 3:
        assert (directions[0] @ directions[1]).item() == pytest.approx(0, abs=1e-4)
        torch.testing.assert_close(directions[0].norm(), directions[1].norm())


def test_models_on_one_line_span_no_plane():
    first, second = torch.randn(2, 40)
    with pytest.raises(ValueError, match="lie on one line"):
        directions_through(torch.stack([first, second, (first + second) / 2]))
    with pytest.raises(ValueError, match="same weights"):
        directions_through(torch.stack([first, first]))
