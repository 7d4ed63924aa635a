"""Statistics of the synthetic images of a run, and warnings where they are poor or lack classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gapssg.errors import InputError
from gapssg.runs.events import Health
from gapssg.stored import MOST_COUNTED_CLASSES
from gapssg.synthesis.classes import describe_missing
from gapssg.synthesis.health import count_classes, synthesis_health
from gapssg.synthesis.state import put_back

_MOST_IMAGES = 2**50  # keeps counts and sums of counts within int64


class ImageMonitor:
    """Counts the classes of the synthetic images, and warns when images are poor, or begin or cease to lack classes.

    Attributes:
        teacher_counts: Number of images that the teacher assigned to each class, (K,) int64 on the CPU: of the pool, or
            of the newest images of each epoch without a pool.
        target_counts: Number of these images with each class as the target.
        lacks_classes: Whether the last images lacked classes.
    """

    def __init__(self, class_names: Sequence[str], expects_classes: bool) -> None:
        """Start with no images; `expects_classes` tells whether the method makes images of given classes."""
        self.teacher_counts = torch.zeros(len(class_names), dtype=torch.int64)
        self.target_counts = torch.zeros_like(self.teacher_counts)
        self.lacks_classes = False
        self._class_names = class_names
        self._expects_classes = expects_classes

    def state(self) -> dict[str, Tensor]:
        """Return the counts that a checkpoint stores."""
        return {"teacher": self.teacher_counts, "targets": self.target_counts}

    def restore(self, counts: Mapping[str, Tensor], lacks_classes: bool) -> None:
        """Restore the state of a checkpoint; raise `InputError` if the counts are not valid."""
        put_back(counts, self.state())
        self.lacks_classes = lacks_classes
        if any(not 0 <= count <= _MOST_IMAGES for counts in self.state().values() for count in counts.tolist()):
            raise InputError("the class counts in the checkpoint are not valid; restart with --overwrite")

    def check_images(self, images: Tensor, targets: Tensor, teacher_logits: Tensor) -> tuple[Health, list[str]]:
        """Measure new images (N, C, H, W) with targets (N,) and teacher logits (N, K); return health and warnings."""
        health = synthesis_health(images, targets, teacher_logits)
        predicted, wanted = self._count(targets, teacher_logits.argmax(dim=1))
        warnings = health.warnings(len(self._class_names), len(images)) if self._expects_classes else []
        lacking = describe_missing(predicted.tolist(), self._class_names, "new images")
        if lacking is None and self._expects_classes:
            lacking = health.few_classes()
        measured = Health(
            **health._asdict(), teacher_counts=listed_counts(predicted), target_counts=listed_counts(wanted)
        )
        return measured, warnings + self._check_classes(lacking)

    def check_pool(self, targets: Tensor, teacher_predictions: Tensor) -> list[str]:
        """Count the classes of the pool of an earlier run, (N,) each; return warnings."""
        self._count(targets, teacher_predictions)
        return self._check_classes(None)

    def _count(self, targets: Tensor, teacher_predictions: Tensor) -> tuple[Tensor, Tensor]:
        predicted, wanted = (count_classes(each, len(self._class_names)) for each in (teacher_predictions, targets))
        self.teacher_counts += predicted
        self.target_counts += wanted
        return predicted, wanted

    def _check_classes(self, lacking: str | None) -> list[str]:
        """Return a warning if images begin or cease to lack classes; `lacking` says what the new ones lack."""
        lacking = lacking or describe_missing(self.teacher_counts.tolist(), self._class_names, "images so far")
        before, self.lacks_classes = self.lacks_classes, lacking is not None
        if lacking is not None:
            return [] if before else [lacking]
        return ["resolved: the new images are no longer found to lack classes"] if before else []


def listed_counts(counts: Tensor) -> list[int] | None:
    """Return counts (K,) as a list for events and results; None with too many classes."""
    return counts.tolist() if len(counts) <= MOST_COUNTED_CLASSES else None
