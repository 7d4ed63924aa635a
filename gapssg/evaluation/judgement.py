"""When a student is not usable, said in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gapssg.errors import shortened
from gapssg.evaluation.metrics import FEWEST_IMAGES_OF_A_CLASS, ClassCounts, lowest_share
from gapssg.intervals import wilson_interval
from gapssg.runs.results import AfterTraining, Scores
from gapssg.synthesis.classes import describe_missing, missing_classes
from gapssg.text import percent

LEAST_SHARE = 0.1
"""A student that is right on less than this share of a class has not learned it."""


class Judgement(NamedTuple):
    """What synthetic images say of a student at the end of a run.

    Attributes:
        missing_classes: Names of the classes that the teacher hardly ever sees in the images.
        failures: Why the student is not usable, one sentence each; empty where nothing speaks against it.
        comparison: What was compared after training.
    """

    missing_classes: list[str]
    failures: list[str]
    comparison: AfterTraining


def judge_on_synthetic_images(
    teacher_counts: Sequence[int], compared: ClassCounts, class_names: Sequence[str]
) -> Judgement:
    """Judge a student by synthetic images after its training.

    It fails if the teacher hardly ever answers a class, over all images of the run or over those compared; if it agrees
    with the teacher no more often than the commonest answer alone would, that is if the lower bound of the 95 % Wilson
    interval of the agreement is not above that baseline; or if it agrees on less than a tenth of the images of a class.

    The student is compared after training, on images of the kind that it was trained on. The agreement on new images
    before training is no criterion: some methods make images on which the two differ, so that a sound student may stay
    below the baseline there. After training the criterion is necessary: a student that does not give the teacher's
    answers where it was shown them has learned nothing. It is not sufficient, since images can be learned by heart;
    only labelled images show that.

    Args:
        teacher_counts: How often the teacher answered each class, over all images of the run.
        compared: By the teacher's answer, on how many images the student agrees.
        class_names: Of the classes.
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
            f"it gives the teacher's answer on {percent(agreement)} of {images:,} synthetic images after training, "
            f"no better than always giving the commonest answer ({percent(baseline)})"
        )
    if lowest is not None and lowest[1] < LEAST_SHARE:
        number, share = lowest
        failures.append(
            f"it agrees with the teacher on only {percent(share)} of the {compared.totals[number]:,} synthetic images "
            f"that the teacher takes for class '{shortened(class_names[number])}'"
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


def failures_on_real_images(student: Scores, teacher: Scores | None) -> list[str]:
    """Return why a student is not usable by its scores on labelled images; nothing where they speak for it.

    It fails if its balanced accuracy is not better than chance, whatever its top-1 accuracy, or if it is right on less
    than a tenth of the images of a class and its teacher on at least a tenth of those of every class: what the teacher
    does not know, no student can learn from it.

    Args:
        student: Its scores.
        teacher: Those of its teacher on the same images, if they are known.
    """
    failures = []
    if not student.better_than_chance:
        failures.append(
            f"its balanced accuracy on real images is {percent(student.balanced_accuracy)}, "
            "no better than always answering with one class"
        )
    lowest, teachers = student.lowest_recall, None if teacher is None else teacher.lowest_recall
    if lowest is not None and lowest < LEAST_SHARE and teachers is not None and teachers >= LEAST_SHARE:
        name = shortened(student.lowest_class)
        failures.append(
            f"it is right on only {percent(lowest)} of the real images of class '{name}', "
            f"its teacher on at least {percent(teachers)} of every class"
        )
    return failures


def real_images_speak_for(student: Scores) -> bool:
    """Tell whether labelled images show that a student is usable, whatever synthetic images say.

    They do if its balanced accuracy is better than chance and it is right on at least a tenth of the images of every
    class, with at least 10 images of each: what they do not cover, they say nothing about.
    """
    return (
        student.better_than_chance
        and student.fewest_images >= FEWEST_IMAGES_OF_A_CLASS
        and student.lowest_recall is not None
        and student.lowest_recall >= LEAST_SHARE
    )
