"""Synthesis from a meta-learned generator, as in FastDFKD."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gapssg.core.training_step import forget_steps
from gapssg.models.generator import INITIAL_DEVIATION, Generator, reset_layers, reset_layers_to_torch_default
from gapssg.synthesis.averaged_inversion import AveragedInversion
from gapssg.synthesis.context import SynthesisContext
from gapssg.synthesis.state import halve_learning_rates, make_adam, moments_of

if TYPE_CHECKING:
    from gapssg.synthesis.fast import FastSettings


class MetaInversion(AveragedInversion):
    """Starts each synthesis from a meta-generator, which learns from the gradients of all steps (first-order MAML)."""

    def __init__(self, settings: FastSettings, context: SynthesisContext) -> None:
        runtime = context.runtime
        self.fast = settings
        self.meta = Generator(
            context.image_shape, settings.latent_size, settings.generator_width, settings.synthesis_scale
        )
        runtime.place(self.meta)
        reset_layers_to_torch_default(self.meta, runtime.random_stream("meta-generator"))
        meta_rate = settings.generator_learning_rate * settings.generator_steps
        groups = [{"params": [*self.meta.parameters()], "lr": meta_rate}]
        self._meta_optimizer = make_adam(groups, (0.5, 0.999), runtime)
        for parameter in self.meta.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self._meta_optimizer.step()  # creates the moments; zero gradients change no weight
        forget_steps(self._meta_optimizer)
        self._gradients = [torch.zeros_like(parameter) for parameter in self.meta.parameters()]
        super().__init__(settings, context, latent_learning_rate=settings.latent_learning_rate)

    def slow_down(self) -> float:
        """Halve every learning rate permanently, and return the generator's."""
        halve_learning_rates(self._meta_optimizer)
        return super().slow_down()

    def _begin(self, epoch: int) -> None:
        super()._begin(epoch)
        if epoch == self.fast.restart_epoch(self.context.epochs):
            rng = self.context.runtime.random_stream("meta-generator", epoch)
            for layer in (self.meta.linear, self.meta.first_norm):
                reset_layers(layer, rng)
            with torch.no_grad():  # around 0, not 1, as the published code draws it
                self.meta.first_norm.weight.normal_(0.0, INITIAL_DEVIATION, generator=rng)
        with torch.no_grad():
            for place, start in zip(self.generator.state_dict().values(), self.meta.state_dict().values(), strict=True):
                place.copy_(start)
            for gradient in self._gradients:
                gradient.zero_()

    def _after_step(self, outputs: dict[str, Tensor]) -> None:
        super()._after_step(outputs)
        for total, parameter in zip(self._gradients, self.generator.parameters(), strict=True):
            assert parameter.grad is not None
            total += parameter.grad

    def _finish(self, epoch: int) -> None:
        for parameter, gradient in zip(self.meta.parameters(), self._gradients, strict=True):
            parameter.grad = gradient
        self._meta_optimizer.step()
        super()._finish(epoch)

    def _lasting(self) -> dict[str, Tensor]:
        meta = {f"meta.{name}": tensor for name, tensor in self.meta.state_dict().items()}
        return {**meta, **moments_of(self._meta_optimizer, "meta_moments"), **super()._lasting()}

    def _tensors(self) -> dict[str, Tensor]:
        gradients = {f"gradients.{index}": gradient for index, gradient in enumerate(self._gradients)}
        return {**gradients, **super()._tensors()}
