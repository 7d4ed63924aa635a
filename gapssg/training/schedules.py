"""The learning rate as a function of the progress of the run."""

from __future__ import annotations

import math

from gapssg.settings.parts import OptimizerSettings

_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_END = 1 / 250_000


def learning_rate(settings: OptimizerSettings, progress: float) -> float:
    """Return the learning rate after `progress` (in [0, 1)) of the run.

    `cosine` decreases from the highest rate to 0; `one-cycle` increases from 1/25 of it along a cosine, then decreases
    to 1/250,000 (Smith & Topin 2018, with the constants of torch's OneCycleLR); `step` multiplies it by `decay` at each
    milestone.
    """
    highest = settings.learning_rate
    if settings.schedule == "cosine":
        return highest * (1 + math.cos(math.pi * progress)) / 2
    if settings.schedule == "one-cycle":
        if progress < settings.warm_up:
            return highest * _between(_ONE_CYCLE_START, 1.0, progress / settings.warm_up)
        return highest * _between(1.0, _ONE_CYCLE_END, (progress - settings.warm_up) / (1 - settings.warm_up))
    if settings.schedule == "step":
        return highest * settings.decay ** sum(progress >= milestone for milestone in settings.milestones)
    return highest


def progress_at_highest_rate(settings: OptimizerSettings) -> float:
    """Return the progress, in [0, 1), at which a schedule first has its highest learning rate."""
    return settings.warm_up if settings.schedule == "one-cycle" else 0.0


def _between(start: float, end: float, share: float) -> float:
    """Interpolate from `start` to `end` along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
