"""Synthesis by a generator that is re-initialised for each batch and optimised together with its latent."""

from __future__ import annotations

from collections.abc import Generator as Steps

import torch
from torch import Tensor, nn

from gapssg.augment import Shifts, crop_and_flip
from gapssg.errors import RunError
from gapssg.models.frozen import frozen
from gapssg.models.generator import Generator
from gapssg.synthesis.base import InversionSettings, SynthesisContext
from gapssg.synthesis.batch_norm import observed_statistics


class GeneratorInversion:
    """Optimises generator and latent for one batch, and keeps the images of the step with the lowest loss."""

    def __init__(self, settings: InversionSettings, context: SynthesisContext) -> None:
        """Make the generator and its optimizer, which every synthesis re-initialises in place."""
        runtime = context.runtime
        self.settings = settings
        self.context = context
        self.step_count = settings.generator_steps
        self.generator = Generator(
            context.image_shape, latent_size=settings.latent_size, width=settings.generator_width
        )
        runtime.place(self.generator)
        self.latent = torch.zeros(
            settings.synthesis_batch_size, settings.latent_size, device=runtime.device, requires_grad=True
        )
        self._compute = runtime.compile(self._loss)

    def synthesise(self, student: nn.Module, targets: Tensor, epoch: int) -> Steps[dict[str, Tensor], None, Tensor]:
        """Optimise for `targets` (N,); return the images (N, C, H, W) of the step with the lowest loss.

        Raises:
            RunError: No step had a finite loss.
        """
        runtime = self.context.runtime
        self.generator.train()
        self.generator.reset_parameters(runtime.random_stream("generator", epoch))
        with torch.no_grad():
            self.latent.normal_(generator=runtime.random_stream("latent", epoch))
        optimizer = torch.optim.Adam(
            [*self.generator.parameters(), self.latent],
            lr=self.settings.generator_learning_rate,
            betas=(0.5, 0.999),
            fused=True,
        )
        stream = runtime.random_stream("synthesis-augmentation", epoch)
        lowest = torch.full((), torch.inf, device=runtime.device)
        best = torch.zeros(len(targets), *self.context.image_shape, device=runtime.device)
        with frozen(student), observed_statistics(self.context.teacher) as distances:
            for _ in range(self.settings.generator_steps):
                shifts = self.context.augmentation.draw(len(targets), stream)
                optimizer.zero_grad(set_to_none=False)
                distances.clear()
                loss, terms, images = self._compute(student, distances, targets, shifts)
                torch.autograd.backward(loss)
                optimizer.step()
                with torch.no_grad():
                    best = torch.where(loss < lowest, images, best)
                    lowest = torch.minimum(loss, lowest)
                yield terms
        if not torch.isfinite(lowest):
            raise RunError(
                f"the synthesis of epoch {epoch + 1} diverged: no step had a finite loss; "
                "lower method.generator_learning_rate"
            )
        return best

    def _loss(
        self, student: nn.Module, distances: list[Tensor], targets: Tensor, shifts: Shifts
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the loss, its terms without gradient, and the images without gradient."""
        context = self.context
        with context.runtime.autocast():
            images = self.generator(self.latent)
            views = context.normalization(crop_and_flip(images, shifts))
            teacher_logits = context.teacher(views).float()
            student_logits = student(views).float()
        statistics_loss = torch.stack(distances).sum()
        loss, terms = self.settings.loss(statistics_loss, teacher_logits, student_logits, targets)
        terms = {"synthesis_loss": loss, **terms}
        return loss, {name: term.detach() for name, term in terms.items()}, images.detach()
