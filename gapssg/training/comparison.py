"""How student and teacher differ on synthetic images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gapssg.evaluation.metrics import agreement, largest_share
from gapssg.synthesis.losses import gap_bounds, reality_gap
from gapssg.synthesis.synthesizer import Synthesizer

MOST_COMPARED = 10_000  # images, enough to know a share to one percentage point
_FEWEST_SAMPLES, _SAMPLES_OF_A_CLASS = 1000, 20  # of a generator


class Differences(NamedTuple):
    """How student and teacher differ on the newest images."""

    reality_gap: float
    """NaN with infinite logits."""
    inherent_gap_bound: float | None
    """None if not finite."""
    derived_gap_bound: float | None
    """None if not finite."""
    agreement: float
    agreement_baseline: float
    """Agreement of a constant prediction, the teacher's most frequent class."""


def differences(teacher_logits: Tensor, student_logits: Tensor, targets: Tensor) -> Differences:
    """Compare logits (N, K) of teacher and student on images with these targets (N,)."""
    gap = reality_gap(teacher_logits, student_logits).item()
    bounds = gap_bounds(teacher_logits, student_logits, student_logits, targets)
    inherent, derived = (bound.item() if bound.isfinite() else None for bound in bounds)
    baseline = largest_share(teacher_logits.argmax(dim=1))
    return Differences(gap, inherent, derived, agreement(teacher_logits, student_logits), baseline)


def images_to_compare(synthesizer: Synthesizer, num_classes: int, batch_size: int, epoch: int) -> Iterator[Tensor]:
    """Yield batches of images on which student and teacher are compared at the end of a run of so many epochs.

    They are the synthesised ones of the pool, on which the student has trained, or 10,000 spread evenly over a larger
    one. Without a pool they are new samples of the generator: at least 1,000 and 20 per class, at most 10,000.
    """
    pool = synthesizer.pool
    if pool is not None:
        synthesised = pool.synthesised
        count = min(len(synthesised), MOST_COMPARED)
        chosen = synthesised[(torch.arange(count) * len(synthesised) // count).to(synthesised.device)]
        for start in range(0, count, batch_size):
            yield pool.images[chosen[start : start + batch_size]]
        return
    samples = min(max(_FEWEST_SAMPLES, _SAMPLES_OF_A_CLASS * num_classes), MOST_COMPARED)
    synthesizer.start_sampling(epoch, 0, 0)
    for _ in range(-(-samples // batch_size)):
        yield synthesizer.sample(batch_size)
