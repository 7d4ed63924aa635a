"""The synthesizer of methods that train one generator alongside the student, in many short rounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from gapssg.core.augment import Shifts
from gapssg.core.training_step import TrainingStep
from gapssg.errors import Diverged, InputError
from gapssg.models.frozen import frozen
from gapssg.models.generator import Generator
from gapssg.models.profile import last_linear_layer
from gapssg.synthesis.base import GeneratorMethodSettings, Responses
from gapssg.synthesis.batch_norm import observed_statistics, whole_batch_moments
from gapssg.synthesis.context import SynthesisContext
from gapssg.synthesis.labelled_views import LabelledViews
from gapssg.synthesis.pool import SamplePool
from gapssg.synthesis.state import (
    STATE_MISMATCH,
    halve_learning_rates,
    make_adam,
    moments_of,
    own_shares,
    put_back,
    take_all,
)
from gapssg.synthesis.synthesizer import EpochPlan


class GeneratorTraining:
    """Alternates between generator steps and student steps on fresh samples.

    The generator, its optimizer and its moving average, if any, persist for the whole run and are in every checkpoint;
    resuming needs nothing else. As published, the generator's batch norms use batch statistics in sampling, too.
    """

    pool: SamplePool | None = None
    labelled: LabelledViews | None = None

    def __init__(self, settings: GeneratorMethodSettings, context: SynthesisContext) -> None:
        """Create the generator and its optimizer.

        Raises `InputError` if the loss uses features, but the teacher's logits do not come from a linear layer.
        """
        runtime = context.runtime
        device, count = runtime.device, settings.synthesis_batch_size
        self.settings = settings
        self.context = context
        self.augments = settings.augment
        self._fresh = torch.zeros(count // runtime.world, *context.image_shape, device=device)  # this process's share
        self.fresh_targets = torch.zeros(count, dtype=torch.int64, device=device)
        self.generator = self._make_generator()
        self.average = self._make_generator() if settings.average_momentum is not None else None
        self._last_layer = _last_linear(context) if settings.reads_features else None
        self._distances: list[Tensor] = []
        self._features: list[Tensor] = []
        self._student: nn.Module | None = None
        self._steps_done = 0
        self._slow_downs = 0
        self._latents = runtime.random_stream("samples")
        groups = [{"params": [*self.generator.parameters()], "lr": settings.generator_learning_rate}]
        self._optimizer = make_adam(groups, (0.5, 0.999), runtime)
        self._step = TrainingStep("the generator's step", self._loss, self._optimizer, runtime, after=self._after_step)
        self._step.make_state()
        self._sample = runtime.compile(self._make_samples)

    @property
    def fresh(self) -> Tensor:
        """The newest images, (N, C, H, W) float32 in [0, 1]."""
        return self.context.runtime.whole(self._fresh)[0]

    def plan(self, epoch: int) -> EpochPlan:
        """Return the rounds, which are the same in every epoch."""
        return EpochPlan(self.settings.rounds, self.settings.generator_steps, self.settings.distillation_steps)

    def synthesis_steps(self, student: nn.Module, epoch: int, index: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Run the generator steps of a round, or resume them after `load_state_dict`.

        Raises `Diverged` if a loss was not finite. The next call repeats these steps with other latents, from the
        weights of the last finite step.
        """
        self._student = student
        runtime, settings = self.context.runtime, self.settings
        stream = runtime.random_stream("generator-steps", epoch, index, self._slow_downs)
        for _ in range(self._steps_done):
            self._draw(stream)
        with frozen(student), ExitStack() as observing:
            if settings.needs_batch_norm:
                moments = whole_batch_moments(runtime)
                observing.enter_context(observed_statistics(self.context.teacher, self._distances, moments=moments))
            if self._last_layer is not None:
                handle = self._last_layer.register_forward_pre_hook(lambda _, inputs: self._features.append(inputs[0]))
                observing.callback(handle.remove)
            while self._steps_done < settings.generator_steps:
                outputs = self._step(*self._draw(stream))
                self._steps_done += 1
                terms = {name: term for name, term in outputs.items() if term.ndim == 0 and name != "loss"}
                yield self._steps_done, {"synthesis_loss": outputs["loss"], **terms}
        self._steps_done = 0
        if self._step.skipped.item() > 0:
            self._step.skipped.zero_()
            raise Diverged(f"the generator diverged in epoch {epoch + 1}; lower its learning rate", self.fresh)

    def slow_down(self) -> float:
        """Halve the generator's learning rate permanently, and return it."""
        self._slow_downs += 1
        return halve_learning_rates(self._optimizer)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the generator, the optimizer moments, the newest images, and the number of steps done in the round."""
        return {"steps_done": torch.tensor(self._steps_done), **self._tensors(), "fresh": self.fresh}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state that `state_dict` returned; raise `InputError` if it does not match."""
        steps_done = torch.tensor(0)
        places = {"steps_done": steps_done, **self._tensors(), "fresh": self._fresh}
        put_back(own_shares(state, ["fresh"], self.context.runtime), places)
        if not 0 <= int(steps_done) <= self.settings.generator_steps:
            raise InputError(STATE_MISMATCH)
        self._steps_done = int(steps_done)

    def start_sampling(self, epoch: int, index: int, step: int) -> None:
        """Make `sample` draw the latents of a round, starting at step `step`."""
        self._latents = self.context.runtime.random_stream("samples", epoch, index)
        for _ in range(step):
            self._draw_latents(self.context.batch_size, self._latents)

    def sample(self, count: int) -> Tensor:
        """Return `count` generated images, half of them from the moving average if there is one."""
        with torch.no_grad():
            return self._sample(self._draw_latents(count, self._latents))

    def distillation_loss(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the method's loss for the student."""
        return self.settings.distillation_loss(student_logits, teacher_logits)

    def _make_generator(self) -> Generator:
        settings, runtime = self.settings, self.context.runtime
        made = Generator(
            self.context.image_shape, settings.latent_size, settings.generator_width, settings.synthesis_scale
        )
        runtime.place(made)
        made.reset_parameters(runtime.random_stream("generator"))
        return made

    def _draw(self, stream: torch.Generator) -> tuple[Tensor, ...]:
        count = self.settings.synthesis_batch_size
        return self._draw_latents(count, stream), *self.context.augmentation.draw(count, stream)

    def _draw_latents(self, count: int, stream: torch.Generator) -> Tensor:
        return torch.randn(count, self.settings.latent_size, generator=stream, device=self.context.runtime.device)

    def _make_samples(self, latents: Tensor) -> Tensor:
        runtime = self.context.runtime
        with runtime.autocast(), runtime.whole_batch_layers():
            if self.average is None:
                return runtime.whole(self.generator(runtime.share(latents)))[0]
            half = len(latents) // 2
            newer, averaged = runtime.share(latents[half:]), runtime.share(latents[:half])
            parts = self.generator(newer), self.average(averaged)
        return torch.cat([whole for part in parts for whole in runtime.whole(part)])

    def _loss(self, *draws: Tensor) -> dict[str, Tensor]:
        """Return the loss and its terms, the images of this process's share and the teacher's predictions."""
        assert self._student is not None
        context = self.context
        latents, *shifts = map(context.runtime.share, draws)
        self._distances.clear()  # a step that failed half-way, such as one that cannot be captured, leaves some
        self._features.clear()
        with context.runtime.autocast():
            images = self.generator(latents)
            views = self.context.augmentation(images, Shifts(*shifts)) if self.augments else images
            views = context.normalization(views)
            teacher_logits = context.teacher(views).float()
            student_logits = self._student(views).float() if self.settings.reads_student else teacher_logits
        distances, features = take_all(self._distances), take_all(self._features)
        nothing = teacher_logits.new_zeros(())
        statistics_loss = torch.stack(distances).sum() if distances else nothing
        inputs = features[0].float() if features else teacher_logits.new_zeros(len(latents), 0)
        teacher_logits, student_logits, inputs = context.runtime.whole(teacher_logits, student_logits, inputs)
        loss, terms = self.settings.loss(Responses(teacher_logits, student_logits, statistics_loss, inputs))
        return {"loss": loss, **terms, "images": images, "predictions": teacher_logits.argmax(dim=1)}

    def _after_step(self, outputs: dict[str, Tensor]) -> None:
        # The images of a step whose loss was not finite stay.
        is_new = (self._step.skipped == 0) | ~outputs["loss"].isfinite()
        self._fresh.copy_(torch.where(is_new, outputs["images"], self._fresh))
        self.fresh_targets.copy_(outputs["predictions"])
        momentum = self.settings.average_momentum
        if self.average is not None and momentum is not None:
            for mean, weight in zip(self.average.parameters(), self.generator.parameters(), strict=True):
                mean.lerp_(weight, 1 - momentum)

    def _tensors(self) -> dict[str, Tensor]:
        generator, average = self.generator.state_dict(), self.average.state_dict() if self.average is not None else {}
        return {
            "fresh_targets": self.fresh_targets,
            "skipped": self._step.skipped,
            **{f"generator.{name}": tensor for name, tensor in generator.items()},
            **{f"average.{name}": tensor for name, tensor in average.items()},
            **moments_of(self._optimizer),
        }


def _last_linear(context: SynthesisContext) -> nn.Module:
    layer = last_linear_layer(context.teacher, context.image_shape, context.num_classes)
    if layer is None:
        raise InputError(
            "the teacher's logits do not come from a linear layer, but the method needs its inputs as features; "
            "use --method zskt"
        )
    return layer
