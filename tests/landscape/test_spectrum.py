"""The spectral density of the Hessian of a small network, against its dense Hessian in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torch.func import functional_call

from gapssg.landscape.lanczos import largest_eigenpairs, quadrature
from gapssg.landscape.layout import Layout
from gapssg.landscape.sharpness import random_signs
from gapssg.landscape.spectrum import nodes_of, smoothed, spectrum_figure
from gapssg.runs.results.landscape import SpectralDensity
from tests.landscape.conftest import make_surface


@pytest.fixture(scope="module")
def hessian() -> Tensor:
    """The Hessian of the cross-entropy of a small network in float64, (P, P)."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(36, 10), nn.Tanh(), nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    images, labels = torch.randn(64, 36, dtype=torch.float64), torch.randint(0, 5, (64,))
    layout = Layout.of(network)
    weights = torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])

    def loss(at: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, layout.split(at), (images,)), labels)

    return torch.func.jacrev(torch.func.grad(loss))(weights)


def density_of(hessian: Tensor, starts: int, steps: int) -> SpectralDensity:
    generator = torch.Generator().manual_seed(1)
    found = [
        quadrature(lambda v: hessian @ v, random_signs(len(hessian), generator).double(), steps) for _ in range(starts)
    ]
    return SpectralDensity(parameters=len(hessian), starts=tuple(tuple(nodes) for nodes in found if nodes))


def test_the_spectral_density_is_within_one_per_cent_of_the_dense_spectrum(hessian: Tensor):
    exact = torch.linalg.eigvalsh(hessian)
    nodes, weights = nodes_of(density_of(hessian, 6, 40))  # the default settings
    distance = wasserstein_distance(exact, nodes, u_weights=None, v_weights=weights)
    spread = (exact[-1] - exact[0]).item()
    assert len(exact) > 400
    assert distance < 0.01 * spread
    assert weights.sum().item() == pytest.approx(1)
    assert nodes[-1].item() == pytest.approx(exact[-1].item(), rel=1e-9)
    assert nodes[0].item() == pytest.approx(exact[0].item(), rel=1e-9)


def test_a_quadrature_integrates_polynomials_exactly(hessian: Tensor):
    start = random_signs(len(hessian), torch.Generator().manual_seed(2)).double()
    vector, power = start / start.norm(), start / start.norm()
    pairs = quadrature(lambda v: hessian @ v, start, 5) or []
    for degree in range(10):  # up to 2 * steps - 1
        expected = (vector @ power).item()
        assert sum(weight * node**degree for node, weight in pairs) == pytest.approx(expected, rel=1e-9)
        power = hessian @ power


def test_the_smoothed_density_is_within_its_error_of_the_dense_one(hessian: Tensor):
    exact = torch.linalg.eigvalsh(hessian)
    width = 0.01 * (exact[-1] - exact[0]).item()
    at = torch.linspace(exact[0] - 5 * width, exact[-1] + 5 * width, 400, dtype=torch.float64)
    dense = torch.distributions.Normal(exact, width).log_prob(at[:, None]).exp().mean(dim=1)
    assert torch.trapezoid(dense, at).item() == pytest.approx(1, abs=1e-3)
    mean, error = smoothed(density_of(hessian, 30, 60), at, width)
    visible = dense > 0.01 * dense.max()
    # Of normally distributed errors, 99.99 % are within four standard errors.
    assert ((mean - dense).abs() < 4 * error)[visible].all()


def test_the_largest_eigenvectors_are_those_of_the_dense_matrix(hessian: Tensor):
    values, vectors = torch.linalg.eigh(hessian)
    start = torch.randn(len(hessian), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    pairs = largest_eigenpairs(lambda v: hessian @ v, start, 40, 2)
    for index in (0, 1):
        measured, found, own = pairs.values[index], pairs.vectors[index], vectors[:, -1 - index]
        assert measured.value == pytest.approx(values[-1 - index].item(), rel=1e-9)
        torch.testing.assert_close(found, own * (own @ found).sign(), rtol=0, atol=1e-7)
        assert (found @ start).item() > 0


def test_fewer_dimensions_than_eigenvectors_are_reported_as_none():
    assert largest_eigenpairs(lambda v: 2 * v, torch.randn(5), 4, 2) is None
    assert largest_eigenpairs(lambda v: v * math.nan, torch.randn(5), 4, 1) is None
    assert quadrature(lambda v: v * math.nan, torch.randn(5), 4) is None


def test_the_figure_has_the_density_and_its_error(hessian: Tensor):
    density = density_of(hessian, 3, 10)
    (axes,) = spectrum_figure(make_surface(torch.ones(3, 3)), density).axes
    assert axes.get_xlabel() == "Eigenvalue of the Hessian"
    assert axes.get_yscale() == "log"
    (band,) = axes.collections
    drawn: Any = axes.lines[0].get_ydata()
    lowest, highest = band.get_paths()[0].get_extents().intervaly
    assert lowest <= min(drawn)
    assert max(drawn) <= highest
    one = SpectralDensity(parameters=1, starts=(((0.0, 1.0),),) * 2)  # a flat loss
    assert spectrum_figure(make_surface(torch.ones(3, 3)), one).axes
