"""Synthesis from a meta-learned generator, as in FastDFKD."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gapssg.core.augment import Shifts
from gapssg.core.training_step import forget_steps
from gapssg.models.generator import Generator, reset_layers
from gapssg.models.profile import executed_batch_norm_layers
from gapssg.synthesis.base import SynthesisContext
from gapssg.synthesis.batch_norm import batch_moments, observed_inputs
from gapssg.synthesis.inversion import GeneratorInversion
from gapssg.synthesis.state import halve_learning_rates, make_adam, moments_of, take_all

if TYPE_CHECKING:
    from gapssg.synthesis.fast import FastSettings


class MetaInversion(GeneratorInversion):
    """Starts each synthesis from a meta-generator, which learns from the gradients of all steps (first-order MAML).

    The statistics of a batch are mixed with a running average of earlier batches before they are compared with the
    teacher's, so that no batch has to match them alone within a few steps.
    """

    def __init__(self, settings: FastSettings, context: SynthesisContext) -> None:
        """Create the meta-generator and the running statistics, which persist for the whole run."""
        runtime = context.runtime
        device = runtime.device
        self.fast = settings
        self.meta = Generator(context.image_shape, latent_size=settings.latent_size, width=settings.generator_width)
        runtime.place(self.meta)
        self.meta.reset_parameters(runtime.random_stream("meta-generator"))
        meta_rate = settings.generator_learning_rate * settings.generator_steps
        groups = [{"params": [*self.meta.parameters()], "lr": meta_rate}]
        self._meta_optimizer = make_adam(groups, (0.5, 0.999), runtime)
        for parameter in self.meta.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self._meta_optimizer.step()  # creates the moments; zero gradients change no weight
        forget_steps(self._meta_optimizer)
        self._gradients = [torch.zeros_like(parameter) for parameter in self.meta.parameters()]
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
        super().__init__(settings, context, latent_learning_rate=settings.latent_learning_rate)

    def slow_down(self) -> float:
        """Halve every learning rate permanently, and return the generator's."""
        halve_learning_rates(self._meta_optimizer)
        return super().slow_down()

    def _begin(self, epoch: int) -> None:
        super()._begin(epoch)
        epochs = self.context.epochs
        if epoch == round(self.fast.restart * epochs) and epoch > 0:
            rng = self.context.runtime.random_stream("meta-generator", epoch)
            for layer in (self.meta.linear, self.meta.first_norm):
                reset_layers(layer, rng)
        with torch.no_grad():
            self._adversarial.fill_(epoch >= self.fast.warm_up_epochs(epochs))
            for place, start in zip(self.generator.state_dict().values(), self.meta.state_dict().values(), strict=True):
                place.copy_(start)
            for gradient in self._gradients:
                gradient.zero_()

    def _observing(self) -> AbstractContextManager[Any]:
        def observe(layer: nn.Module, inputs: Tensor) -> None:
            self._moments += batch_moments(inputs)

        return observed_inputs(self.context.teacher, observe)

    def _loss(self, *draws: Tensor) -> dict[str, Tensor]:
        context = self.context
        with context.runtime.autocast():
            images = self.generator(self.latent)
        views = context.normalization(context.augmentation(images, Shifts(*draws)))
        teacher_logits, student_logits = self._responses(views)
        moments = torch.cat(take_all(self._moments))
        mixed = moments.lerp(self._earlier, self._share_of_earlier)
        parts = torch.split(mixed - self._expected, self._sizes)
        statistics_loss = torch.stack([part.norm() for part in parts]).sum()
        # The weight of the divergence is 0 in the warm-up: the student is not trained yet.
        student_logits = torch.where(self._adversarial > 0, student_logits, teacher_logits)
        loss, terms = self.settings.loss(statistics_loss, teacher_logits, student_logits, self._targets)
        return {"loss": loss, **terms, "images": images, "moments": moments}

    def _after_step(self, outputs: dict[str, Tensor]) -> None:
        super()._after_step(outputs)
        self._latest.copy_(outputs["moments"])
        for total, parameter in zip(self._gradients, self.generator.parameters(), strict=True):
            assert parameter.grad is not None
            total += parameter.grad

    def _finish(self, epoch: int) -> None:
        """Update the meta-generator and the running statistics."""
        for parameter, gradient in zip(self.meta.parameters(), self._gradients, strict=True):
            parameter.grad = gradient
        self._meta_optimizer.step()
        self._earlier.copy_(self._latest.lerp(self._earlier, self._share_of_earlier))
        self._share_of_earlier.fill_(self.fast.statistics_momentum)

    def _lasting(self) -> dict[str, Tensor]:
        meta = {f"meta.{name}": tensor for name, tensor in self.meta.state_dict().items()}
        earlier = {"earlier": self._earlier, "share_of_earlier": self._share_of_earlier}
        return {**meta, **moments_of(self._meta_optimizer, "meta_moments"), **earlier}

    def _tensors(self) -> dict[str, Tensor]:
        gradients = {f"gradients.{index}": gradient for index, gradient in enumerate(self._gradients)}
        return {"latest": self._latest, "adversarial": self._adversarial, **gradients, **super()._tensors()}
