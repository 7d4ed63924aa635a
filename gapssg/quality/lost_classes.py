"""Whether a predicted interval could miss classes that a student has lost."""

from __future__ import annotations

from collections.abc import Sequence

from gapssg.errors import shortened
from gapssg.evaluation.judgement import LEAST_SHARE
from gapssg.evaluation.metrics import FEWEST_IMAGES_OF_A_CLASS, ClassCounts
from gapssg.intervals import wilson_interval
from gapssg.runs.results.quality import ProbeEvidence
from gapssg.text import listed, percent


def obstacles_of_classes(
    counts: ClassCounts, found: ProbeEvidence, class_names: Sequence[str], high: float, from_pool: bool
) -> list[str]:
    """Return why a predicted interval may miss lost classes, one clause at most; empty if it does not.

    Most probe images may be of few classes, so the prediction alone says nothing of the others. A class is lost if the
    student agrees on less than a tenth of at least 10 images. A class with fewer images may be lost, too; the interval
    must have room for all of these, if they are as frequent as the others.

    Args:
        counts: By the teacher's prediction, the number of images and of agreements.
        found: The evidence of the same images.
        class_names: Names of the classes.
        high: Upper end of the interval of the disagreement.
        from_pool: Whether the images are of the pool, else probe images. The student learned from such a pool, so more
            disagreement there than on real images contradicts the interval.
    """
    images, differs = "images of the pool" if from_pool else "probe images", found.weighted_disagreement
    judged = {
        number: hits / count
        for number, (hits, count) in enumerate(zip(*counts, strict=True))
        if count >= FEWEST_IMAGES_OF_A_CLASS
    }
    lost = [number for number, share in judged.items() if share < LEAST_SHARE]
    known = len(judged) - len(lost)
    if lost and from_pool:
        names = listed([f"'{shortened(class_names[number])}'" for number in lost])
        return [
            f"the student has lost {'class' if len(lost) == 1 else 'classes'} {names}: it agrees with the teacher on "
            f"less than {percent(LEAST_SHARE)} of the {images} that the teacher assigns to "
            f"{'it' if len(lost) == 1 else 'each of them'}"
        ]
    if 1 - known / len(class_names) > high:
        hint = "" if from_pool else "; a run's pool may show more (--pool RUN)"
        return [
            f"the {images} show for only {known} of the {len(class_names)} classes that the student has not lost them"
            f"{hint}"
        ]
    if from_pool and wilson_interval(differs, found.images)[0] > high:
        return [
            f"the student disagrees with the teacher on {percent(differs)} of the {images} (weighted by its margin), "
            f"more than the {percent(high)} up to which the interval would reach"
        ]
    return []
