"""Synthesis by a generator that is re-initialised for each batch and optimised together with its latent."""

from __future__ import annotations

from collections.abc import Generator as Steps

import torch
from torch import Tensor, nn

from gapssg.augment import Shifts, crop_and_flip
from gapssg.errors import Diverged, InputError
from gapssg.models.frozen import frozen
from gapssg.models.generator import Generator
from gapssg.step import TrainingStep, forget_steps, step_size
from gapssg.synthesis.base import InversionSettings, SynthesisContext
from gapssg.synthesis.batch_norm import observed_statistics

_STEPS_DONE = "steps_done"


class GeneratorInversion:
    """Optimises generator and latent for one batch, and keeps the images of the step with the lowest loss."""

    def __init__(self, settings: InversionSettings, context: SynthesisContext) -> None:
        """Make the generator and its optimizer, which every synthesis puts back to their start in place.

        A captured step goes on with the same memory in the next synthesis.
        """
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
        self._targets = torch.zeros(settings.synthesis_batch_size, dtype=torch.int64, device=runtime.device)
        self._lowest = torch.full((), torch.inf, device=runtime.device)
        self._best = torch.zeros(settings.synthesis_batch_size, *context.image_shape, device=runtime.device)
        self._distances: list[Tensor] = []
        self._student: nn.Module | None = None
        self._steps_done = 0
        optimizer = torch.optim.Adam(
            [*self.generator.parameters(), self.latent],
            lr=step_size(settings.generator_learning_rate, runtime.device),
            betas=(0.5, 0.999),
            fused=True,
            capturable=runtime.device.type == "cuda",
        )
        self._optimizer = optimizer
        self._step = TrainingStep("the synthesis step", self._loss, optimizer, runtime, after=self._keep_best)
        self._step.make_state()

    def synthesise(
        self, student: nn.Module, targets: Tensor, epoch: int
    ) -> Steps[tuple[int, dict[str, Tensor]], None, Tensor]:
        """Optimise for `targets` (N,); return the images (N, C, H, W) of the step with the lowest loss.

        Yields:
            Steps done, and the terms of the loss of the last. The next step may overwrite them.

        Raises:
            Diverged: The loss of a step was not finite.
        """
        runtime, settings = self.context.runtime, self.settings
        self._student = student
        self.generator.train()
        if self._steps_done == 0:
            self._begin(epoch)
        with torch.no_grad():
            self._targets.copy_(targets)
        stream = runtime.random_stream("synthesis-augmentation", epoch)
        for _ in range(self._steps_done):
            self.context.augmentation.draw(len(targets), stream)
        self._distances.clear()
        with frozen(student), observed_statistics(self.context.teacher, self._distances):
            while self._steps_done < settings.generator_steps:
                outputs = self._step(*self.context.augmentation.draw(len(targets), stream))
                self._steps_done += 1
                terms = {name: term for name, term in outputs.items() if name not in ("loss", "images")}
                yield self._steps_done, {"synthesis_loss": outputs["loss"], **terms}
        self._steps_done = 0
        if self._step.skipped.item() > 0:
            raise Diverged(f"the synthesis of epoch {epoch + 1} diverged; lower method.generator_learning_rate")
        return self._best.clone()

    def slow_down(self) -> float:
        """Halve the learning rate of generator and latent from now on, and return it."""
        rate: Tensor = self._optimizer.param_groups[0]["lr"]
        rate.div_(2)
        return rate.item()

    def state_dict(self) -> dict[str, Tensor]:
        """Return weights, moments and best images of a synthesis under way; nothing between syntheses."""
        if self._steps_done == 0:
            return {}
        return {_STEPS_DONE: torch.tensor(self._steps_done), **self._tensors()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Let the next synthesis go on where `state_dict` was called.

        Raises:
            InputError: The tensors do not fit.
        """
        if not state:
            return
        places = self._tensors()
        fit = state.keys() == places.keys() | {_STEPS_DONE} and all(
            state[name].shape == place.shape and state[name].dtype == place.dtype for name, place in places.items()
        )
        steps_done = int(state[_STEPS_DONE].flatten()[0]) if fit and state[_STEPS_DONE].numel() == 1 else 0
        if not 0 < steps_done <= self.settings.generator_steps:
            raise InputError("the synthesis in the checkpoint does not fit the settings of the run; start it anew")
        with torch.no_grad():
            for name, place in places.items():
                place.copy_(state[name])
        self._steps_done = steps_done

    def _begin(self, epoch: int) -> None:
        """Put everything back, in place, to the start of the synthesis of an epoch."""
        runtime = self.context.runtime
        self.generator.reset_parameters(runtime.random_stream("generator", epoch))
        forget_steps(self._optimizer)
        with torch.no_grad():
            self.latent.normal_(generator=runtime.random_stream("latent", epoch))
            self._lowest.fill_(torch.inf)
            self._best.zero_()
            self._step.skipped.zero_()

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"generator.{name}": tensor for name, tensor in self.generator.state_dict().items()}
        for index, parameter in enumerate(self._optimizer.param_groups[0]["params"]):
            moments = self._optimizer.state[parameter]
            tensors |= {f"moments.{index}.{name}": tensor for name, tensor in moments.items()}
        best = {"lowest": self._lowest, "best": self._best, "skipped": self._step.skipped}
        return {"latent": self.latent.detach(), **best, **tensors}

    def _loss(self, *shifts: Tensor) -> dict[str, Tensor]:
        """Return the loss, its terms, and the images."""
        assert self._student is not None
        context = self.context
        with context.runtime.autocast():
            images = self.generator(self.latent)
            views = context.normalization(crop_and_flip(images, Shifts(*shifts)))
            teacher_logits = context.teacher(views).float()
            student_logits = self._student(views).float()
        statistics_loss = torch.stack(self._distances).sum()
        self._distances.clear()  # empty before each step: a compiled step is compiled anew for another length
        loss, terms = self.settings.loss(statistics_loss, teacher_logits, student_logits, self._targets)
        return {"loss": loss, **terms, "images": images}

    def _keep_best(self, outputs: dict[str, Tensor]) -> None:
        self._best.copy_(torch.where(outputs["loss"] < self._lowest, outputs["images"], self._best))
        self._lowest.copy_(torch.minimum(outputs["loss"], self._lowest))
