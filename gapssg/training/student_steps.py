"""The inputs of the student's steps, and their loss."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gapssg.core.augment import Mixture, Shifts, draw_mixture, mix
from gapssg.synthesis.context import SynthesisContext
from gapssg.synthesis.labelled_views import LabelledViews
from gapssg.synthesis.synthesizer import Synthesizer


class StudentSteps:
    """Steps on new views of the images, which the teacher labels in the step."""

    def __init__(self, context: SynthesisContext, synthesizer: Synthesizer, student: nn.Module, mixup: float) -> None:
        """Take images of `synthesizer`, each of which is mixed with another one with probability `mixup`."""
        self._context, self._synthesizer, self._student, self._mixup = context, synthesizer, student, mixup

    def batches(self, epoch: int, index: int, start: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield the inputs of the steps of round `index` of an epoch, from step `start` on."""
        stream = self._context.runtime.random_stream("augmentation", epoch, index)
        for _ in range(start):
            self.draw(stream)
        self._synthesizer.start_sampling(epoch, index, start)
        while True:
            yield self._inputs(self.draw(stream))

    def draw(self, stream: torch.Generator) -> tuple[Tensor, ...]:
        """Draw the crops and flips of a batch and, with mixup, the partners and shares."""
        count = self._context.batch_size
        shifts = self._context.augmentation.draw(count, stream)
        return (*shifts, *draw_mixture(count, self._mixup, stream)) if self._mixup else shifts

    def views(self, images: Tensor, *drawn: Tensor) -> Tensor:
        """Return the views (N, C, H, W) of the inputs of a step."""
        rows, columns, flips, *mixture = drawn
        if self._synthesizer.augments:
            images = self._context.augmentation(images, Shifts(rows, columns, flips))
        return mix(images, Mixture(*mixture)) if mixture else images

    def loss(self, images: Tensor, *drawn: Tensor) -> dict[str, Tensor]:
        """Return the loss for the inputs of a step, as `TrainingStep` needs it."""
        runtime = self._context.runtime
        views = self._context.normalization(runtime.share(self.views(images, *drawn)))
        with runtime.autocast():
            with torch.no_grad():
                teacher_logits = self._context.teacher(views).float()
            student_logits = self._student(views).float()
        student_logits, teacher_logits = runtime.whole(student_logits, teacher_logits)
        return {"loss": self._synthesizer.distillation_loss(student_logits, teacher_logits)}

    def _inputs(self, drawn: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self._synthesizer.sample(self._context.batch_size), *drawn


class LabelledSteps(StudentSteps):
    """Steps on views that the teacher has labelled."""

    def __init__(
        self, context: SynthesisContext, synthesizer: Synthesizer, student: nn.Module, labelled: LabelledViews
    ) -> None:
        """Take views of `labelled`."""
        super().__init__(context, synthesizer, student, mixup=0.0)
        self._labelled = labelled

    def batches(self, epoch: int, index: int, start: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield the views and logits of the steps of round `index` of an epoch, from step `start` on."""
        deque(self._labelled.extend(), maxlen=0)  # what no phase has labelled
        yield from super().batches(epoch, index, start)

    def draw(self, stream: torch.Generator) -> tuple[Tensor, ...]:
        """Draw the numbers of the views of a batch."""
        return (self._labelled.draw(self._context.batch_size, stream),)

    def views(self, images: Tensor, *drawn: Tensor) -> Tensor:
        """Return the views (N, C, H, W) of the inputs of a step."""
        return images

    def loss(self, images: Tensor, *drawn: Tensor) -> dict[str, Tensor]:
        """Return the loss for views and the teacher's logits, as `TrainingStep` needs it."""
        (teacher_logits,), runtime = drawn, self._context.runtime
        with runtime.autocast():
            own_logits = self._student(self._context.normalization(runtime.share(images))).float()
        (student_logits,) = runtime.whole(own_logits)
        return {"loss": self._synthesizer.distillation_loss(student_logits, teacher_logits)}

    def _inputs(self, drawn: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self._labelled.batch(*drawn)
