"""The result of `estimate`: what is expected of a student on real images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gapssg.runs.results.common import Failures, Interval, ModelFile, RunFacts
from gapssg.stored import PositiveCount, Sentences, Share, Stored, Text
from gapssg.text import percent


class ProbeEvidence(Stored):
    """How student and teacher compare on probe images of one kind."""

    images: PositiveCount
    disagreement: Share
    """Share of the images on which their predictions differ."""
    weighted_disagreement: Share
    """The same, each image weighted by the teacher's margin: the difference of its two highest probabilities."""
    reality_gap: Share
    """Mean of the largest difference of a class probability."""
    teacher_confidence: Share
    """Mean of the teacher's highest class probability."""
    largest_class: Share
    """Share of the teacher's most frequent prediction."""


class Prediction(Stored):
    """A predicted share and its interval, in [0, 1]."""

    value: Share
    low: Share | None
    """None if there is no interval."""
    high: Share | None
    """Likewise."""


class QualityFacts(Stored):
    """What is expected of a student on real images, of which none was read."""

    disagreement: Prediction | None
    """Predicted share of real images on which student and teacher differ, without an interval if there are obstacles to
    that alone; None if the predictor does not apply."""
    top1: Interval | None
    """Bounds of the top-1 accuracy that follow; None without the teacher's, or if there are obstacles."""
    coverage: Share
    """Share of the students of left-out teachers and data sets whose disagreement the intervals covered."""
    calibrated_on: Text
    """The students, teachers and sources of images that the predictor was calibrated on."""
    obstacles: Sentences
    """Why the predictor, or its interval, does not apply; empty if it does."""
    evidence: Annotated[dict[Text, ProbeEvidence], Field(max_length=50)]

    @property
    def described(self) -> list[str]:
        """The prediction with its interval and its calibration, or why there is none."""
        share, why_not = self.disagreement, "; ".join(self.obstacles)
        if share is None:
            return [f"no prediction for real images: {why_not}"]
        predicted = f"predicted disagreement with the teacher on real images: {percent(share.value)}"
        if share.low is None or share.high is None:
            return [f"{predicted}; no interval: {why_not}"]
        lines = [f"{predicted} (interval {percent(share.low)} to {percent(share.high)})"]
        if self.top1 is not None:
            lines.append(f"so its top-1 accuracy is from {percent(self.top1.low)} to {percent(self.top1.high)}")
        lines.append(
            f"calibrated on {self.calibrated_on}; such intervals covered {percent(self.coverage)} of the students of "
            "left-out teachers and data sets"
        )
        return lines


class QualityResult(QualityFacts, RunFacts):
    """The result of `estimate`."""

    command: Literal["estimate"] = "estimate"
    teacher: ModelFile
    student: ModelFile
    pool: Text | None
    """The run whose pool was used."""
    teacher_top1: Share | None
    """Top-1 accuracy of the teacher, as given."""
    failures: Failures
    """Why the student is not usable, by its run and by labelled images since."""

    @property
    def described(self) -> list[str]:
        """The prediction with its interval and its calibration, or why there is none."""
        has_no_bounds = self.teacher_top1 is not None and self.top1 is None
        return [*super().described, *(["so there are no bounds of its accuracy"] if has_no_bounds else [])]
