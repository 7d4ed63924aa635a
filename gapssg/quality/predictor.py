"""The calibrated prediction of a student's disagreement with its teacher on real images.

Shares are compared as angles, asin(sqrt(share)), whose sampling error does not depend on the share. The predicted angle
is linear in those on probe images, with a coefficient that is not negative, so that more disagreement on probe images
never predicts less on real ones. The interval has the errors of predictions for left-out teachers and data sets
(conformal prediction for grouped data: Lee, Barber and Willett, "Distribution-free inference with hierarchical data",
2023), which grow with the disagreement. `make estimator` fits it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Annotated

from pydantic import Field

from gapssg.runs.results.common import Interval
from gapssg.runs.results.quality import ProbeEvidence
from gapssg.stored import PositiveCount, Share, Stored, Text
from gapssg.text import percent

PREDICTOR = "predictor.json"
WITH_POOL, WITHOUT_POOL = "with a pool", "without a pool"
_NO_BETTER = 0.95
"""Share of a constant answer's disagreement from which a student's is no better: a few images decide the rest."""


class Range(Stored):
    """The range of a quantity in the cells that the predictor was fitted on."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Tell whether a value lies in it."""
        return self.low <= value <= self.high


class Error(Stored):
    """Half the length of an interval: linear in what `summary` returns."""

    coefficient: Annotated[float, Field(ge=0)]
    intercept: float
    smallest: Annotated[float, Field(ge=0)]

    def at(self, angle: float) -> float:
        """Return it at an angle that `summary` returned."""
        return max(self.intercept + self.coefficient * angle, self.smallest)


class Predictor(Stored):
    """A fitted predictor and what it was calibrated on."""

    kinds: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Kinds of probe images that it takes."""
    observed: Range
    """Of what `summary` returns."""
    largest_class: Range
    """Of the share of the teacher's most frequent prediction, mean over the kinds."""
    coefficient: Annotated[float, Field(ge=0)]
    intercept: float
    error: Error
    """Half the length of the interval of the predicted angle."""
    coverage: Share
    classes: Range
    pixels: Range
    """Of an image's shorter side."""
    channels: Range
    have_batch_norm: bool
    """Whether all of its teachers have batch norm."""
    cells: PositiveCount
    teachers: PositiveCount
    sources: PositiveCount
    """Of images, such as the CIFAR-10 of which several teachers know some classes."""

    @property
    def calibrated_on(self) -> str:
        """The size of its calibration."""
        return f"{self.cells} students of {self.teachers} teachers, images of {self.sources} sources"

    def predict(self, evidence: Mapping[str, ProbeEvidence]) -> Interval:
        """Return the predicted disagreement and its interval, never below those of the best student calibrated on."""
        observed = max(summary(evidence, self.kinds), self.observed.low)
        angle, error = self.intercept + self.coefficient * observed, self.error.at(observed)
        return Interval(value=share_of(angle), low=share_of(angle - error), high=share_of(angle + error))

    def obstacles_of_task(self, num_classes: int, image_shape: tuple[int, int, int]) -> list[str]:
        """Return why the predictor does not apply to such classes or images, one clause each; empty if it does.

        The images have the shape (C, H, W).
        """
        channels, *sides = image_shape
        return [
            f"it was calibrated for {observed.low:.0f} to {observed.high:.0f} {name}, not {value}"
            for name, value, observed in (
                ("classes", num_classes, self.classes),
                ("pixels (shorter side)", min(sides), self.pixels),
                ("channels", channels, self.channels),
            )
            if not observed.holds(value)
        ]

    def obstacles_of(self, evidence: Mapping[str, ProbeEvidence]) -> list[str]:
        """Return why the predictor does not apply to this evidence; empty if it does."""
        angle, found = summary(evidence, self.kinds), [evidence[kind] for kind in self.kinds]
        largest = statistics.mean(each.largest_class for each in found)
        obstacles = []
        if angle > self.observed.high:
            most, share = percent(share_of(self.observed.high)), percent(share_of(angle))
            obstacles.append(f"it was calibrated for a disagreement on probe images of at most {most}, not {share}")
        if not self.largest_class.holds(largest):
            obstacles.append(
                f"the teacher gives one class to {percent(largest)} of the probe images; the predictor was calibrated "
                f"for {percent(self.largest_class.low)} to {percent(self.largest_class.high)}"
            )
        if is_like_a_constant(evidence, self.kinds):
            obstacles.append(
                "on probe images the student agrees hardly more often than a constant answer would, so they do not "
                "show how good it is"
            )
        return obstacles


def is_like_a_constant(evidence: Mapping[str, ProbeEvidence], kinds: Iterable[str]) -> bool:
    """Tell whether a student agrees with its teacher hardly more often than a constant answer, or less often."""
    found = [evidence[kind] for kind in kinds]
    largest = statistics.mean(each.largest_class for each in found)
    return statistics.mean(each.disagreement for each in found) >= _NO_BETTER * (1 - largest)


def summary(evidence: Mapping[str, ProbeEvidence], kinds: Iterable[str]) -> float:
    """Return the mean over kinds of probe images of the angle of the weighted disagreement."""
    return statistics.mean(angle_of(evidence[kind].weighted_disagreement) for kind in kinds)


def load_predictors() -> dict[str, Predictor]:
    """Return the fitted predictors of this version, by name: with and without images of a pool."""
    text = resources.files("gapssg.quality").joinpath(PREDICTOR).read_bytes()
    return _Predictors.read(text, PREDICTOR).predictors


class _Predictors(Stored):
    predictors: dict[Text, Predictor]


def angle_of(share: float) -> float:
    """Return asin(sqrt(share)), from 0 to pi / 2."""
    return math.asin(math.sqrt(share))


def share_of(angle: float) -> float:
    """Return the share in [0, 1] of an angle; of one below 0 or above pi / 2, that of 0 or pi / 2."""
    return math.sin(min(max(angle, 0.0), math.pi / 2)) ** 2
