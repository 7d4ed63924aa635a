"""Stochastic gradient descent and its learning rate, made from settings."""

from __future__ import annotations

import torch
from torch import nn

from gapssg.engine.schedules import learning_rate
from gapssg.settings.parts import OptimizerSettings


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.SGD:
    """Make the optimizer of a model's weights."""
    return torch.optim.SGD(
        model.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov and settings.momentum > 0,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, progress: float) -> float:
    """Set and return the learning rate after `progress` (in [0, 1)) of the run."""
    rate = learning_rate(settings, progress)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate
