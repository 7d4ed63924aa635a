"""Stochastic gradient descent and its learning rate, from settings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gapssg.core.training_step import step_size
from gapssg.settings.parts import OptimizerSettings
from gapssg.training.schedules import learning_rate


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.SGD:
    """Create the optimizer of a model's weights."""
    return torch.optim.SGD(
        model.parameters(),
        lr=step_size(settings.learning_rate, next(model.parameters()).device),
        momentum=settings.momentum,
        nesterov=settings.nesterov and settings.momentum > 0,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def set_learning_rate(
    optimizer: torch.optim.Optimizer, settings: OptimizerSettings, progress: float, factor: float = 1.0
) -> float:
    """Set and return `factor` times the schedule's learning rate after `progress` (in [0, 1)) of the run."""
    rate = factor * learning_rate(settings, progress)
    for group in optimizer.param_groups:
        step: Tensor = group["lr"]
        step.fill_(rate)  # in place, because a captured step reads this memory
    return rate
