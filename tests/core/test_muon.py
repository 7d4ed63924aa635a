"""The Muon optimizer, against its formulas in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gapssg.core.muon import Muon, orthogonalise, products_per_step

RATE, MOMENTUM, DECAY, KERNEL_RATE = 0.05, 0.9, 0.01, 0.3


@pytest.mark.parametrize("shape", [(16, 27), (64, 16), (5, 200), (8, 8)])
def test_orthogonalising_keeps_singular_vectors_and_evens_out_singular_values(shape: tuple[int, int]):
    generator = torch.Generator().manual_seed(0)
    rank = min(shape)
    left, right = (
        torch.linalg.qr(torch.randn(side, rank, dtype=torch.float64, generator=generator))[0] for side in shape
    )
    made = orthogonalise(left @ torch.diag(torch.logspace(0, -2, rank, dtype=torch.float64)) @ right.T)
    values = left.T @ made @ right
    # The smallest singular value is at least 0.003 of the norm; of all those the quintics make 0.68 to 1.21.
    assert values.diag().min() > 0.68 and values.diag().max() < 1.21
    # Rounding in float64 of 15 products of matrices of norm about 1.
    assert (made - left @ torch.diag(values.diag()) @ right.T).abs().max() < 1e-12


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(8 * 16, 4)
    return nn.Sequential(*layers)


def expected_step(weight: Tensor, gradient: Tensor, momentum: Tensor, nesterov: bool) -> tuple[Tensor, Tensor]:
    """Return weight and momentum after a step, for a kernel (8, 3, 3, 3) or another parameter."""
    is_kernel = weight.shape == (8, 3, 3, 3)
    gradient = gradient if is_kernel else gradient + DECAY * weight
    momentum = MOMENTUM * momentum + gradient
    update = gradient + MOMENTUM * momentum if nesterov else momentum
    if not is_kernel:
        return weight - RATE * update, momentum
    matrix = update.reshape(8, 27) / update.norm()
    for _ in range(5):
        square = matrix @ matrix.T
        matrix = 3.4445 * matrix - 4.7750 * square @ matrix + 2.0315 * square @ square @ matrix
    size = KERNEL_RATE * 0.2 * 27**0.5
    return (1 - RATE * DECAY) * weight - RATE * size * matrix.reshape(weight.shape), momentum


def test_the_products_of_a_step_are_those_that_torch_counts():
    module = network()
    optimizer = Muon(module, torch.tensor(RATE), MOMENTUM, True, DECAY, KERNEL_RATE)
    module(torch.randn(2, 3, 8, 8)).sum().backward()
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert products_per_step(module) == counter.get_total_flops() == 10 * (2 * 8 * 8 * 27 + 8**3)


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_equal_the_formulas_in_float64(nesterov: bool):
    module = network()
    exact = {name: weight.detach().double() for name, weight in module.named_parameters()}
    momenta = {name: torch.zeros_like(weight) for name, weight in exact.items()}
    optimizer = Muon(module, torch.tensor(RATE), MOMENTUM, nesterov, DECAY, KERNEL_RATE)
    images = torch.randn(16, 3, 8, 8)
    for _ in range(3):
        optimizer.zero_grad()
        module(images).square().mean().backward()
        for name, weight in module.named_parameters():
            assert weight.grad is not None
            exact[name], momenta[name] = expected_step(exact[name], weight.grad.double(), momenta[name], nesterov)
        optimizer.step()
    for name, weight in module.named_parameters():
        # Relative to weights of about 1: rounding in float32, which five iterations of slope 3.4 amplify.
        torch.testing.assert_close(weight.double(), exact[name], rtol=0, atol=1e-5)


def test_a_step_that_is_not_finite_changes_nothing():
    module = network()
    optimizer = Muon(module, torch.tensor(RATE), MOMENTUM, True, DECAY, KERNEL_RATE)
    optimizer.found_inf = torch.zeros(())
    module(torch.randn(4, 3, 8, 8)).sum().backward()
    optimizer.step()
    before, momenta = copy.deepcopy(module.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    for weight in module.parameters():
        weight.grad = torch.full_like(weight, torch.nan)
    optimizer.found_inf.fill_(1)
    optimizer.step()
    torch.testing.assert_close(dict(module.state_dict()), dict(before), rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict()["state"], momenta, rtol=0, atol=0)
