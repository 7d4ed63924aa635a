"""Fits the predictor of `estimate` on students whose disagreement on real images is known, and calibrates it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression

Numbers = NDArray[np.float64]


class Fitted(NamedTuple):
    """A linear predictor, and half the length of its interval."""

    coefficients: Numbers
    intercept: float
    error: float

    def predict(self, features: Numbers) -> Numbers:
        """Return the predictions (N,) for features (N, F)."""
        return features @ self.coefficients + self.intercept


def fit(features: Numbers, targets: Numbers, groups: Sequence[str], coverage: float) -> Fitted:
    """Fit the predictor, each group with the same weight, and its interval on the residuals of left-out groups.

    Features are (N, F), targets (N,), and groups the teacher and data set of each row. The interval shall cover the
    share `coverage`, in (0, 1), of the students of a new group. Half its length is the weighted quantile of the
    residuals' absolute values, at a level raised for the finite number of groups (Lee, Barber and Willett,
    "Distribution-free inference with hierarchical data", 2023).
    """
    coefficients, intercept = _regression(features, targets, groups)
    residuals, weights = [], []
    for group in sorted(set(groups)):
        left_out = np.array([each == group for each in groups])
        others = [each for each in groups if each != group]
        slope, offset = _regression(features[~left_out], targets[~left_out], others)
        residuals.append(targets[left_out] - features[left_out] @ slope - offset)
        weights.append(np.full(left_out.sum(), 1 / left_out.sum()))
    count = len(weights)
    share = min(1.0, coverage * (count + 1) / count)
    errors, shares = np.abs(np.concatenate(residuals)), np.concatenate(weights) / count
    return Fitted(coefficients, intercept, weighted_quantile(errors, shares, share))


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
    features: Numbers, targets: Numbers, groups: Sequence[str], coverage: float, larger: Sequence[str] | None = None
) -> list[LeftOut]:
    """Return for each group the predictions and intervals that were fitted, as by `fit`, on all the others.

    What is left out may be `larger` than a group: such as its data set.
    """
    found = []
    for group in sorted(set(larger or groups)):
        chosen = np.array([each == group for each in larger or groups])
        others = [each for each, left_out in zip(groups, chosen, strict=True) if not left_out]
        fitted = fit(features[~chosen], targets[~chosen], others, coverage)
        predicted = fitted.predict(features[chosen])
        found.append(LeftOut(group, predicted, predicted - fitted.error, predicted + fitted.error, targets[chosen]))
    return found
