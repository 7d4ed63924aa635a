"""Detects classes that a teacher hardly ever predicts on synthetic images. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gapssg.errors import shortened
from gapssg.text import listed

_FEWEST_IMAGES = 10  # with two classes, so many have one class by chance in 1 of 500 cases


def missing_classes(counts: Sequence[int]) -> list[int]:
    """Return the classes that a teacher hardly ever predicts, given its number of predictions of each of K classes.

    A class is missing if its count is below a tenth of an even share of the images. With few images a class may be
    absent by chance, so an even share must be at least 10 + ln K images: uniformly drawn targets then leave a class out
    in less than 1 of 1,000 batches, for every K. If all images have one class, 10 images are enough.
    """
    total, num_classes = sum(counts), len(counts)
    if not _is_one_class(counts) and total < num_classes * (10 + math.log(num_classes)):
        return []
    return [number for number, count in enumerate(counts) if 10 * num_classes * count < total]


def describe_missing(counts: Sequence[int], class_names: Sequence[str], images: str) -> str | None:
    """Return a sentence that names the classes missing among a teacher's predictions of such images, or None."""
    missing = missing_classes(counts)
    if not missing:
        return None
    total = f"{sum(counts):,} {images}"
    if _is_one_class(counts):
        name = shortened(class_names[list(counts).index(sum(counts))])
        return f"the teacher predicts class '{name}' for all {total}"
    names = listed([f"'{shortened(class_names[number])}'" for number in missing])
    seen = sum(counts[number] for number in missing)
    which = f"class {names}" if len(missing) == 1 else f"{len(missing)} of the {len(counts):,} classes ({names})"
    return f"the teacher predicts {which} for {f'only {seen:,}' if seen else 'none'} of {total}"


def _is_one_class(counts: Sequence[int]) -> bool:
    return sum(counts) == max(counts) >= _FEWEST_IMAGES
