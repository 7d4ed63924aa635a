"""Synthesis with a running average of the batch statistics, as in FastDFKD and NAYER."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from gapssg.models.profile import executed_batch_norm_layers
from gapssg.synthesis.base import AveragedInversionSettings
from gapssg.synthesis.batch_norm import observed_inputs
from gapssg.synthesis.context import SynthesisContext
from gapssg.synthesis.inversion import GeneratorInversion
from gapssg.synthesis.state import take_all


class AveragedInversion(GeneratorInversion):
    """Mixes the statistics of a batch with a running average before comparing them with the teacher's.

    So no batch has to match the teacher's statistics alone within a few steps. In the warm-up the adversarial term is
    0, because the student is not trained yet.
    """

    def __init__(
        self, settings: AveragedInversionSettings, context: SynthesisContext, latent_learning_rate: float | None = None
    ) -> None:
        self.averaged = settings
        device = context.runtime.device
        layers = executed_batch_norm_layers(context.teacher, context.image_shape)
        # Mean and variance of each layer, concatenated in the order of execution.
        buffers = [[layer.running_mean, layer.running_var] for layer in layers]
        self._expected = torch.cat([each for pair in buffers for each in pair]).float()  # type: ignore[misc]
        self._sizes = [len(each) for pair in buffers for each in pair]  # type: ignore[arg-type]
        self._earlier = torch.zeros_like(self._expected)
        self._share_of_earlier = torch.zeros((), device=device)
        self._latest = torch.zeros_like(self._expected)
        self._adversarial = torch.zeros((), device=device)
        self._moments: list[Tensor] = []
        super().__init__(settings, context, latent_learning_rate)

    def _begin(self, epoch: int) -> None:
        super()._begin(epoch)
        self._adversarial.fill_(epoch >= self.averaged.adversarial_from(self.context.epochs))

    def _observing(self) -> AbstractContextManager[Any]:
        def observe(layer: nn.Module, inputs: Tensor) -> None:
            self._moments += self._moments_of(inputs)

        return observed_inputs(self.context.teacher, observe)

    def _loss(self, *draws: Tensor) -> dict[str, Tensor]:
        images, views = self._make_views(draws)
        self._moments.clear()
        teacher_logits, student_logits = self._responses(views)
        moments = torch.cat(take_all(self._moments))
        mixed = moments.lerp(self._earlier, self._share_of_earlier)
        parts = torch.split(mixed - self._expected, self._sizes)
        statistics_loss = torch.stack([part.norm() for part in parts]).sum()
        student_logits = torch.where(self._adversarial > 0, student_logits, teacher_logits)
        loss, terms = self.settings.loss(statistics_loss, teacher_logits, student_logits, self._targets)
        return {"loss": loss, **terms, "images": images, "moments": moments}

    def _after_step(self, outputs: dict[str, Tensor]) -> None:
        super()._after_step(outputs)
        self._latest.copy_(outputs["moments"])

    def _finish(self, epoch: int) -> None:
        super()._finish(epoch)
        self._earlier.copy_(self._latest.lerp(self._earlier, self._share_of_earlier))
        self._share_of_earlier.fill_(self.averaged.statistics_momentum)

    def _lasting(self) -> dict[str, Tensor]:
        return {**super()._lasting(), "earlier": self._earlier, "share_of_earlier": self._share_of_earlier}

    def _tensors(self) -> dict[str, Tensor]:
        return {"latest": self._latest, "adversarial": self._adversarial, **super()._tensors()}
