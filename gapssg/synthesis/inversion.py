"""Synthesis of one batch by optimisation: the base class, and optimising a generator with its latent."""

from __future__ import annotations

import copy
from collections.abc import Generator as Steps
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from gapssg.core.augment import Shifts
from gapssg.core.training_step import TrainingStep, forget_steps
from gapssg.errors import Diverged, InputError
from gapssg.models.frozen import frozen
from gapssg.models.generator import Generator
from gapssg.synthesis.base import InversionSettings, PoolMethodSettings
from gapssg.synthesis.batch_norm import observed_statistics, whole_batch_moments
from gapssg.synthesis.context import SynthesisContext
from gapssg.synthesis.input_statistics import expected_input_statistics, observed_input_statistics
from gapssg.synthesis.requirements import image_prior
from gapssg.synthesis.state import (
    STATE_MISMATCH,
    halve_learning_rates,
    make_adam,
    moments_of,
    own_shares,
    put_back,
    take_all,
)

_STEPS_DONE = "steps_done"


class Inversion:
    """Optimises parameters for one batch of images.

    The images of the step with the lowest loss are kept, unless a subclass overrides that. Subclasses define the
    parameters, their initial values and the loss. Every synthesis resets the parameters in place, so that a captured
    step keeps using the same memory.
    """

    generator: Generator | None = None

    def __init__(
        self,
        settings: PoolMethodSettings,
        context: SynthesisContext,
        groups: Sequence[Mapping[str, Any]],
        betas: tuple[float, float] = (0.5, 0.999),
    ) -> None:
        """Create the optimizer of `groups`, in the format of `make_adam`."""
        device, count = context.runtime.device, settings.synthesis_batch_size
        self.context = context
        self.step_count = settings.step_count
        self._moments_of = whole_batch_moments(context.runtime)
        self._targets = torch.zeros(count, dtype=torch.int64, device=device)
        self._lowest = torch.full((), torch.inf, device=device)
        # As all that is kept of the images of a step, the share of this process.
        self._best = torch.zeros(count // context.runtime.world, *context.image_shape, device=device)
        self._distances: list[Tensor] = []
        self._student: nn.Module | None = None
        self._steps_done = 0
        self._optimizer = make_adam(groups, betas, context.runtime)
        self._step = TrainingStep(
            "the synthesis step", self._loss, self._optimizer, context.runtime, after=self._after_step
        )
        self._step.make_state()

    def synthesise(
        self, student: nn.Module, targets: Tensor, epoch: int
    ) -> Steps[tuple[int, dict[str, Tensor]], None, Tensor]:
        """Optimise for `targets` (N,); return the images (N, C, H, W) that are kept.

        Yields after each step the number of steps done and its loss terms, which the next step may overwrite. Raises
        `Diverged` if the loss of a step was not finite.
        """
        self._student = student
        if self._steps_done == 0:
            self._begin(epoch)
        with torch.no_grad():
            self._targets.copy_(targets)
        stream = self.context.runtime.random_stream("synthesis-augmentation", epoch)
        for _ in range(self._steps_done):
            self._draw(stream, epoch)
        with frozen(student), self._observing():
            while self._steps_done < self.step_count:
                outputs = self._step(*self._draw(stream, epoch))
                self._steps_done += 1
                terms = {name: term for name, term in outputs.items() if term.ndim == 0 and name != "loss"}
                yield self._steps_done, {"synthesis_loss": outputs["loss"], **terms}
        self._steps_done = 0
        if self._step.skipped.item() > 0:
            (images,) = self.context.runtime.whole(self._best)
            raise Diverged(f"the synthesis of epoch {epoch + 1} diverged; lower its learning rate", images)
        with torch.no_grad():
            self._finish(epoch)
        (images,) = self.context.runtime.whole(self._best.clone())
        return images

    def slow_down(self) -> float:
        """Halve every learning rate permanently, and return the first."""
        return halve_learning_rates(self._optimizer)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what persists for the whole run, and the state of an unfinished synthesis."""
        if self._steps_done == 0:
            return self._lasting()
        shares = {name: self.context.runtime.whole(share)[0] for name, share in self._shares().items()}
        return {_STEPS_DONE: torch.tensor(self._steps_done), **self._lasting(), **self._tensors(), **shares}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state that `state_dict` returned; raise `InputError` if it does not match."""
        steps_done = torch.tensor(0)
        places = self._lasting()
        if _STEPS_DONE in state:
            places |= {_STEPS_DONE: steps_done, **self._tensors(), **self._shares()}
        put_back(own_shares(state, self._shares(), self.context.runtime), places)
        if _STEPS_DONE in state and not 0 < int(steps_done) <= self.step_count:
            raise InputError(STATE_MISMATCH)
        self._steps_done = int(steps_done)

    def _begin(self, epoch: int) -> None:
        """Reset everything in place for the synthesis of an epoch."""
        forget_steps(self._optimizer)
        with torch.no_grad():
            self._lowest.fill_(torch.inf)
            self._best.zero_()
            self._step.skipped.zero_()

    def _draw(self, stream: torch.Generator, epoch: int) -> tuple[Tensor, ...]:
        """Draw the random tensors of one step, the arguments of `_loss`."""
        return self.context.augmentation.draw(len(self._targets), stream)

    def _observing(self) -> AbstractContextManager[Any]:
        """Observe the teacher during the steps."""
        return observed_statistics(self.context.teacher, self._distances, moments=self._moments_of)

    def _loss(self, *draws: Tensor) -> dict[str, Tensor]:
        """Return the loss of the batch, its terms (0-dimensional), and the images of this process's share."""
        raise NotImplementedError

    def _after_step(self, outputs: dict[str, Tensor]) -> None:
        loss = outputs["loss"]
        is_kept = (loss < self._lowest) | ~loss.isfinite()  # the latter for `Diverged`
        self._best.copy_(torch.where(is_kept, outputs["images"], self._best))
        self._lowest.copy_(torch.minimum(loss, self._lowest))

    def _finish(self, epoch: int) -> None:
        """Finish a synthesis after its last step."""

    def _lasting(self) -> dict[str, Tensor]:
        """Return the tensors that persist for the whole run."""
        return {}

    def _tensors(self) -> dict[str, Tensor]:
        """Return the tensors of an unfinished synthesis that every process has."""
        return {"lowest": self._lowest, "skipped": self._step.skipped, **moments_of(self._optimizer)}

    def _shares(self) -> dict[str, Tensor]:
        """Return the tensors of an unfinished synthesis of which each process has a share."""
        return {"best": self._best}

    def _responses(self, views: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of teacher and student for the batch in float32, from the views of this process's share.

        The observers record the teacher's statistics.
        """
        assert self._student is not None
        self._distances.clear()  # a step that failed half-way, such as one that cannot be captured, leaves some
        with self.context.runtime.autocast():
            logits = self.context.teacher(views).float(), self._student(views).float()
        return self.context.runtime.whole(*logits)

    def _statistics_loss(self) -> Tensor:
        """Return the sum of the distances recorded in this step."""
        return torch.stack(take_all(self._distances)).sum()


class GeneratorInversion(Inversion):
    """Optimises a generator together with its latent, which is redrawn for each synthesis.

    The generator is re-initialised for each synthesis, or keeps its weights if `keeps_generator` is set.
    """

    def __init__(
        self,
        settings: InversionSettings,
        context: SynthesisContext,
        latent_learning_rate: float | None = None,
        more_groups: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Create the generator, the latent and their optimizer, which also takes `more_groups`."""
        self.settings = settings
        self.context = context
        self._prior = image_prior(context.teacher, context.image_shape)
        self._expected_input = expected_input_statistics(context.normalization)
        self.generator: Generator = self._make_generator()
        context.runtime.place(self.generator)
        self.latent = torch.zeros(self._latent_shape(), device=context.runtime.device, requires_grad=True)
        rate = settings.generator_learning_rate
        groups = [
            {"params": [*self.generator.parameters()], "lr": rate},
            {"params": [self.latent], "lr": latent_learning_rate or rate},
        ]
        # The generator after the last synthesis: one that diverges restarts from there.
        self._kept = copy.deepcopy(self.generator.state_dict()) if settings.keeps_generator else {}
        super().__init__(settings, context, [*groups, *more_groups])

    def _begin(self, epoch: int) -> None:
        super()._begin(epoch)
        runtime = self.context.runtime
        if self._restarts_generator(epoch):
            self._reset_generator(runtime.random_stream("generator", epoch))
        else:
            put_back(self._kept, self.generator.state_dict())
        with torch.no_grad():
            self.latent.normal_(generator=runtime.random_stream("latent", epoch))

    def _make_generator(self) -> Generator:
        """Create the generator; a synthesis initialises its weights."""
        settings = self.settings
        return Generator(
            self.context.image_shape, settings.latent_size, settings.generator_width, settings.synthesis_scale
        )

    def _latent_shape(self) -> tuple[int, ...]:
        return self.settings.synthesis_batch_size, self.settings.latent_size

    def _latents(self) -> Tensor:
        """Return the generator's input for this process's share, (N / world, latent size)."""
        return self.context.runtime.share(self.latent)

    def _restarts_generator(self, epoch: int) -> bool:
        """Return whether the synthesis of an epoch re-initialises the generator."""
        return epoch == 0 or not self.settings.keeps_generator

    def _reset_generator(self, stream: torch.Generator) -> None:
        self.generator.reset_parameters(stream)

    def _observing(self) -> AbstractContextManager[Any]:
        context, relative, moments = self.context, self.settings.relative_statistics, self._moments_of
        if self._prior == "input statistics":
            return observed_input_statistics(context.teacher, self._distances, self._expected_input, relative, moments)
        return observed_statistics(context.teacher, self._distances, relative, moments)

    def _finish(self, epoch: int) -> None:
        if self.settings.keeps_generator:
            put_back(self.generator.state_dict(), self._kept)

    def _lasting(self) -> dict[str, Tensor]:
        return {f"kept.{name}": tensor for name, tensor in self._kept.items()}

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"generator.{name}": tensor for name, tensor in self.generator.state_dict().items()}
        return {"latent": self.latent.detach(), **tensors, **super()._tensors()}

    def _make_views(self, shifts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the images of this process's share, and normalised views of them."""
        context = self.context
        with context.runtime.autocast():
            images = self.generator(self._latents())
        own_shifts = Shifts(*map(context.runtime.share, shifts))
        return images, context.normalization(context.augmentation(images, own_shifts))

    def _loss(self, *draws: Tensor) -> dict[str, Tensor]:
        images, views = self._make_views(draws)
        teacher_logits, student_logits = self._responses(views)
        loss, terms = self.settings.loss(self._statistics_loss(), teacher_logits, student_logits, self._targets)
        return {"loss": loss, **terms, "images": images}
