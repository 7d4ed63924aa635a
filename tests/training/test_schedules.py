from __future__ import annotations

import math

import pytest
import torch

from gapssg.settings.parts import OptimizerSettings
from gapssg.training.schedules import learning_rate


def test_cosine_equals_torchs():
    settings = OptimizerSettings(learning_rate=0.2, schedule="cosine")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for epoch in range(50):
        # torch multiplies from epoch to epoch, which rounds fifty times.
        assert learning_rate(settings, epoch / 50) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()
    assert learning_rate(settings, 1.0) == pytest.approx(0, abs=1e-15)


def test_one_cycle_rises_to_the_highest_rate_and_falls_to_nearly_nothing():
    settings = OptimizerSettings(learning_rate=0.1, schedule="one-cycle", warm_up=0.25)
    assert learning_rate(settings, 0) == pytest.approx(0.1 / 25, abs=1e-15)
    assert learning_rate(settings, 0.25) == pytest.approx(0.1, abs=1e-15)
    assert learning_rate(settings, 1.0) == pytest.approx(0.1 / 250_000, abs=1e-15)
    half_way_up = learning_rate(settings, 0.125)
    assert half_way_up == pytest.approx((0.1 + 0.1 / 25) / 2, abs=1e-15)


def test_step_falls_at_each_milestone():
    settings = OptimizerSettings(learning_rate=1.0, schedule="step", milestones=(0.5, 0.8), decay=0.1)
    rates = [learning_rate(settings, progress) for progress in (0, 0.49, 0.5, 0.79, 0.8, 0.99)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_constant_stays():
    settings = OptimizerSettings(learning_rate=0.3, schedule="constant")
    assert {learning_rate(settings, progress) for progress in (0, 0.5, 0.9)} == {0.3}
    assert math.isfinite(learning_rate(settings, 0))
