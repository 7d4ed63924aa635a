"""Diagnostics of a batch of synthetic images, and warnings of a collapse."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_LOWEST_DIVERSITY = 0.01  # a mean standard deviation of 2.5 of 255 grey levels: nearly identical images
_LOWEST_CLASS_ENTROPY = 0.5  # as if the teacher predicted at most sqrt(K) of K classes
_HIGHEST_SATURATION = 0.95  # almost every pixel is black or white


class SynthesisHealth(NamedTuple):
    """Diagnostics of one batch of images."""

    target_agreement: float
    """Share of images that the teacher classifies as their target."""
    class_entropy: float
    """Entropy of the teacher's mean class probabilities, divided by log K: 1 is balanced."""
    answer_entropy: float
    """The same for the shares of its predictions. The probabilities of an uncertain teacher can be balanced although it
    predicts one class for every image."""
    diversity: float
    """Mean over pixels of the standard deviation within a class, in [0, 0.5]."""
    saturation: float
    """Share of pixel values within one grey level of black or white."""

    def few_classes(self) -> str | None:
        """Return a warning if the teacher's probabilities have collapsed to few classes."""
        if self.class_entropy < _LOWEST_CLASS_ENTROPY:
            return f"the new images have collapsed to few classes (class entropy {self.class_entropy:.2f} of 1)"
        return None

    def warnings(self, num_classes: int, count: int) -> list[str]:
        """Return a warning for each other sign that `count` images are of little use.

        A target agreement at chance is no such sign: while the student tracks the teacher, the regulatory factor
        gives the targets almost no weight.
        """
        found = []
        chance = 1 / num_classes
        if self.target_agreement < chance - 4 * (chance * (1 - chance) / count) ** 0.5:
            found.append(
                f"the teacher classifies only {self.target_agreement:.0%} of the new images as their target, "
                "less than chance"
            )
        if self.diversity < _LOWEST_DIVERSITY:
            found.append(f"the new images of a class are nearly identical (std {self.diversity:.4f} in [0, 0.5])")
        if self.saturation > _HIGHEST_SATURATION:
            found.append(f"{self.saturation:.0%} of the new pixels are black or white")
        return found


def synthesis_health(images: Tensor, targets: Tensor, teacher_logits: Tensor) -> SynthesisHealth:
    """Measure the health of images (N, C, H, W) in [0, 1] with targets (N,) and the teacher's logits (N, K).

    The diversity ignores classes with fewer than two images. If no class has two, it is that of the whole batch.
    """
    mean_probabilities = teacher_logits.double().softmax(dim=1).mean(dim=0)
    answers = count_classes(teacher_logits.argmax(dim=1), teacher_logits.shape[1])
    groups = [images[targets == target] for target in torch.unique(targets)]
    deviations = [group.std(dim=0).mean() for group in groups if len(group) > 1]
    diversity = torch.stack(deviations).mean() if deviations else images.std(dim=0).mean()
    saturated = (images < 1.5 / 255) | (images > 253.5 / 255)
    return SynthesisHealth(
        target_agreement=(teacher_logits.argmax(dim=1) == targets).double().mean().item(),
        class_entropy=_balance(mean_probabilities),
        answer_entropy=_balance(answers.double() / answers.sum()),
        diversity=diversity.item(),
        saturation=saturated.double().mean().item(),
    )


def count_classes(classes: Tensor, num_classes: int) -> Tensor:
    """Count each of K classes among (N,) int64 on any device: (K,) int64 on the CPU."""
    return torch.bincount(classes.cpu(), minlength=num_classes)


def _balance(shares: Tensor) -> float:
    """Return the entropy of shares (K,) divided by log K, in [0, 1]."""
    entropy: float = torch.special.entr(shares).sum().item()
    return entropy / math.log(len(shares))
