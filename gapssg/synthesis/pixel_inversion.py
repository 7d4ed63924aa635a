"""Synthesis of one batch by optimising its pixels, as in DeepInversion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gapssg.synthesis.context import SynthesisContext
from gapssg.synthesis.inversion import Inversion

if TYPE_CHECKING:
    from gapssg.synthesis.deepinversion import DeepInversionSettings

_SIDE_TO_ROLL = 8  # a batch is rolled by up to an eighth of its height and width


class PixelInversion(Inversion):
    """Optimises normalised pixels, clipped to the valid range after each step, and keeps those of the last step."""

    def __init__(self, settings: DeepInversionSettings, context: SynthesisContext) -> None:
        self.settings = settings
        shape = (settings.synthesis_batch_size, *context.image_shape)
        self.pixels = torch.zeros(shape, device=context.runtime.device, requires_grad=True)
        groups = [{"params": [self.pixels], "lr": settings.pixel_learning_rate}]
        super().__init__(settings, context, groups, betas=(0.5, 0.99))

    def _begin(self, epoch: int) -> None:
        super()._begin(epoch)
        with torch.no_grad():
            self.pixels.normal_(generator=self.context.runtime.random_stream("pixels", epoch))

    def _draw(self, stream: torch.Generator, epoch: int) -> tuple[Tensor, ...]:
        """Draw one roll and flip for the batch, as the source index of every row and column."""
        _, height, width = self.context.image_shape
        indices = []
        for side in (height, width):
            most = side // _SIDE_TO_ROLL
            offset = torch.randint(-most, most + 1, (1,), generator=stream, device=stream.device)
            indices.append((torch.arange(side, device=stream.device) - offset) % side)
        flip = torch.rand(1, generator=stream, device=stream.device) < 0.5
        if self.context.augmentation.flip:
            indices[1] = torch.where(flip, indices[1].flip(0), indices[1])
        return tuple(indices)

    def _loss(self, *draws: Tensor) -> dict[str, Tensor]:
        rows, columns = draws
        views = self.pixels.index_select(2, rows).index_select(3, columns)
        views = self.context.runtime.share(views).contiguous(memory_format=torch.channels_last)
        teacher_logits, student_logits = self._responses(views)
        loss, terms = self.settings.loss(
            self._statistics_loss(), teacher_logits, student_logits, self._targets, self.pixels
        )
        return {"loss": loss, **terms}

    def _after_step(self, outputs: dict[str, Tensor]) -> None:
        normalization = self.context.normalization
        images = (self.pixels * normalization.deviation + normalization.mean).clamp(0, 1)
        self._best.copy_(self.context.runtime.share(images))
        self.pixels.copy_((images - normalization.mean) / normalization.deviation)

    def _tensors(self) -> dict[str, Tensor]:
        return {"pixels": self.pixels.detach(), **super()._tensors()}
