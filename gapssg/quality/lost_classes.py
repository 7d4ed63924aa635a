"""Whether a predicted interval could miss classes that a student has lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from gapssg.errors import shortened
from gapssg.evaluation.metrics import count_by_class
from gapssg.intervals import wilson_interval
from gapssg.quality.evidence import evidence_of
from gapssg.runs.failures import FEWEST_IMAGES_OF_A_CLASS, LEAST_SHARE
from gapssg.text import listed, percent

Source = Literal["own pool", "other pool", "probe images"]
"""Where images come from: the pool that the student learned from, another, or code."""


class ClassEvidence(NamedTuple):
    """What images show of the classes of a student, by its teacher's predictions."""

    kept: int
    """Number of the classes with at least 10 images, on a tenth of which the student agrees."""
    lost: Sequence[int]
    """The others with at least 10 images."""
    images: int
    weighted_disagreement: float
    """On all images."""


def class_evidence(teacher_logits: Tensor, student_logits: Tensor) -> ClassEvidence:
    """Return the evidence of logits (N, K) on the same images; raise `NotFinite` if they are not finite."""
    found = evidence_of(teacher_logits, student_logits)
    hits, totals = count_by_class(student_logits.argmax(dim=1), teacher_logits.argmax(dim=1), teacher_logits.shape[1])
    judged = [number for number, total in enumerate(totals) if total >= FEWEST_IMAGES_OF_A_CLASS]
    lost = [number for number in judged if hits[number] / totals[number] < LEAST_SHARE]
    return ClassEvidence(len(judged) - len(lost), lost, found.images, found.weighted_disagreement)


def obstacles_of_classes(found: ClassEvidence, class_names: Sequence[str], high: float, source: Source) -> list[str]:
    """Return why a predicted interval may miss lost classes, one clause at most; empty if it does not.

    Most probe images may be of few classes, so the prediction alone says nothing of the others. A class is lost if the
    student agrees on less than a tenth of at least 10 images of a pool. A class with fewer images may be lost, too; the
    interval must have room for all of these, if they are as frequent as the others.

    Both hold for every pool: a student that never gives a class agrees on none of its images, and one that agrees on
    some of them has it. The disagreement depends on the pool. The student learned from its own, so more disagreement
    there than on real images contradicts the interval. Images of another are new to it, and a good student may disagree
    on more of them than on real images.

    Args:
        found: What the images show.
        class_names: Names of the classes.
        high: Upper end of the interval of the disagreement.
        source: Where the images come from.
    """
    images = source if source == "probe images" else "images of the pool"
    if found.lost and source != "probe images":
        names = listed([f"'{shortened(class_names[number])}'" for number in found.lost])
        what, each = ("class", "it") if len(found.lost) == 1 else ("classes", "each of them")
        return [
            f"the student has lost {what} {names}: it agrees with the teacher on less than {percent(LEAST_SHARE)} of "
            f"the {images} that the teacher assigns to {each}"
        ]
    if 1 - found.kept / len(class_names) > high:
        hint = "; a run's pool may show more (--pool RUN)" if source == "probe images" else ""
        return [
            f"the {images} show for only {found.kept} of the {len(class_names)} classes that the student has not lost "
            f"them{hint}"
        ]
    differs = found.weighted_disagreement
    if source == "own pool" and wilson_interval(differs, found.images)[0] > high:
        return [
            f"the student disagrees with the teacher on {percent(differs)} of the {images} (weighted by its margin), "
            f"more than the {percent(high)} up to which the interval would reach"
        ]
    return []
