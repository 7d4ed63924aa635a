"""Teacher, student and synthesizer, and what one epoch does with them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn

from gapssg.augment import (
    Augmentation,
    Mixture,
    Normalization,
    Shifts,
    check_crop_padding,
    crop_and_flip,
    draw_mixture,
    mix,
)
from gapssg.engine.checkpoint import Facts, State
from gapssg.engine.estimate import Part, time_steps
from gapssg.engine.inference import predict
from gapssg.engine.metrics import ClassCounts, agreement, count_by_class, largest_share
from gapssg.engine.run_directory import RunDirectory, first_pool_shards, pool_shards, versions
from gapssg.engine.settings import DistillSettings
from gapssg.engine.time_left import TimedPhase, TimeLeft
from gapssg.engine.trainee import Phase, Trainee, TraineeFacts
from gapssg.errors import Diverged, InputError, RunError
from gapssg.models import create_model
from gapssg.models.foreign import check_classifier
from gapssg.models.model_file import LoadedModel, ModelCard, Provenance, load_foreign_weights, save_verified_model
from gapssg.models.profile import executed_batch_norm_layers, profile_model
from gapssg.models.safetensors_file import read_safetensors
from gapssg.runs.events import DistillationEpoch, DistillationTiming, Health, RolledBack, Warned
from gapssg.runtime import Runtime, to_uint8
from gapssg.stored import MOST_COUNTED_CLASSES
from gapssg.synthesis import EpochPlan, SynthesisContext, Synthesizer, method_classes
from gapssg.synthesis.base import PoolMethodSettings
from gapssg.synthesis.classes import describe_missing
from gapssg.synthesis.health import count_classes, synthesis_health
from gapssg.synthesis.losses import reality_gap
from gapssg.synthesis.pool_synthesizer import PoolSynthesizer, read_pool
from gapssg.synthesis.shards import PoolOrigin, read_shard
from gapssg.synthesis.state import put_back

_TIMED_SYNTHESIS, _TIMED_DISTILLATION = 3, 5
_MOST_ROLLBACKS = 1000  # as many as the settings may allow
_MOST_IMAGES = 2**50  # counts and sums of counts stay within int64
_MOST_COMPARED = 10_000  # images of the pool, with which a share is known to a point
_FEWEST_SAMPLES, _SAMPLES_OF_A_CLASS = 1000, 20  # of a generator


class EpochFacts(Facts):
    """What is known of the epoch under way."""

    round: NonNegativeInt = 0
    synthesised: bool = False
    terms: dict[str, float] = Field(default_factory=dict)
    reality_gap_before: float = 0.0
    agreement_before: float | None = None
    agreement_baseline: float | None = None
    synthesis_seconds: NonNegativeFloat = 0.0
    distillation_seconds: NonNegativeFloat = 0.0


class DistillationFacts(Facts):
    """What a checkpoint keeps of a distillation besides tensors."""

    epochs_done: NonNegativeInt
    learning_epochs: NonNegativeInt
    agreement: float | None
    agreement_baseline: float | None
    lacks_classes: bool
    images_synthesized: NonNegativeInt
    step_count: NonNegativeInt
    synthesis_seconds: NonNegativeFloat
    distillation_seconds: NonNegativeFloat
    synthesis_rollbacks: NonNegativeInt
    trainee: TraineeFacts
    epoch: EpochFacts


class Distillation:
    """Teacher, student and synthesizer, and what one epoch does with them.

    Attributes:
        epochs_done: Whole epochs so far.
        teacher_counts: How often the teacher has answered each class, (K,) int64 on the CPU: over the pool, or over the
            newest images of each epoch where there is no pool.
        target_counts: How often each class was the target of these images.
        flops: Floating-point operations in teacher and student of the whole run, as `Work.flops` counts them.
        time_left: Measures the steps; whoever evaluates the student plans and measures that there, too.
    """

    def __init__(
        self, settings: DistillSettings, runtime: Runtime, teacher: LoadedModel, compiled: bool | None = None
    ) -> None:
        """Make the student and the synthesizer for a teacher.

        Args:
            settings: Of the run.
            runtime: Device, precision and random streams.
            teacher: The teacher's file.
            compiled: What was decided of `compile = "auto"` when the run began; None decides it now.

        Raises:
            InputError: The student's weights, the pool or the crop padding cannot be used, or the teacher lacks batch
                norm.
        """
        card = teacher.card
        augmentation = _augmentation(settings, card)
        student = _make_student(settings, runtime, teacher)
        macs = [profile_model(module, card.input_shape).macs for module in (teacher.module, student)]
        runtime = _decide_compilation(settings, runtime, macs, compiled)
        self.settings = settings
        self.runtime = runtime
        self.teacher_file = teacher
        context = SynthesisContext(
            teacher=runtime.place(teacher.module).eval().requires_grad_(False),
            normalization=Normalization.from_statistics(card.mean, card.deviation, runtime.device),
            augmentation=augmentation,
            image_shape=card.input_shape,
            num_classes=card.num_classes,
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            runtime=runtime,
        )
        self.teacher = context.teacher
        self.normalization = context.normalization
        self.augmentation = context.augmentation
        self.student = runtime.place(student)
        self.synthesizer, self.origin = _make_synthesizer(settings, context, teacher)
        given = len(self.synthesizer.pool) if settings.pool and self.synthesizer.pool else None
        self.flops = settings.method.work(settings.epochs, settings.batch_size, given).flops(*macs)
        self.card = card.model_copy(
            update={
                "architecture": settings.student.name,
                "arguments": settings.student.arguments,
                "outputs": "logits",
                **augmentation.to_dict(),
                "provenance": Provenance(
                    command="distill",
                    method=self.origin.method,
                    teacher_sha256=teacher.sha256,
                    seed=settings.seed,
                    versions=versions(),
                ),
            }
        )
        self.trainee = Trainee(self.student, self._loss, settings.optimizer, runtime, settings.max_rollbacks)
        self.epochs_done = 0
        self.agreement: float | None = None
        self.agreement_baseline: float | None = None
        self.teacher_counts = torch.zeros(card.num_classes, dtype=torch.int64)
        self.target_counts = torch.zeros_like(self.teacher_counts)
        self._lacks_classes = False  # whether the last epoch's images did
        self.images_synthesized = 0
        self.step_count = 0
        self.seconds = {"synthesis": 0.0, "distillation": 0.0}
        self.learning_epochs = 0
        plans = (self.synthesizer.plan(epoch) for epoch in range(settings.epochs))
        self._planned_learning_epochs = sum(plan.advances_learning_rate for plan in plans)
        self.synthesis_rollbacks = 0
        self.epoch = EpochFacts()
        self._terms: dict[str, Tensor] = {}  # of the last step of the synthesis under way
        self.time_left = TimeLeft(self.steps_left())

    def save_student(self, path: Path) -> None:
        """Write the student as a model file."""
        save_verified_model(path, self.student, self.card)

    @property
    def can_continue(self) -> bool:
        """Whether a checkpoint suffices to continue: the images of a pool must be on disk."""
        return self.settings.pool is not None or self.settings.keep_pool or self.synthesizer.pool is None

    def state(self) -> State:
        """Return what a checkpoint keeps."""
        trainee = self.trainee.state()
        facts = {
            "epochs_done": self.epochs_done,
            "learning_epochs": self.learning_epochs,
            "agreement": self.agreement,
            "agreement_baseline": self.agreement_baseline,
            "lacks_classes": self._lacks_classes,
            "images_synthesized": self.images_synthesized,
            "step_count": self.step_count,
            "synthesis_seconds": self.seconds["synthesis"],
            "distillation_seconds": self.seconds["distillation"],
            "synthesis_rollbacks": self.synthesis_rollbacks,
            "trainee": trainee.facts,
            "epoch": self.epoch.model_dump(),
        }
        parts = {"synthesis": self.synthesizer.state_dict(), "terms": self._terms, "counts": self._counts()}
        tensors = trainee.prefixed("trainee.")
        for name, part in parts.items():
            tensors |= State({}, part).prefixed(f"{name}.")
        return State(facts, tensors)

    def _counts(self) -> dict[str, Tensor]:
        return {"teacher": self.teacher_counts, "targets": self.target_counts}

    def restore(self, state: State, run: Path) -> None:
        """Go back to where a checkpoint was written.

        Raises:
            InputError: The checkpoint or the pool of the run is damaged.
        """
        facts = DistillationFacts.read(state.facts)
        self._check_facts(facts)
        planned = self.steps_left()
        self.trainee.restore(state.component("trainee"))
        self.epochs_done, self.learning_epochs = facts.epochs_done, facts.learning_epochs
        self.agreement, self.agreement_baseline = facts.agreement, facts.agreement_baseline
        self.images_synthesized, self.step_count = facts.images_synthesized, facts.step_count
        self._lacks_classes = facts.lacks_classes
        self.seconds = {"synthesis": facts.synthesis_seconds, "distillation": facts.distillation_seconds}
        self.synthesis_rollbacks, self.epoch = facts.synthesis_rollbacks, facts.epoch
        for _ in range(self.synthesis_rollbacks):
            self.synthesizer.slow_down()
        self.synthesizer.load_state_dict(state.component("synthesis").tensors)
        put_back(state.component("counts").tensors, self._counts())
        if any(not 0 <= count <= _MOST_IMAGES for counts in self._counts().values() for count in counts.tolist()):
            raise InputError("the counts of classes in the checkpoint are no counts; start the run anew")
        self._terms = state.component("terms").tensors
        if not all(term.numel() == 1 and bool(term.isfinite()) for term in self._terms.values()):
            raise InputError("the losses in the checkpoint are not numbers; start the run anew")
        if self.settings.pool is None and self.synthesizer.pool is not None:
            whole = self.epochs_done + self.epoch.synthesised
            for shard in first_pool_shards(run, whole):
                images, targets, _ = read_shard(shard, self.card.input_shape, self.card.num_classes)
                if len(images) != self.settings.method.synthesis_batch_size:
                    raise InputError(f"{shard} holds {len(images)} images, which no synthesis of this run made")
                self.synthesizer.pool.append(images, targets)
        self.time_left = TimeLeft(self.steps_left())
        made = {kind: planned[kind] - left for kind, left in self.steps_left().items()}
        made["distillation"] += facts.trainee.steps_done
        for kind, seconds in (
            ("synthesis", facts.epoch.synthesis_seconds),
            ("distillation", facts.epoch.distillation_seconds),
        ):
            self.time_left.recall(kind, made[kind], self.seconds[kind] + seconds)

    def steps_left(self) -> dict[str, int]:
        """Return how many steps of synthesis and distillation are left, before the phase under way."""
        plans = [self.synthesizer.plan(epoch) for epoch in range(self.epochs_done, self.settings.epochs)]
        synthesis = sum(plan.rounds * plan.synthesis_steps for plan in plans)
        distillation = sum(plan.rounds * plan.distillation_steps for plan in plans)
        if plans:
            synthesis -= (self.epoch.round + self.epoch.synthesised) * plans[0].synthesis_steps
            distillation -= self.epoch.round * plans[0].distillation_steps
        return {"synthesis": synthesis, "distillation": distillation}

    def _check_facts(self, facts: DistillationFacts) -> None:
        """Check the numbers by which a run continues: a checkpoint may be a stranger's.

        Raises:
            InputError: No run with these settings comes to them.
        """
        unfinished = facts.epochs_done < self.settings.epochs
        rounds = self.synthesizer.plan(facts.epochs_done).rounds if unfinished else 1
        if not (
            facts.epochs_done <= self.settings.epochs
            and facts.learning_epochs <= facts.epochs_done
            and facts.synthesis_rollbacks <= _MOST_ROLLBACKS
            and facts.epoch.round < rounds
            and (unfinished or not facts.epoch.synthesised)
        ):
            raise InputError("the checkpoint is not one of this run; start the run anew")

    def run_epoch(self, run: RunDirectory, after_step: Callable[[], None]) -> DistillationEpoch:
        """Synthesise and distil, or do what is left of it; return the epoch's event.

        Args:
            run: Where samples, images and warnings go.
            after_step: Called between two steps; `state` may be asked for then.

        Raises:
            RunError: Synthesis or training diverged more often than they may.
        """
        plan = self.synthesizer.plan(self.epochs_done)
        self.trainee.set_learning_rate(self.learning_epochs / self._planned_learning_epochs)
        while self.epoch.round < plan.rounds:
            if not self.epoch.synthesised:
                with self.time_left.phase("synthesis", plan.synthesis_steps) as timed:
                    self._synthesise(plan, run, timed, after_step)
            with self.time_left.phase("distillation", plan.distillation_steps) as timed:
                gap_after = self._distil(plan, run, timed, after_step)
            self.epoch.round += 1
            self.epoch.synthesised = False
        health = self._check_health(run) if plan.synthesis_steps else self._check_given_pool(run)
        done, steps = self.epoch, plan.rounds * plan.distillation_steps
        self.seconds["synthesis"] += done.synthesis_seconds
        self.seconds["distillation"] += done.distillation_seconds
        self.agreement, self.agreement_baseline = done.agreement_before, done.agreement_baseline
        loss = self.trainee.loss_sum.item() / steps if steps else None
        self.trainee.loss_sum.zero_()
        self.step_count += steps
        self.learning_epochs += plan.advances_learning_rate
        self.epochs_done += 1
        self.epoch = EpochFacts()
        return DistillationEpoch(
            epoch=self.epochs_done,
            epochs=self.settings.epochs,
            learning_rate=self.trainee.learning_rate,
            synthesis=done.terms,
            health=health,
            pool_size=None if self.synthesizer.pool is None else len(self.synthesizer.pool),
            distillation_loss=loss,
            reality_gap_before=done.reality_gap_before,
            reality_gap_after=gap_after,
            agreement_before=self.agreement,
            agreement_baseline=self.agreement_baseline,
            timing=DistillationTiming(
                synthesis=done.synthesis_seconds,
                distillation=done.distillation_seconds,
                images_per_second=steps * self.settings.batch_size / max(done.distillation_seconds, 1e-9),
            ),
        )

    def _synthesise(
        self, plan: EpochPlan, run: RunDirectory, timed: TimedPhase, after_step: Callable[[], None]
    ) -> None:
        """Make new images, or go on with it; at half the learning rate where it diverges."""
        epoch, index = self.epochs_done, self.epoch.round
        started = self._clock()
        total = plan.rounds * plan.synthesis_steps
        while True:
            try:
                for step, terms in self.synthesizer.synthesis_steps(self.student, epoch, index):
                    self._terms = terms
                    timed.step(step)
                    run.progress(f"epoch {epoch + 1}: synthesis", index * plan.synthesis_steps + step, total)
                    run.show_time_left(self.time_left, epoch, self.settings.epochs)
                    after_step()
                break
            except Diverged as error:
                self.synthesis_rollbacks += 1
                if self.synthesis_rollbacks > self.settings.max_rollbacks:
                    raise RunError(
                        f"the synthesis diverged in epoch {epoch + 1}, {self.synthesis_rollbacks} times in all; "
                        "lower the learning rate in its settings (method.*) or raise --max-rollbacks"
                    ) from error
                rate = self.synthesizer.slow_down()
                run.record(RolledBack(epoch=epoch + 1, part="synthesis", learning_rate=rate))
        is_last = index == plan.rounds - 1
        if plan.synthesis_steps:
            fresh = self.synthesizer.fresh
            self.images_synthesized += len(fresh)
            if self.settings.samples and is_last:
                targets, names = self.synthesizer.fresh_targets, self.card.class_names
                run.write_samples(epoch + 1, self.settings.epochs, fresh, targets, names)
            if self.settings.keep_pool and self.synthesizer.pool is not None:
                run.write_pool_shard(epoch + 1, to_uint8(fresh), self.synthesizer.fresh_targets, self.origin)
        if is_last:
            self.epoch.terms = {name: term.item() for name, term in self._terms.items()}
        self._terms = {}
        self.epoch.synthesis_seconds += self._clock() - started
        self.epoch.synthesised = True
        if not is_last:
            return
        before = self._compare_on_fresh()
        if not math.isfinite(before["reality_gap"]):
            raise RunError(
                f"the teacher's logits on the images of epoch {epoch + 1} are not finite; try --precision fp32"
            )
        self.epoch.reality_gap_before = before["reality_gap"]
        # From the samples of an earlier run there is none: a trained student has trained on all of them.
        if plan.synthesis_steps:
            self.epoch.agreement_before, self.epoch.agreement_baseline = before["agreement"], before["baseline"]

    def _distil(self, plan: EpochPlan, run: RunDirectory, timed: TimedPhase, after_step: Callable[[], None]) -> float:
        """Train the student, or go on with it; return the reality gap on the newest images after the last round."""
        epoch, index = self.epochs_done, self.epoch.round
        first, total = index * plan.distillation_steps, plan.rounds * plan.distillation_steps
        earlier, started = self.epoch.distillation_seconds, self._clock()
        gap = math.nan

        def after_each(steps_done: int) -> None:
            self.epoch.distillation_seconds = earlier + time.perf_counter() - started
            timed.step(steps_done)
            run.progress(f"epoch {epoch + 1}: distillation", first + steps_done, total)
            run.show_time_left(self.time_left, epoch, self.settings.epochs)
            after_step()

        def is_sound() -> bool:
            nonlocal gap
            self.epoch.distillation_seconds = earlier + self._clock() - started
            if index < plan.rounds - 1:
                return True  # asking in each of many short rounds would cost as much as a step
            gap = self._compare_on_fresh()["reality_gap"]
            return math.isfinite(gap)

        batches = partial(self.batches, epoch, index)
        self.trainee.train(Phase(epoch, index, plan.distillation_steps, batches, is_sound), run, after_each)
        return gap

    def batches(self, epoch: int, index: int, start: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield the inputs of the distillation steps of a round from step `start` on."""
        batch_size = self.settings.batch_size
        stream = self.runtime.random_stream("augmentation", epoch, index)
        for _ in range(start):
            self._draw_views(batch_size, stream)
        self.synthesizer.start_sampling(epoch, index, start)
        while True:
            yield self.synthesizer.sample(batch_size), *self._draw_views(batch_size, stream)

    def _draw_views(self, count: int, stream: torch.Generator) -> tuple[Tensor, ...]:
        """Draw the crops and flips of a batch and, where the method blends its images, the partners and shares."""
        mixup = self.settings.method.mixup
        shifts = self.augmentation.draw(count, stream)
        return (*shifts, *draw_mixture(count, mixup, stream)) if mixup else shifts

    def time_steps(self) -> dict[str, Part]:
        """Make a few steps of synthesis and distillation and time them; the student is of no more use after it.

        Distillation needs a pool: where no synthesis comes to its end, that is filled with noise.
        """
        steps, synthesis = self.steps_left(), self._all_synthesis_steps()
        timed = {"synthesis": time_steps(lambda: next(synthesis), self.runtime, steps["synthesis"], _TIMED_SYNTHESIS)}
        synthesis.close()
        pool, plans = self.synthesizer.pool, map(self.synthesizer.plan, range(self.settings.epochs))
        epoch, plan = next((each for each in enumerate(plans) if each[1].distillation_steps), (0, EpochPlan(1, 0, 0)))
        if pool is not None and plan.synthesis_steps:
            size = self.settings.method.synthesis_batch_size
            stream = self.runtime.random_stream("noise")
            while len(pool) < (epoch + 1) * size:
                shape = (size, *self.card.input_shape)
                noise = torch.rand(shape, generator=stream, device=self.runtime.device)
                pool.append(to_uint8(noise), torch.zeros(size, dtype=torch.int64, device=self.runtime.device))
        passes = (islice(self.batches(epoch, 0, 0), plan.distillation_steps) for _ in repeat(None))
        batches = chain.from_iterable(passes)
        self.student.train()
        timed["distillation"] = time_steps(
            lambda: self.trainee.step(*next(batches)), self.runtime, steps["distillation"], _TIMED_DISTILLATION
        )
        return timed

    @property
    def unused_memory(self) -> int:
        """Bytes of the pool that were reserved on a processor, which takes them only when they are written to."""
        pool = self.synthesizer.pool
        if pool is None or self.runtime.device.type != "cpu":
            return 0
        return (pool.capacity - len(pool)) * math.prod(self.card.input_shape)

    def _all_synthesis_steps(self) -> Generator[object, None, None]:
        for epoch in range(self.settings.epochs):
            for index in range(self.synthesizer.plan(epoch).rounds):
                yield from self.synthesizer.synthesis_steps(self.student, epoch, index)

    def _loss(
        self, images: Tensor, rows: Tensor, columns: Tensor, flips: Tensor, *mixture: Tensor
    ) -> dict[str, Tensor]:
        views = crop_and_flip(images, Shifts(rows, columns, flips)) if self.synthesizer.augments else images
        views = self.normalization(mix(views, Mixture(*mixture)) if mixture else views)
        with self.runtime.autocast():
            with torch.no_grad():
                teacher_logits = self.teacher(views).float()
            student_logits = self.student(views).float()
        return {"loss": self.synthesizer.distillation_loss(student_logits, teacher_logits)}

    def _compare_on_fresh(self) -> dict[str, float]:
        """Compare teacher and student on the newest images, as they are; the gap of infinite logits is not a number."""
        teacher_logits = self.predict(self.teacher, self.synthesizer.fresh)
        student_logits = self.predict(self.student, self.synthesizer.fresh)
        gap = reality_gap(teacher_logits, student_logits).item()
        return {
            "reality_gap": gap,
            "agreement": agreement(teacher_logits, student_logits),
            "baseline": largest_share(teacher_logits.argmax(dim=1)),
        }

    def predict(self, module: nn.Module, images: Tensor) -> Tensor:
        """Return logits (N, K) of images that are not normalised yet."""
        return predict(module, images, self.normalization, self.runtime)

    def compare(self) -> ClassCounts:
        """Count by the teacher's answer on how many images the student answers alike, at the end of a run.

        The images are those of the pool (of more than 10,000, so many spread evenly over it), on which the student has
        trained. Where there is no pool they are new samples of the generator on which it has just trained: at least
        1,000, and 20 a class, but no more than 10,000.
        """
        teacher, student = [], []
        for images in self._final_images():
            teacher.append(self.predict(self.teacher, images).argmax(dim=1))
            student.append(self.predict(self.student, images).argmax(dim=1))
        return count_by_class(torch.cat(student), torch.cat(teacher), self.card.num_classes)

    def _final_images(self) -> Iterator[Tensor]:
        pool, size = self.synthesizer.pool, self.settings.batch_size
        if pool is not None:
            count = min(len(pool), _MOST_COMPARED)
            chosen = (torch.arange(count) * len(pool) // count).to(pool.images.device)
            for start in range(0, count, size):
                yield pool.images[chosen[start : start + size]]
            return
        samples = min(max(_FEWEST_SAMPLES, _SAMPLES_OF_A_CLASS * self.card.num_classes), _MOST_COMPARED)
        self.synthesizer.start_sampling(self.epochs_done, 0, 0)
        for _ in range(-(-samples // size)):
            yield self.synthesizer.sample(size)

    def _check_health(self, run: RunDirectory) -> Health:
        """Measure the newest images; record a warning where they are worth little or lack classes."""
        fresh, targets = self.synthesizer.fresh, self.synthesizer.fresh_targets
        logits, num_classes = self.predict(self.teacher, fresh), self.card.num_classes
        health = synthesis_health(fresh, targets, logits)
        answered, wanted = count_classes(logits.argmax(dim=1), num_classes), count_classes(targets, num_classes)
        self.teacher_counts += answered
        self.target_counts += wanted
        few_classes = None
        if self.settings.method.makes_class_images:
            few_classes = health.few_classes()
            for sentence in health.warnings(num_classes, len(fresh)):
                run.record(Warned(epoch=self.epochs_done + 1, message=sentence))
        self._check_classes(run, self._missing(answered, "new images") or few_classes)
        return Health(**health._asdict(), teacher_counts=listed_counts(answered), target_counts=listed_counts(wanted))

    def _check_given_pool(self, run: RunDirectory) -> Health:
        """Count the classes of an earlier run's pool in the first epoch; record a warning where it lacks some."""
        pool = self.synthesizer.pool
        if self.epochs_done == 0 and pool is not None:
            answers = self.predict(self.teacher, pool.images).argmax(dim=1)
            self.teacher_counts += count_classes(answers, self.card.num_classes)
            self.target_counts += count_classes(pool.targets, self.card.num_classes)
            self._check_classes(run, None)
        return Health()

    def _check_classes(self, run: RunDirectory, new_images_lack: str | None) -> None:
        """Record a warning when images begin to lack classes, and when they no longer do."""
        sentence = new_images_lack or self._missing(self.teacher_counts, "images so far")
        epoch = self.epochs_done + 1
        if sentence is not None and not self._lacks_classes:
            run.record(Warned(epoch=epoch, message=sentence))
        elif sentence is None and self._lacks_classes:
            message = "over: the teacher sees every class in the images again"
            run.record(Warned(epoch=epoch, message=message))
        self._lacks_classes = sentence is not None

    def _missing(self, counts: Tensor, images: str) -> str | None:
        return describe_missing(counts.tolist(), self.card.class_names, images)

    def _clock(self) -> float:
        self.runtime.synchronize()
        return time.perf_counter()


def listed_counts(counts: Tensor) -> list[int] | None:
    """Return counts (K,) as events and results hold them: None where there are too many classes."""
    return counts.tolist() if len(counts) <= MOST_COUNTED_CLASSES else None


def _augmentation(settings: DistillSettings, card: ModelCard) -> Augmentation:
    check_crop_padding(settings.crop_padding, card.input_shape)
    return Augmentation(
        card.crop_padding if settings.crop_padding is None else settings.crop_padding,
        card.flip if settings.flip is None else settings.flip,
    )


def _decide_compilation(
    settings: DistillSettings, runtime: Runtime, macs: Sequence[int], compiled: bool | None
) -> Runtime:
    if settings.runtime.compile != "auto":
        return runtime
    if compiled is not None:
        return replace(runtime, compiled=compiled)
    work = settings.method.work(settings.epochs, settings.batch_size, _pool_size(settings))
    runtime, sentence = runtime.compile_if_worth_it(work.flops(*macs))
    runtime.note(sentence)
    return runtime


def _pool_size(settings: DistillSettings) -> int | None:
    if settings.pool is None:
        return None
    return len(pool_shards(settings.pool)) * settings.method.synthesis_batch_size


def _make_student(settings: DistillSettings, runtime: Runtime, teacher: LoadedModel) -> nn.Module:
    student = create_model(
        settings.student.name,
        num_classes=teacher.card.num_classes,
        input_shape=teacher.card.input_shape,
        seed=runtime.derive_seed("initial-weights"),
        arguments=settings.student.arguments,
        weights_follow=settings.student.weights is not None,
    )
    if settings.student.weights is not None:
        load_foreign_weights(student, read_safetensors(settings.student.weights).tensors, settings.student.weights)
        check_classifier(student, settings.student.name, teacher.card.num_classes, teacher.card.input_shape)
    return student


def _make_synthesizer(
    settings: DistillSettings, context: SynthesisContext, teacher: LoadedModel
) -> tuple[Synthesizer, PoolOrigin]:
    method = settings.method
    if settings.pool is not None:
        if not isinstance(method, PoolMethodSettings):
            raise InputError(f"--pool: {method.name} samples its generator; use it without, or a method with a pool")
        pool, origin = read_pool(pool_shards(settings.pool), context)
        return PoolSynthesizer(method, context, None, pool), origin
    if method.needs_batch_norm and not executed_batch_norm_layers(context.teacher, context.image_shape):
        others = ", ".join(m.model_fields["name"].default for m in method_classes() if not m.needs_batch_norm)
        raise InputError(
            f"the teacher {teacher.path} has no batch-norm layers, whose statistics {method.name} "
            f"needs; methods that do not: {others}"
        )
    return method.build(context), PoolOrigin(method.name, teacher.sha256)
