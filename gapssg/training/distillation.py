"""Teacher, student and synthesizer, and what one epoch does with them."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from itertools import chain, islice, repeat
from pathlib import Path

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn

from gapssg.core.augment import (
    Augmentation,
    Mixture,
    Normalization,
    Shifts,
    choose_crop_padding,
    draw_mixture,
    mix,
)
from gapssg.core.runtime import Runtime, to_uint8
from gapssg.errors import Diverged, InputError, RunError
from gapssg.evaluation.metrics import ClassCounts, agreement, count_by_class, largest_share
from gapssg.evaluation.predict import predict
from gapssg.models import create_model
from gapssg.models.description import ModelCard, Provenance
from gapssg.models.foreign import check_classifier
from gapssg.models.model_file import LoadedModel, load_foreign_weights, save_verified_model
from gapssg.models.profile import executed_batch_norm_layers, profile_model
from gapssg.models.safetensors_file import read_safetensors
from gapssg.runs.checkpoint import Facts, State
from gapssg.runs.directory import RunDirectory, first_pool_shards, pool_shards, versions
from gapssg.runs.events import DistillationEpoch, DistillationTiming, Health, RolledBack, Warned
from gapssg.runs.results import Part, Scores
from gapssg.runs.time_left import TimeLeft
from gapssg.stored import MOST_COUNTED_CLASSES
from gapssg.synthesis import EpochPlan, SynthesisContext, Synthesizer, method_classes
from gapssg.synthesis.base import PoolMethodSettings
from gapssg.synthesis.classes import describe_missing
from gapssg.synthesis.health import count_classes, synthesis_health
from gapssg.synthesis.losses import reality_gap
from gapssg.synthesis.pool_synthesizer import PoolSynthesizer, read_pool
from gapssg.synthesis.shards import PoolOrigin, read_shard
from gapssg.synthesis.state import put_back
from gapssg.training.estimate import time_steps
from gapssg.training.loop import Phase
from gapssg.training.settings import DistillSettings
from gapssg.training.trainee import Trainee

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


class Progress(Facts):
    """How far a distillation has come: what a checkpoint keeps of it besides tensors and the student's optimizer."""

    epochs_done: NonNegativeInt = 0
    learning_epochs: NonNegativeInt = 0
    """Those that the learning-rate schedule counts."""
    agreement: float | None = None
    """Of student and teacher on the newest images of the last epoch, before the student trained on them."""
    agreement_baseline: float | None = None
    """What always giving the teacher's commonest answer would have reached on them."""
    lacks_classes: bool = False
    """Whether the images of the last epoch did."""
    images_synthesized: NonNegativeInt = 0
    step_count: NonNegativeInt = 0
    """Steps of distillation."""
    synthesis_seconds: NonNegativeFloat = 0.0
    distillation_seconds: NonNegativeFloat = 0.0
    synthesis_rollbacks: NonNegativeInt = 0
    epoch: EpochFacts = Field(default_factory=EpochFacts)


class Distillation:
    """Teacher, student and synthesizer, and what one epoch does with them.

    Attributes:
        progress: How far it has come.
        teacher_counts: How often the teacher has answered each class, (K,) int64 on the CPU: over the pool, or over the
            newest images of each epoch where there is no pool.
        target_counts: How often each class was the target of these images.
        flops: Floating-point operations in teacher and student of the whole run, as `Work.flops` counts them.
        time_left: Measures the steps; whoever evaluates the student plans and measures that there, too.
    """

    def __init__(
        self, settings: DistillSettings, runtime: Runtime, teacher: LoadedModel, student: nn.Module | None = None
    ) -> None:
        """Make the synthesizer for a teacher, and the student unless it is there.

        Args:
            settings: Of the run.
            runtime: Device, precision and random streams.
            teacher: The teacher's file.
            student: What `make_student` made.

        Raises:
            InputError: The student's weights, the pool or the crop padding cannot be used, or the teacher lacks batch
                norm.
        """
        card = teacher.card
        augmentation = _augmentation(settings, card)
        student = student or make_student(settings, runtime, teacher)
        macs = _macs(teacher, student)
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
        self.card = _student_card(settings, teacher, augmentation, self.origin)
        self.trainee = Trainee(self.student, self._loss, settings.optimizer, runtime, settings.max_rollbacks)
        self.progress = Progress()
        self.teacher_counts = torch.zeros(card.num_classes, dtype=torch.int64)
        self.target_counts = torch.zeros_like(self.teacher_counts)
        plans = (self.synthesizer.plan(epoch) for epoch in range(settings.epochs))
        self._planned_learning_epochs = sum(plan.advances_learning_rate for plan in plans)
        self._reality_gap_after = 0.0
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
        parts = {"synthesis": self.synthesizer.state_dict(), "terms": self._terms, "counts": self._counts()}
        tensors = trainee.prefixed("trainee.")
        for name, part in parts.items():
            tensors |= State({}, part).prefixed(f"{name}.")
        return State({**self.progress.model_dump(), "trainee": trainee.facts}, tensors)

    def _counts(self) -> dict[str, Tensor]:
        return {"teacher": self.teacher_counts, "targets": self.target_counts}

    def restore(self, state: State, run: Path) -> None:
        """Go back to where a checkpoint was written.

        Raises:
            InputError: The checkpoint or the pool of the run is damaged.
        """
        progress = Progress.read({name: fact for name, fact in state.facts.items() if name != "trainee"})
        self._check_progress(progress)
        planned = self.steps_left()
        self.trainee.restore(state.component("trainee"))
        self.progress = progress
        for _ in range(progress.synthesis_rollbacks):
            self.synthesizer.slow_down()
        self.synthesizer.load_state_dict(state.component("synthesis").tensors)
        put_back(state.component("counts").tensors, self._counts())
        if any(not 0 <= count <= _MOST_IMAGES for counts in self._counts().values() for count in counts.tolist()):
            raise InputError("the counts of classes in the checkpoint are no counts; start the run anew")
        self._terms = state.component("terms").tensors
        if not all(term.numel() == 1 and bool(term.isfinite()) for term in self._terms.values()):
            raise InputError("the losses in the checkpoint are not numbers; start the run anew")
        if self.settings.pool is None and self.synthesizer.pool is not None:
            whole = progress.epochs_done + progress.epoch.synthesised
            for shard in first_pool_shards(run, whole):
                images, targets, _ = read_shard(shard, self.card.input_shape, self.card.num_classes)
                if len(images) != self.settings.method.synthesis_batch_size:
                    raise InputError(f"{shard} holds {len(images)} images, which no synthesis of this run made")
                self.synthesizer.pool.append(images, targets)
        self.time_left = TimeLeft(self.steps_left())
        made = {kind: planned[kind] - left for kind, left in self.steps_left().items()}
        made["distillation"] += self.trainee.steps_done
        for kind, seconds in (
            ("synthesis", progress.synthesis_seconds + progress.epoch.synthesis_seconds),
            ("distillation", progress.distillation_seconds + progress.epoch.distillation_seconds),
        ):
            self.time_left.recall(kind, made[kind], seconds)

    def steps_left(self) -> dict[str, int]:
        """Return how many steps of synthesis and distillation are left, before the phase under way."""
        plans = [self.synthesizer.plan(epoch) for epoch in range(self.progress.epochs_done, self.settings.epochs)]
        synthesis = sum(plan.rounds * plan.synthesis_steps for plan in plans)
        distillation = sum(plan.rounds * plan.distillation_steps for plan in plans)
        if plans:
            synthesis -= (self.progress.epoch.round + self.progress.epoch.synthesised) * plans[0].synthesis_steps
            distillation -= self.progress.epoch.round * plans[0].distillation_steps
        return {"synthesis": synthesis, "distillation": distillation}

    def _check_progress(self, facts: Progress) -> None:
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

    def phases(self, run: RunDirectory) -> Iterator[Phase]:
        """Yield what is left of an epoch: synthesis and distillation in turns.

        Args:
            run: Where samples, images and rollbacks go.
        """
        plan = self.synthesizer.plan(self.progress.epochs_done)
        self.trainee.set_learning_rate(self.progress.learning_epochs / self._planned_learning_epochs)
        epoch = f"epoch {self.progress.epochs_done + 1}"
        while self.progress.epoch.round < plan.rounds:
            place = self.progress.epoch.round, plan.rounds
            if not self.progress.epoch.synthesised:
                work = self._synthesise(plan, run)
                yield Phase("synthesis", plan.synthesis_steps, work, f"{epoch}: synthesis", *place)
            work = self._distil(plan, run)
            yield Phase("distillation", plan.distillation_steps, work, f"{epoch}: distillation", *place)
            self.progress.epoch.round += 1
            self.progress.epoch.synthesised = False

    def end_epoch(self, run: RunDirectory, scores: Scores | None) -> DistillationEpoch:
        """Look at the newest images and count the epoch, whose phases are done; return its event.

        Args:
            run: Where warnings go.
            scores: Of the student on real images, if it was evaluated.
        """
        plan = self.synthesizer.plan(self.progress.epochs_done)
        health = self._check_health(run) if plan.synthesis_steps else self._check_given_pool(run)
        progress = self.progress
        done, steps = progress.epoch, plan.rounds * plan.distillation_steps
        progress.synthesis_seconds += done.synthesis_seconds
        progress.distillation_seconds += done.distillation_seconds
        progress.agreement, progress.agreement_baseline = done.agreement_before, done.agreement_baseline
        loss = self.trainee.loss_sum.item() / steps if steps else None
        self.trainee.loss_sum.zero_()
        progress.step_count += steps
        progress.learning_epochs += plan.advances_learning_rate
        progress.epochs_done += 1
        progress.epoch = EpochFacts()
        return DistillationEpoch(
            epoch=progress.epochs_done,
            epochs=self.settings.epochs,
            learning_rate=self.trainee.learning_rate,
            synthesis=done.terms,
            health=health,
            pool_size=None if self.synthesizer.pool is None else len(self.synthesizer.pool),
            distillation_loss=loss,
            reality_gap_before=done.reality_gap_before,
            reality_gap_after=self._reality_gap_after,
            agreement_before=progress.agreement,
            agreement_baseline=progress.agreement_baseline,
            top1=scores.top1 if scores else None,
            loss=scores.loss if scores else None,
            balanced_accuracy=scores.balanced_accuracy if scores else None,
            lowest_recall=scores.lowest_recall if scores else None,
            timing=DistillationTiming(
                synthesis=done.synthesis_seconds,
                distillation=done.distillation_seconds,
                images_per_second=steps * self.settings.batch_size / max(done.distillation_seconds, 1e-9),
                remaining=self.time_left.seconds,
            ),
        )

    def _synthesise(self, plan: EpochPlan, run: RunDirectory) -> Generator[int, None, None]:
        """Make new images, or go on with it; at half the learning rate where it diverges."""
        progress, started = self.progress, self._clock()
        epoch, index = progress.epochs_done, progress.epoch.round
        while True:
            try:
                for step, terms in self.synthesizer.synthesis_steps(self.student, epoch, index):
                    self._terms = terms
                    yield step
                break
            except Diverged as error:
                progress.synthesis_rollbacks += 1
                if progress.synthesis_rollbacks > self.settings.max_rollbacks:
                    raise RunError(
                        f"the synthesis diverged in epoch {epoch + 1}, {progress.synthesis_rollbacks} times in all; "
                        "lower the learning rate in its settings (method.*) or raise --max-rollbacks"
                    ) from error
                rate = self.synthesizer.slow_down()
                run.record(RolledBack(epoch=epoch + 1, part="synthesis", learning_rate=rate))
        is_last = index == plan.rounds - 1
        if plan.synthesis_steps:
            self._keep_images(run, is_last)
        if is_last:
            progress.epoch.terms = {name: term.item() for name, term in self._terms.items()}
        self._terms = {}
        progress.epoch.synthesis_seconds += self._clock() - started
        progress.epoch.synthesised = True
        if is_last:
            self._compare_before(plan)

    def _keep_images(self, run: RunDirectory, is_last: bool) -> None:
        """Write the newest images where they are wanted; samples of the last round only."""
        fresh, targets, epoch = self.synthesizer.fresh, self.synthesizer.fresh_targets, self.progress.epochs_done + 1
        self.progress.images_synthesized += len(fresh)
        if self.settings.samples and is_last:
            run.write_samples(epoch, self.settings.epochs, fresh, targets, self.card.class_names)
        if self.settings.keep_pool and self.synthesizer.pool is not None:
            run.write_pool_shard(epoch, to_uint8(fresh), targets, self.origin)

    def _compare_before(self, plan: EpochPlan) -> None:
        """Compare teacher and student on the newest images before the student trains on them."""
        gap, agreed, baseline = self._compare_on_fresh()
        if not math.isfinite(gap):
            raise RunError(
                f"the teacher's logits on the images of epoch {self.progress.epochs_done + 1} are not finite; "
                "try --precision fp32"
            )
        self.progress.epoch.reality_gap_before = gap
        # From the samples of an earlier run there is none: a trained student has trained on all of them.
        if plan.synthesis_steps:
            self.progress.epoch.agreement_before, self.progress.epoch.agreement_baseline = agreed, baseline

    def _distil(self, plan: EpochPlan, run: RunDirectory) -> Generator[int, None, None]:
        """Train the student, or go on with it; after the last round, measure the reality gap on the newest images."""
        epoch, index = self.progress.epochs_done, self.progress.epoch.round
        earlier, started = self.progress.epoch.distillation_seconds, self._clock()
        while True:
            inputs = self.batches(epoch, index, self.trainee.steps_done)
            for done in self.trainee.train(epoch, index, plan.distillation_steps, inputs):
                self.progress.epoch.distillation_seconds = earlier + time.perf_counter() - started
                yield done
            self.progress.epoch.distillation_seconds = earlier + self._clock() - started
            if index == plan.rounds - 1:  # asking in each of many short rounds would cost as much as a step
                self._reality_gap_after, *_ = self._compare_on_fresh()
            rollback = self.trainee.settle(epoch, is_sound=math.isfinite(self._reality_gap_after))
            if rollback is None:
                return
            run.record(rollback)

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
        views = self.augmentation(images, Shifts(rows, columns, flips)) if self.synthesizer.augments else images
        views = self.normalization(mix(views, Mixture(*mixture)) if mixture else views)
        with self.runtime.autocast():
            with torch.no_grad():
                teacher_logits = self.teacher(views).float()
            student_logits = self.student(views).float()
        return {"loss": self.synthesizer.distillation_loss(student_logits, teacher_logits)}

    def _compare_on_fresh(self) -> tuple[float, float, float]:
        """Return reality gap, agreement and its baseline on the newest images; of infinite logits the gap is NaN."""
        teacher_logits = self.predict(self.teacher, self.synthesizer.fresh)
        student_logits = self.predict(self.student, self.synthesizer.fresh)
        gap = reality_gap(teacher_logits, student_logits).item()
        return gap, agreement(teacher_logits, student_logits), largest_share(teacher_logits.argmax(dim=1))

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
        self.synthesizer.start_sampling(self.progress.epochs_done, 0, 0)
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
                run.record(Warned(epoch=self.progress.epochs_done + 1, message=sentence))
        self._check_classes(run, self._missing(answered, "new images") or few_classes)
        return Health(**health._asdict(), teacher_counts=listed_counts(answered), target_counts=listed_counts(wanted))

    def _check_given_pool(self, run: RunDirectory) -> Health:
        """Count the classes of an earlier run's pool in the first epoch; record a warning where it lacks some."""
        pool = self.synthesizer.pool
        if self.progress.epochs_done == 0 and pool is not None:
            answers = self.predict(self.teacher, pool.images).argmax(dim=1)
            self.teacher_counts += count_classes(answers, self.card.num_classes)
            self.target_counts += count_classes(pool.targets, self.card.num_classes)
            self._check_classes(run, None)
        return Health()

    def _check_classes(self, run: RunDirectory, new_images_lack: str | None) -> None:
        """Record a warning when images begin to lack classes, and when they no longer do."""
        sentence = new_images_lack or self._missing(self.teacher_counts, "images so far")
        epoch = self.progress.epochs_done + 1
        if sentence is not None and not self.progress.lacks_classes:
            run.record(Warned(epoch=epoch, message=sentence))
        elif sentence is None and self.progress.lacks_classes:
            message = "over: the teacher sees every class in the images again"
            run.record(Warned(epoch=epoch, message=message))
        self.progress.lacks_classes = sentence is not None

    def _missing(self, counts: Tensor, images: str) -> str | None:
        return describe_missing(counts.tolist(), self.card.class_names, images)

    def _clock(self) -> float:
        self.runtime.synchronize()
        return time.perf_counter()


def listed_counts(counts: Tensor) -> list[int] | None:
    """Return counts (K,) as events and results hold them: None where there are too many classes."""
    return counts.tolist() if len(counts) <= MOST_COUNTED_CLASSES else None


def _augmentation(settings: DistillSettings, card: ModelCard) -> Augmentation:
    return Augmentation(
        choose_crop_padding(settings.crop_padding, card.input_shape, card.crop_padding),
        card.flip if settings.flip is None else settings.flip,
        settings.crop_padding_mode or card.crop_padding_mode or settings.method.crop_padding_mode,
    )


def _student_card(
    settings: DistillSettings, teacher: LoadedModel, augmentation: Augmentation, origin: PoolOrigin
) -> ModelCard:
    return teacher.card.model_copy(
        update={
            "architecture": settings.student.name,
            "arguments": settings.student.arguments,
            "outputs": "logits",
            "crop_padding": augmentation.padding,
            "crop_padding_mode": augmentation.padding_mode,
            "flip": augmentation.flip,
            "provenance": Provenance(
                command="distill",
                method=origin.method,
                teacher_sha256=teacher.sha256,
                seed=settings.seed,
                versions=versions(),
            ),
        }
    )


def planned_flops(settings: DistillSettings, teacher: LoadedModel, student: nn.Module) -> int:
    """Return about how many operations a run will take in teacher and student, before its pool is read."""
    shards = None if settings.pool is None else len(pool_shards(settings.pool))
    pool_size = shards and shards * settings.method.synthesis_batch_size
    return settings.method.work(settings.epochs, settings.batch_size, pool_size).flops(*_macs(teacher, student))


def _macs(teacher: LoadedModel, student: nn.Module) -> tuple[int, int]:
    shape = teacher.card.input_shape
    return profile_model(teacher.module, shape).macs, profile_model(student, shape).macs


def make_student(settings: DistillSettings, runtime: Runtime, teacher: LoadedModel) -> nn.Module:
    """Make the student with the weights that it begins with.

    Raises:
        InputError: The weights cannot be used, or the student does not take what the teacher takes.
    """
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
        return PoolSynthesizer(method, context, pool), origin
    if method.needs_batch_norm and not executed_batch_norm_layers(context.teacher, context.image_shape):
        others = ", ".join(m.model_fields["name"].default for m in method_classes() if not m.needs_batch_norm)
        raise InputError(
            f"the teacher {teacher.path} has no batch-norm layers, whose statistics {method.name} "
            f"needs; methods that do not: {others}"
        )
    return method.build(context), PoolOrigin(method.name, teacher.sha256)
