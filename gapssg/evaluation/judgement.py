"""Criteria by which a student is not usable, with messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gapssg.errors import shortened
from gapssg.evaluation.metrics import ClassCounts, lowest_share
from gapssg.intervals import wilson_interval
from gapssg.runs.failures import LEAST_SHARE
from gapssg.runs.results.distillation import AfterTraining
from gapssg.synthesis.classes import describe_missing, missing_classes
from gapssg.text import percent


class Judgement(NamedTuple):
    """The judgement of a student by synthetic images at the end of a run."""

    missing_classes: list[str]
    """Names of the classes that the teacher hardly ever predicts for the images."""
    failures: list[str]
    """Why the student is not usable, one sentence each; empty if no criterion fails."""
    comparison: AfterTraining
    """The comparison with the teacher after training."""


def judge_on_synthetic_images(
    teacher_counts: Sequence[int], compared: ClassCounts, class_names: Sequence[str]
) -> Judgement:
    """Judge a student by synthetic images after its training.

    It fails if the teacher hardly ever predicts a class, over all images of the run or over those compared; if its
    agreement with the teacher is not above that of the most frequent prediction (by the lower bound of the 95 % Wilson
    interval); or if it agrees on less than a tenth of the images of a class.

    The agreement is measured after training, on images of the kind that it was trained on. It is no criterion before
    training, because some methods synthesise images on which student and teacher differ, so that a good student may
    stay below the baseline. After training it is necessary, because a student that disagrees on its training images has
    learned nothing, but not sufficient, because images can be memorised; only labelled images show that.

    Args:
        teacher_counts: Number of the teacher's predictions of each class, over all images of the run.
        compared: By the teacher's prediction, the number of compared images and of agreements.
        class_names: Names of the classes.
    """
    images, hits = sum(compared.totals), sum(compared.hits)
    agreement, baseline = hits / images, max(compared.totals) / images
    lowest = lowest_share(compared)
    failures = []
    missing = describe_missing(teacher_counts, class_names, "synthetic images") or describe_missing(
        compared.totals, class_names, "newest synthetic images"
    )
    if missing is not None:
        failures.append(missing)
    if wilson_interval(agreement, images)[0] <= baseline:
        failures.append(
            f"the student agrees with the teacher on {percent(agreement)} of {images:,} synthetic images after "
            f"training, no better than always giving the commonest answer ({percent(baseline)})"
        )
    if lowest is not None and lowest[1] < LEAST_SHARE:
        number, share = lowest
        failures.append(
            f"the student agrees with the teacher on only {percent(share)} of the {compared.totals[number]:,} "
            f"synthetic images that the teacher assigns to class '{shortened(class_names[number])}'"
        )
    comparison = AfterTraining(
        images=images,
        agreement=agreement,
        agreement_baseline=baseline,
        lowest_agreement=None if lowest is None else lowest[1],
        lowest_class=None if lowest is None else class_names[lowest[0]],
    )
    absent = sorted({*missing_classes(teacher_counts), *missing_classes(compared.totals)})
    return Judgement([class_names[number] for number in absent], failures, comparison)
