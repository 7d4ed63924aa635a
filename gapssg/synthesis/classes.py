"""Which classes a teacher sees in synthetic images, and when some are missing. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gapssg.errors import shortened
from gapssg.text import listed

_FEWEST_IMAGES = 10  # of which all have one class by chance in 1 of 500 cases, with two classes


def missing_classes(counts: Sequence[int]) -> list[int]:
    """Return the classes that a teacher hardly ever answers, given how often it answers each of K.

    A class is missing if its count is less than a tenth of an even share of the images. With few images a class may be
    absent by chance, so an even share must be at least 10 + ln K images: targets that are drawn evenly then leave a
    class out in less than 1 of 1,000 batches, whatever K is. Whether all of at least 10 images have one class is plain
    without that.
    """
    total, num_classes = sum(counts), len(counts)
    if not _is_one_class(counts) and total < num_classes * (10 + math.log(num_classes)):
        return []
    return [number for number, count in enumerate(counts) if 10 * num_classes * count < total]


def describe_missing(counts: Sequence[int], class_names: Sequence[str], images: str) -> str | None:
    """Say which classes are missing among a teacher's answers, or return None where none is.

    Args:
        counts: How often the teacher answers each class.
        class_names: Their names.
        images: What the images are called, such as "new images".
    """
    missing = missing_classes(counts)
    if not missing:
        return None
    total = f"{sum(counts):,} {images}"
    if _is_one_class(counts):
        name = shortened(class_names[list(counts).index(sum(counts))])
        return f"the teacher answers all {total} with class '{name}'"
    names = listed([f"'{shortened(class_names[number])}'" for number in missing])
    seen = sum(counts[number] for number in missing)
    which = f"class {names}" if len(missing) == 1 else f"{len(missing)} of the {len(counts):,} classes: {names}"
    return f"the teacher answers {f'only {seen:,}' if seen else 'none'} of {total} with {which}"


def _is_one_class(counts: Sequence[int]) -> bool:
    return sum(counts) == max(counts) >= _FEWEST_IMAGES
