from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from gapssg.models import create_model
from gapssg.synthesis.batch_norm import (
    batch_moments,
    moments_by_var_mean,
    observed_statistics,
    relative_statistics_distance,
    statistics_distance,
)


def reference_moments(inputs):
    flat = inputs.double().transpose(0, 1).flatten(1)
    mean = flat.mean(dim=1)
    return mean, ((flat - mean[:, None]) ** 2).mean(dim=1)


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5), (8, 3, 5, 7)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_moments_and_their_gradients_equal_the_float64_formula(shape, channels_last):
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 5
    if channels_last and inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    weights = torch.randn(2, shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        # float32: 24 bits of squares up to about 100, over up to 280 numbers.
        ours, theirs = inputs.to(dtype, copy=True).requires_grad_(), inputs.clone().requires_grad_()
        mean, variance = batch_moments(ours)
        expected_mean, expected_variance = reference_moments(theirs)
        torch.testing.assert_close(mean.double(), expected_mean, rtol=0, atol=tolerance)
        torch.testing.assert_close(variance.double(), expected_variance, rtol=0, atol=tolerance)
        ((mean * weights[0] + variance * weights[1]).sum()).backward()
        ((expected_mean * weights[0] + expected_variance * weights[1]).sum()).backward()
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=tolerance)


@pytest.mark.parametrize("channels_last", [False, True])
def test_bfloat16_inputs_are_accumulated_in_float32(channels_last):
    """At the size of a published synthesis, in both memory layouts."""
    inputs = (torch.randn(256, 16, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 + 3).bfloat16()
    if channels_last:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    mean, variance = batch_moments(inputs)
    expected_mean, expected_variance = reference_moments(inputs)
    assert mean.dtype == variance.dtype == torch.float32
    # The errors of n = 262,144 float32 additions, 2**-24 each, add up like a random walk: 512 * 2**-24 of the mean and
    # of the mean square. The bound is four times that, or four standard deviations. In bfloat16 a sum stops growing
    # after 2**8 equal terms.
    bound = 4 * 512 * 2**-24
    torch.testing.assert_close(mean.double(), expected_mean, rtol=bound, atol=0)
    torch.testing.assert_close(variance.double(), expected_variance, rtol=0, atol=bound * (9 + 4))


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_moments_of_other_devices_equal_those_of_the_cpu(channels_last):
    inputs = torch.randn(32, 8, 7, 7, generator=torch.Generator().manual_seed(0)) * 2 + 1
    if channels_last:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(moments_by_var_mean(inputs), batch_moments(inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)  # as for float32 above


def test_distance_is_zero_for_a_batch_with_the_running_statistics():
    inputs = torch.randn(16, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, variance = reference_moments(inputs)
    assert statistics_distance(inputs, mean, variance).item() == pytest.approx(0, abs=1e-12)
    assert statistics_distance(inputs, mean + 3, variance).item() == pytest.approx(3 * 4**0.5, abs=1e-12)


def reference_relative_distance(inputs, running_mean, running_var, eps):
    """The formula channel by channel, in float64."""
    total = 0.0
    for channel, mean, variance in zip(
        inputs.double().transpose(0, 1).flatten(1), running_mean.tolist(), running_var.tolist(), strict=True
    ):
        values = channel.tolist()
        batch_mean = sum(values) / len(values)
        batch_variance = sum((value - batch_mean) ** 2 for value in values) / len(values)
        deviation = (variance + eps) ** 0.5
        total += ((batch_mean - mean) / deviation) ** 2 + ((batch_variance + eps) ** 0.5 / deviation - 1) ** 2
    return total / inputs.shape[1]


def running_statistics(channels: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    mean, variance = torch.randn(channels, generator=rng, dtype=dtype), torch.rand(channels, generator=rng, dtype=dtype)
    return mean, variance + 0.1


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5), (8, 3, 5, 7), (4, 3, 2, 3, 2)])
@pytest.mark.parametrize("eps", [1e-5, 1e-3, 2.0])
def test_the_relative_distance_equals_the_float64_formula(shape, eps):
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 1
    expected = reference_relative_distance(inputs, *running_statistics(3), eps)
    found = relative_statistics_distance(inputs, *running_statistics(3), eps)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    mean, variance = (each.float() for each in running_statistics(3))
    in_float32 = relative_statistics_distance(inputs.float(), mean, variance, eps)
    assert in_float32.dtype == torch.float32
    # 24 bits, over at most 280 numbers.
    assert in_float32.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2, 3)])
def test_the_gradient_of_the_relative_distance_is_that_of_finite_differences(shape):
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    mean, variance = running_statistics(3)
    assert torch.autograd.gradcheck(lambda x: relative_statistics_distance(x, mean, variance, 1e-5), (inputs,))


def test_the_relative_distance_is_zero_for_a_batch_with_the_running_statistics():
    inputs = torch.randn(16, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, variance = reference_moments(inputs)
    assert relative_statistics_distance(inputs, mean, variance, 1e-5).item() == pytest.approx(0, abs=1e-24)
    # One standard deviation from the mean in each channel.
    shifted = mean + (variance + 1e-5).sqrt()
    assert relative_statistics_distance(inputs, shifted, variance, 1e-5).item() == pytest.approx(1)


@pytest.mark.parametrize("scale", [1e-3, 100.0, 3e4])
def test_the_relative_distance_does_not_depend_on_the_scale_of_the_activations(scale):
    inputs = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    mean, variance = running_statistics(3)
    expected = relative_statistics_distance(inputs, mean, variance, 1e-3)
    found = relative_statistics_distance(inputs * scale, mean * scale, variance * scale**2, 1e-3 * scale**2)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_constant_inputs_have_a_bounded_distance_and_gradient():
    mean, variance = running_statistics(3, torch.float32)
    inputs = torch.zeros(8, 3, 4, 4, requires_grad=True)
    distance = relative_statistics_distance(inputs, mean, variance, 1e-5)
    distance.backward()
    assert distance <= 1 + (mean.square() / variance).mean()
    assert inputs.grad is not None
    assert inputs.grad.isfinite().all()


def test_every_batch_norm_layer_is_observed_and_none_afterwards():
    model = create_model("wrn16_1", num_classes=10, input_shape=(3, 16, 16)).eval()
    images = torch.rand(2, 3, 16, 16)
    distances: list[Tensor] = []
    with observed_statistics(model, distances):
        model(images)
        assert len(distances) == 13
    model(images)
    assert len(distances) == 13


def test_the_inputs_of_a_layer_are_observed_not_its_outputs():
    layer = nn.BatchNorm1d(2).eval()
    layer.running_mean.copy_(torch.tensor([1.0, 2.0]))
    inputs = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    distances: list[Tensor] = []
    with observed_statistics(nn.Sequential(layer), distances):
        layer(inputs)
    # The means agree, the variances are 0 where 1 is expected in two channels.
    assert distances[0].item() == pytest.approx(2**0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(4), (32, 4)),
        (nn.BatchNorm1d(4, affine=False), (32, 4, 5)),
        (nn.BatchNorm3d(4), (8, 4, 2, 3, 2)),
        (FrozenBatchNorm2d(4), (8, 4, 5, 3)),
        (nn.SyncBatchNorm(4), (8, 4, 5, 3)),
    ],
)
def test_the_statistics_loss_of_every_batch_norm_type_equals_the_float64_formula(
    layer: nn.Module, shape: tuple[int, ...]
):
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(shape, generator=rng) * 2 + 1
    layer.running_mean.copy_(torch.randn(4, generator=rng))
    layer.running_var.copy_(torch.rand(4, generator=rng) + 0.5)
    mean, variance = reference_moments(inputs)
    expected = (mean - layer.running_mean.double()).norm() + (variance - layer.running_var.double()).norm()
    distances: list[Tensor] = []
    with observed_statistics(nn.Sequential(layer).eval(), distances):
        layer(inputs)
    # float32 over at most 120 numbers of up to about 10, squared: 24 bits of 100.
    torch.testing.assert_close(distances[0].double(), expected, rtol=0, atol=1e-4)
    distances.clear()
    with observed_statistics(nn.Sequential(layer).eval(), distances, relative=True):
        layer(inputs)
    expected = reference_relative_distance(inputs, layer.running_mean, layer.running_var, layer.eps)
    assert distances[0].item() == pytest.approx(expected, rel=1e-4)


def test_a_layer_without_statistics_is_not_observed():
    model = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.BatchNorm2d(2)).eval()
    distances: list[Tensor] = []
    with observed_statistics(model, distances):
        model(torch.rand(4, 2, 3, 3))
    assert len(distances) == 1
