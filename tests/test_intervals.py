from __future__ import annotations

import pytest

from gapssg.intervals import wilson_interval


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 1998, table I.
    [
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0 / 20, 20, 0.0, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilsons(share: float, count: int, low: float, high: float):
    assert wilson_interval(share, count) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
