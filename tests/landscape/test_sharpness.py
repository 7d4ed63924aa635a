from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from gapssg.core.augment import Normalization
from gapssg.core.runtime import Runtime
from gapssg.landscape.curvature import CentreLoss, measure_curvature
from gapssg.landscape.lanczos import largest_eigenvalue
from gapssg.landscape.samples import Samples
from gapssg.landscape.settings import CurvatureSettings
from gapssg.landscape.sharpness import epsilon_sharpness, radius_of_doubling, trace
from gapssg.runs.results.landscape import Curvature, Measurement


def symmetric(eigenvalues: torch.Tensor) -> torch.Tensor:
    rotation, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), dtype=torch.float64))
    return rotation @ torch.diag(eigenvalues.double()) @ rotation.T


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_lanczos_finds_the_largest_eigenvalue_not_the_largest_absolute_one():
    eigenvalues = torch.cat([torch.linspace(-30, 5, 60), torch.tensor([7.0])])
    matrix = symmetric(eigenvalues)
    estimate = largest_eigenvalue(lambda v: matrix @ v, torch.randn(61, dtype=torch.float64), 61)
    assert estimate.value == pytest.approx(7, abs=1e-9)
    assert estimate.error < 1e-6


def test_the_error_of_an_eigenvalue_is_an_upper_bound():
    eigenvalues = torch.linspace(0, 10, 200)
    matrix = symmetric(eigenvalues)
    for steps in (3, 8, 20):
        estimate = largest_eigenvalue(lambda v: matrix @ v, torch.randn(200, dtype=torch.float64), steps)
        assert (eigenvalues.double() - estimate.value).abs().min().item() <= estimate.error + 1e-9


def test_lanczos_stops_at_an_invariant_subspace():
    estimate = largest_eigenvalue(lambda v: 4 * v, torch.randn(10), 8)
    assert estimate.value == pytest.approx(4, rel=1e-6)  # float32
    assert largest_eigenvalue(lambda v: 0 * v, torch.randn(10), 8).value == 0


def test_the_trace_of_a_diagonal_matrix_is_exact():
    diagonal = torch.arange(1.0, 21)
    estimate = trace(lambda v: diagonal * v, 20, 5, torch.Generator().manual_seed(0))
    assert estimate.value == 210
    assert estimate.error == 0


def test_the_trace_lies_within_its_standard_error():
    matrix = symmetric(torch.linspace(0, 4, 100)).float()
    estimate = trace(lambda v: matrix @ v, 100, 400, torch.Generator().manual_seed(0))
    # Hutchinson: the variance of one sample is twice the sum of the squares beside the diagonal.
    beside = matrix.square().sum() - matrix.diagonal().square().sum()
    assert estimate.error == pytest.approx(math.sqrt(2 * beside.item() / 400), rel=0.2)
    assert abs(estimate.value - 200) < 4 * estimate.error


def test_epsilon_sharpness_of_a_slope_is_reached_in_a_corner():
    slope, weights = torch.tensor([2.0, -1.0]), torch.tensor([3.0, 0.0])
    sharpness = epsilon_sharpness(lambda w: ((w * slope).sum().item(), slope), weights, 0.1, 5)
    rise = 2 * 0.1 * 4 + 1 * 0.1 * 1
    assert sharpness == pytest.approx(rise / (1 + 6), rel=1e-5)


def test_epsilon_sharpness_of_a_bowl_off_its_bottom():
    weights = torch.tensor([0.01, -0.01])
    sharpness = epsilon_sharpness(lambda w: (w.square().sum().item(), 2 * w), weights, 1e-3, 10)
    side = 1e-3 * 1.01
    highest = 2 * (0.01 + side) ** 2
    assert sharpness == pytest.approx((highest - 2e-4) / (1 + 2e-4), rel=1e-3)


def test_the_radius_of_doubling_of_a_bowl():
    rays = [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)]

    def bowl(point: tuple[float, ...]) -> float:
        return 1 + 4 * point[0] ** 2 + point[1] ** 2

    radius = radius_of_doubling(bowl, rays, [1.0] * 4, 1.0)
    assert radius is not None
    assert 0.5 <= radius <= 0.5 + 1 / 10 / 2**5  # as its docstring promises
    assert radius_of_doubling(bowl, rays, [0.4] * 4, 1.0) is None
    assert radius_of_doubling(lambda _: math.nan, rays, [1.0] * 4, 1.0) == pytest.approx(1 / 320)


def test_no_ray_is_measured_beyond_its_reach():
    seen = []

    def steep_to_the_left(point: tuple[float, ...]) -> float:
        seen.append(point[0])
        return 1 + max(0.0, -10 * point[0])

    assert radius_of_doubling(steep_to_the_left, [(1.0,), (-1.0,)], [3.0, 0.05], 1.0) is None
    assert (min(seen), max(seen)) == (-0.05, 3.0)
    assert radius_of_doubling(steep_to_the_left, [(1.0,), (-1.0,)], [3.0, 0.0], 1.0) is None


@pytest.mark.parametrize("soft", [False, True])
def test_hessian_and_gradient_of_a_small_network_are_those_of_its_loss(runtime, soft):
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.second(torch.tanh(self.first(images.flatten(1))))
            return logits

    images = torch.randint(0, 256, (300, 1, 2, 2), dtype=torch.uint8)  # more than one batch
    labels = torch.randint(0, 3, (300,))
    samples = Samples(images, labels, torch.randn(300, 3) if soft else None, temperature=2.0)
    normalization = Normalization.from_statistics((0.5,), (0.25,), runtime.device)
    loss = CentreLoss(Small(), normalization, samples, runtime)

    def whole(weights: torch.Tensor) -> torch.Tensor:
        parts = loss.layout.split(weights)
        pixels = ((images / 255 - 0.5) / 0.25).flatten(1)
        hidden = torch.tanh(pixels @ parts["first.weight"].T + parts["first.bias"])
        return samples.loss(hidden @ parts["second.weight"].T + parts["second.bias"])

    hessian = torch.autograd.functional.hessian(whole, loss.weights)
    vector = torch.randn(len(loss.weights))
    torch.testing.assert_close(loss.hessian_product(vector), hessian @ vector, rtol=1e-4, atol=1e-5)
    value, gradient = loss.loss_and_gradient(loss.weights)
    at = loss.weights.clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(whole(at), at)[0], rtol=1e-4, atol=1e-6)
    assert value == pytest.approx(whole(loss.weights).item(), rel=1e-5)
    top = torch.linalg.eigvalsh(hessian.double())[-1].item()
    estimate = largest_eigenvalue(loss.hessian_product, torch.randn(len(loss.weights)), 25)
    assert estimate.value == pytest.approx(top, rel=1e-4)


class Attention(nn.Module):
    """An attention head over the pixels of an image, with PyTorch's function or written out."""

    def __init__(self, written_out: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(1, 12), nn.Linear(4, 3)
        self.written_out = written_out

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        query, key, value = self.embed(images.flatten(1).unsqueeze(2)).chunk(3, dim=2)
        if self.written_out:
            attended = torch.softmax(query @ key.transpose(1, 2) / 2, dim=2) @ value
        else:
            attended = F.scaled_dot_product_attention(query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1))
        logits: torch.Tensor = self.head(attended.flatten(1, -2).mean(dim=1))
        return logits


class OnceDifferentiable(torch.autograd.Function):
    """A square without a second derivative."""

    @staticmethod
    def forward(ctx, values):
        ctx.save_for_backward(values)
        return values.square()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (values,) = ctx.saved_tensors
        return 2 * values * gradient


class Squares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = OnceDifferentiable.apply(self.head(images.flatten(1)))
        return logits


def curvature_of(module: nn.Module, runtime: Runtime) -> Curvature:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 1, 2, 2), dtype=torch.uint8, generator=generator)
    samples = Samples(images, torch.randint(0, 3, (20,), generator=generator))
    normalization = Normalization.from_statistics((0.5,), (0.25,), runtime.device)
    return measure_curvature(module, normalization, samples, runtime, CurvatureSettings(trace_samples=4))


def test_the_curvature_of_attention_is_that_of_the_formula(runtime):
    torch.manual_seed(0)
    fast, formula = Attention(written_out=False), Attention(written_out=True)
    formula.load_state_dict(fast.state_dict())
    measured, expected = curvature_of(fast, runtime), curvature_of(formula, runtime)
    assert measured.missing is expected.missing is None
    for name in ("largest_eigenvalue", "trace"):
        assert getattr(measured, name).value == pytest.approx(getattr(expected, name).value, rel=1e-3)
    assert measured.epsilon_sharpness == pytest.approx(expected.epsilon_sharpness, rel=1e-3)


def test_without_second_derivatives_only_the_sharpness_is_measured(runtime):
    curvature = curvature_of(Squares(), runtime)
    assert curvature.largest_eigenvalue == curvature.trace == Measurement()
    assert curvature.epsilon_sharpness > 0
    assert curvature.missing.startswith("no eigenvalue and trace: ")


def test_a_network_without_derivatives_has_no_curvature_and_says_so(runtime):
    class Steps(Squares):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return super().forward(images)

    curvature = curvature_of(Steps(), runtime)
    assert curvature.epsilon_sharpness is None
    assert curvature.missing.startswith("no eigenvalue, trace and sharpness: ")
