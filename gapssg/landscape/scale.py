"""The logarithmic scale of losses in figures, which clips outliers and which surfaces share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gapssg.landscape.surface import Surface

_CEILING = 1e4  # larger losses are not informative
_FLOOR = 1e-6  # a loss of 0 has no logarithm
_MOST_TICKS = 8
_SMALLEST_SPAN = 1.2
_SPAN_WHERE_CLIPPED = 100.0  # clipped losses look high, even if few others remain


class Scale(NamedTuple):
    """The lowest and the highest loss that are drawn; others are clipped."""

    low: float
    high: float

    def levels(self, count: int) -> list[float]:
        """Return `count` logarithmically spaced losses from the lowest to the highest."""
        ratio = self.high / self.low
        return [self.low * ratio ** (step / (count - 1)) for step in range(count)]

    def ticks(self) -> list[float]:
        """Return a few round losses in the scale: 1, 2 and 5 times powers of ten, or only powers of ten."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            round_losses = [digit * 10.0**power for power in powers for digit in digits]
            inside = [loss for loss in round_losses if self.low <= loss <= self.high]
            if len(inside) <= _MOST_TICKS:
                break
        return inside if len(inside) > 1 else [self.low, self.high]

    def clip(self, loss: Tensor) -> Tensor:
        """Clip losses to the scale, as float64; NaN becomes the highest loss."""
        return torch.nan_to_num(loss.double(), nan=self.high, posinf=self.high).clamp(self.low, self.high)


def scale_of(surfaces: Sequence[Surface]) -> Scale:
    """Return the scale that contains all losses of some surfaces up to a ceiling."""
    losses = torch.cat([part.reshape(-1) for surface in surfaces for part in (surface.loss, surface.centre_loss)])
    drawn = losses[losses.isfinite() & (losses <= _CEILING)].double()
    if not len(drawn):
        return Scale(_CEILING / 10, _CEILING)
    low = max(drawn.min().item(), _FLOOR)
    span = _SMALLEST_SPAN if len(drawn) == len(losses) else _SPAN_WHERE_CLIPPED
    return Scale(low, max(drawn.max().item(), low * span))


def clipping(surface: Surface, scale: Scale) -> str | None:
    """Return a note of how many losses are clipped, if any."""
    count = int((~(surface.loss <= scale.high)).sum())
    if not count:
        return None
    return f"{count} of {surface.loss.numel()} points clipped to {tick_text(scale.high)}"


def tick_text(loss: float) -> str:
    """Format a loss as a short decimal."""
    return f"{loss:.2g}" if loss < 10 else f"{loss:,.0f}"
