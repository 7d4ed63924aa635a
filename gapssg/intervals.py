"""Confidence intervals. Imports no torch."""

from __future__ import annotations

import math

Z_95 = 1.959964
"""The two-sided 95 % quantile of the normal distribution."""


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share in [0, 1] of `count` samples (Wilson, 1927).

    An effective number of samples need not be whole.
    """
    centre = share + Z_95**2 / (2 * count)
    half = Z_95 * math.sqrt(share * (1 - share) / count + Z_95**2 / (4 * count**2))
    scale = 1 + Z_95**2 / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
