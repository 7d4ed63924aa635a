"""Fits the predictor of `estimate` on students whose disagreement on real images is known, and calibrates it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression

Numbers = NDArray[np.float64]
Width = Literal["constant", "linear"]
"""The length of an interval: the same everywhere, or linear in the features."""

SMALLEST_ERROR = 1 / (2 * math.sqrt(256))
"""Standard error of the angle of a share of 256 images: no interval is based on a smaller expected error."""


class Fitted(NamedTuple):
    """A linear predictor, and half the length of its interval, which is linear in the features, too."""

    coefficients: Numbers
    intercept: float
    error_coefficients: Numbers
    error_intercept: float
    smallest_error: float

    def predict(self, features: Numbers) -> Numbers:
        """Return the predictions (N,) for features (N, F)."""
        return features @ self.coefficients + self.intercept

    def errors(self, features: Numbers) -> Numbers:
        """Return half the lengths of the intervals (N,) for features (N, F)."""
        return np.maximum(features @ self.error_coefficients + self.error_intercept, self.smallest_error)


def fit(
    features: Numbers,
    targets: Numbers,
    groups: Sequence[str],
    coverage: float,
    width: Width = "linear",
) -> Fitted:
    """Fit the predictor, each group with the same weight, and its interval on the residuals of left-out groups.

    Features are (N, F), targets (N,), and groups the teacher and data set of each row. The interval shall cover the
    share `coverage`, in (0, 1), of the students of a new group. Half its length is a multiple of the expected absolute
    residual: a linear regression, or with a `constant` width the same everywhere (locally weighted conformal
    prediction: Lei et al., "Distribution-free predictive inference for regression", JASA 2018). The multiple is the
    weighted quantile of the ratios of the two, at a level raised for the finite number of groups (Lee, Barber and
    Willett, "Distribution-free inference with hierarchical data", 2023).
    """
    coefficients, intercept = _regression(features, targets, groups)
    residuals, weights, count = np.empty(len(targets)), np.empty(len(targets)), len(set(groups))
    for group in set(groups):
        left_out = np.array([each == group for each in groups])
        others = [each for each in groups if each != group]
        slopes, offset = _regression(features[~left_out], targets[~left_out], others)
        residuals[left_out] = np.abs(targets[left_out] - features[left_out] @ slopes - offset)
        weights[left_out] = 1 / (count * left_out.sum())
    inputs = features if width == "linear" else np.zeros_like(features)
    expected = Fitted(coefficients, intercept, *_regression(inputs, residuals, groups), SMALLEST_ERROR)
    share = min(1.0, coverage * (count + 1) / count)
    times = weighted_quantile(residuals / expected.errors(features), weights, share)
    slopes, offset, smallest = expected.error_coefficients, expected.error_intercept, expected.smallest_error
    return Fitted(coefficients, intercept, times * slopes, times * offset, times * smallest)


def weighted_quantile(values: Numbers, weights: Numbers, share: float) -> float:
    """Return the smallest value up to which the weights, of sum 1, add up to `share`."""
    order = np.argsort(values)
    index = int(np.searchsorted(np.cumsum(weights[order]), share - 1e-12))
    return float(values[order][min(index, len(values) - 1)])


def _regression(features: Numbers, targets: Numbers, groups: Sequence[str]) -> tuple[Numbers, float]:
    sizes = Counter(groups)
    weights = [1 / sizes[group] for group in groups]
    model = LinearRegression(positive=True).fit(features, targets, weights)
    return model.coef_, float(model.intercept_)


class LeftOut(NamedTuple):
    """Predictions for a group from the other groups."""

    group: str
    """The group."""
    predicted: Numbers
    """(N,)."""
    low: Numbers
    """(N,), the lower ends."""
    high: Numbers
    """(N,), the upper ends."""
    targets: Numbers
    """(N,)."""

    @property
    def coverage(self) -> float:
        """Share of the targets in their intervals."""
        return float(((self.targets >= self.low) & (self.targets <= self.high)).mean())


def leave_out(
    features: Numbers,
    targets: Numbers,
    groups: Sequence[str],
    coverage: float,
    larger: Sequence[str] | None = None,
    width: Width = "linear",
    is_refused: Callable[[int, float], bool] = lambda row, high: False,
) -> list[LeftOut]:
    """Return for each group the predictions and intervals that were fitted, as by `fit`, on all the others.

    What is left out may be `larger` than a group: such as its data set. Rows that the program refuses, by their number
    and the upper end of their interval, have no prediction.
    """
    found, wholes = [], larger or groups
    for group in sorted(set(wholes)):
        chosen = np.array([each == group for each in wholes])
        others = [each for each, left_out in zip(groups, chosen, strict=True) if not left_out]
        fitted = fit(features[~chosen], targets[~chosen], others, coverage, width)
        predicted, errors = fitted.predict(features[chosen]), fitted.errors(features[chosen])
        low, high = predicted - errors, predicted + errors
        kept = [not is_refused(row, end) for row, end in zip(np.flatnonzero(chosen).tolist(), high, strict=True)]
        if any(kept):
            found.append(LeftOut(group, predicted[kept], low[kept], high[kept], targets[chosen][kept]))
    return found
