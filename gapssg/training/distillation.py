"""Teacher, student and synthesizer, and the synthesis and distillation steps of an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from gapssg.core.runtime import Runtime, to_uint8
from gapssg.errors import Diverged, InputError, NotFinite, RunError
from gapssg.evaluation.metrics import ClassCounts, count_by_class
from gapssg.evaluation.predict import batch_size_for, predict
from gapssg.models.description import ModelCard, ModelProfile
from gapssg.models.model_file import LoadedModel
from gapssg.models.profile import has_seen_images, profile_model
from gapssg.quality.evidence import ProbeComparison
from gapssg.quality.predictor import share_of
from gapssg.runs.checkpoint import State
from gapssg.runs.directory import RunDirectory, Written, first_pool_shards, read_logits
from gapssg.runs.events import DistillationEpoch, DistillationTiming, Health, Note, RolledBack, Warned
from gapssg.runs.results.common import Scores
from gapssg.runs.time_left import TimeLeft
from gapssg.safe_paths import inside
from gapssg.settings.load import SETTINGS, read_toml
from gapssg.synthesis.context import SynthesisContext
from gapssg.synthesis.labelled_views import LabelledViews
from gapssg.synthesis.pool_synthesizer import PoolSynthesizer
from gapssg.synthesis.shards import read_shard
from gapssg.synthesis.synthesizer import EpochPlan
from gapssg.training.comparison import Differences, differences, images_to_compare
from gapssg.training.distillation_progress import EpochFacts, Progress
from gapssg.training.distillation_setup import (
    choose_augmentation,
    make_student,
    make_synthesizer,
    planned_flops,
    student_card,
)
from gapssg.training.image_monitor import ImageMonitor
from gapssg.training.loop import Phase
from gapssg.training.settings import DistillSettings
from gapssg.training.settling import Settling, SettlingFacts
from gapssg.training.student_steps import LabelledSteps, StudentSteps
from gapssg.training.trainee import Trainee


class Distillation:
    """Teacher, student and synthesizer, and the steps of an epoch.

    Attributes:
        progress: The counters of the run.
        student_steps: The inputs and the loss of the student's steps.
        monitor: Statistics of the synthetic images.
        labelled: Views of the pool's images that the teacher has labelled; None if each step labels its own.
        settling: Decides when the run ends; None if after all epochs.
        time_left: Measures the steps; evaluations of the student are planned and measured there by the caller.
    """

    def __init__(
        self, settings: DistillSettings, runtime: Runtime, teacher: LoadedModel, student: nn.Module | None = None
    ) -> None:
        """Create the synthesizer for a teacher, and the student unless `make_student` has already made it.

        Raises:
            InputError: The student's weights, the pool or the crop padding cannot be used, or the teacher lacks batch
                norm.
        """
        card = teacher.card
        augmentation = choose_augmentation(settings, card)
        student = student or make_student(settings, runtime, teacher)
        context = SynthesisContext(
            teacher=runtime.place(teacher.module).eval().requires_grad_(False),
            normalization=teacher.normalization(runtime.device),
            augmentation=augmentation,
            image_shape=card.input_shape,
            num_classes=card.num_classes,
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            runtime=runtime,
        )
        self.settings = settings
        self.runtime = runtime
        self.teacher_file = teacher
        self.teacher = context.teacher
        self.normalization = context.normalization
        self.augmentation = augmentation
        self.student = runtime.place(student)
        self.synthesizer, self.origin = make_synthesizer(settings, context, teacher)
        self._given = len(self.synthesizer.pool) if settings.pool and self.synthesizer.pool else None
        self._had_seen_images = has_seen_images(student)
        self.labelled = self.synthesizer.labelled
        self.student_steps = (
            StudentSteps(context, self.synthesizer, self.student, settings.method.mixup)
            if self.labelled is None
            else LabelledSteps(context, self.synthesizer, self.student, self.labelled)
        )
        self.trainee = Trainee(
            self.student, self.student_steps.loss, settings.optimizer, runtime, settings.max_rollbacks
        )
        self.progress = Progress()
        self.settling = Settling(settings.epochs, settings.optimizer) if settings.until_settled else None
        self.monitor = ImageMonitor(card.class_names, settings.method.makes_class_images)
        plans = (self.synthesizer.plan(epoch) for epoch in range(settings.epochs))
        self._planned_learning_epochs = sum(plan.advances_learning_rate for plan in plans)
        self._after: Differences | None = None  # after the last round of an epoch
        self._given_classes: list[Tensor] = []
        self._terms: dict[str, Tensor] = {}  # of the last step of the current synthesis
        self.time_left = TimeLeft(self.steps_left())

    @property
    def card(self) -> ModelCard:
        """The card of the student."""
        parts = self.settings, self.teacher_file, self.student, self.augmentation, self.origin
        return student_card(*parts, self._had_seen_images)

    def write_student(self, run: RunDirectory, name: str, failures: Sequence[str] = ()) -> Path:
        """Write the student as a model file of a run, with why it is not usable, and return its path."""
        return run.write_model(name, self.student, self.card.model_copy(update={"failures": tuple(failures)}))

    @property
    def epochs(self) -> int:
        """Epochs of the whole run, as far as is known."""
        return self.settings.epochs if self.settling is None else self.settling.epochs

    @property
    def flops(self) -> int:
        """Floating-point operations of the whole run, as `planned_flops` counts them."""
        macs, steps = self.student_profile.macs, self.progress.step_count + self.steps_left()["distillation"]
        return planned_flops(self.settings, self.teacher_file, self.student, macs, self._given, self.epochs, steps)

    @property
    def images_procedural(self) -> int:
        """The procedural images in the pool."""
        return 0 if self.synthesizer.pool is None else self.synthesizer.pool.procedural

    @cached_property
    def student_profile(self) -> ModelProfile:
        """The size of the student."""
        return profile_model(self.student, self.card.input_shape)

    @cached_property
    def _probes(self) -> ProbeComparison:
        runtime = replace(self.runtime, seed=0)  # as for the prediction at the end
        return ProbeComparison(self.teacher, self.normalization, self.card.input_shape, None, runtime)

    @property
    def can_resume(self) -> bool:
        """Whether a checkpoint is enough to resume from: the images of a pool must be on the disk."""
        settings, pool = self.settings, self.synthesizer.pool
        return settings.keep_pool or pool is None or (settings.pool is not None and not settings.grow_pool)

    def state(self) -> State:
        """Return the state for a checkpoint."""
        trainee = self.trainee.state()
        parts = {"synthesis": self.synthesizer.state_dict(), "terms": self._terms, "counts": self.monitor.state()}
        tensors = trainee.prefixed("trainee.")
        for name, part in parts.items():
            tensors |= State({}, part).prefixed(f"{name}.")
        facts = {**self.progress.model_dump(), "trainee": trainee.facts}
        if self.settling is not None:
            facts["settling"] = self.settling.facts.model_dump()
        facts["had_seen_images"] = self._had_seen_images
        return State(facts, tensors)

    def restore(self, state: State, run: Path, written: Written) -> None:
        """Restore the state of a checkpoint, which lists what the run had written.

        Logits of labelled views that are lost or have changed are computed again, with all that follow them.

        Raises:
            InputError: The checkpoint or the pool of the run is damaged, or a run that has settled is to be longer.
        """
        parts = ("trainee", "settling", "had_seen_images")
        progress = Progress.read({name: fact for name, fact in state.facts.items() if name not in parts})
        if self.settling is not None:
            self.settling.restore(SettlingFacts.read(state.facts.get("settling")))
            self._check_not_extended(self.settling, run)
        progress.check(self.epochs, self.synthesizer.plan)
        planned = self.steps_left()
        self.trainee.restore(state.component("trainee"))
        self.progress = progress
        # Checkpoints of earlier versions lack it.
        self._had_seen_images = bool(state.facts.get("had_seen_images", self._had_seen_images))
        for _ in range(progress.synthesis_rollbacks):
            self.synthesizer.slow_down()
        self.synthesizer.load_state_dict(state.component("synthesis").tensors)
        self.monitor.restore(state.component("counts").tensors, progress.lacks_classes)
        self._terms = state.component("terms").tensors
        if not all(term.numel() == 1 and bool(term.isfinite()) for term in self._terms.values()):
            raise InputError("the losses in the checkpoint are not finite numbers; restart with --overwrite")
        self._restore_pool(run)
        if self.labelled is not None:
            while self.labelled.finished < progress.labelled_images:
                logits = read_logits(run, self.labelled.finished, written)
                if logits is None:
                    break
                self.labelled.restore(logits)
        self.time_left = TimeLeft(self.steps_left())
        made = {kind: planned[kind] - left for kind, left in self.steps_left().items()}
        made["distillation"] += self.trainee.steps_done
        done = progress.epoch
        self.time_left.recall("synthesis", made["synthesis"], progress.synthesis_seconds + done.synthesis_seconds)
        self.time_left.recall(
            "distillation", made["distillation"], progress.distillation_seconds + done.distillation_seconds
        )

    def _check_not_extended(self, settling: Settling, run: Path) -> None:
        planned = read_toml(inside(run) / SETTINGS).get("epochs")
        if settling.settled_after is not None and planned != self.settings.epochs:
            raise InputError(
                f"{run} had settled after epoch {settling.settled_after}, so it gets no more epochs; resume it with "
                f"the --epochs {planned} that it had, or start another run"
            )

    def _restore_pool(self, run: Path) -> None:
        synthesizer = self.synthesizer
        if not isinstance(synthesizer, PoolSynthesizer) or synthesizer.synthesis is None:
            return
        shards = first_pool_shards(run, self.progress.epochs_done + self.progress.epoch.synthesised)
        for epoch, shard in enumerate(shards):
            images, targets, _ = read_shard(shard, self.card.input_shape, self.card.num_classes)
            if len(images) != synthesizer.settings.synthesis_batch_size:
                raise InputError(f"{shard} holds {len(images)} images, not the number that this run synthesises")
            synthesizer.add(epoch, images, targets)

    def steps_left(self) -> dict[str, int]:
        """Return the numbers of synthesis and distillation steps that are left before the current phase."""
        plans = [self.synthesizer.plan(epoch) for epoch in range(self.progress.epochs_done, self.epochs)]
        synthesis = sum(plan.rounds * plan.synthesis_steps for plan in plans)
        distillation = sum(plan.rounds * plan.distillation_steps for plan in plans)
        if plans:
            synthesis -= (self.progress.epoch.round + self.progress.epoch.synthesised) * plans[0].synthesis_steps
            distillation -= self.progress.epoch.round * plans[0].distillation_steps
        left = {"synthesis": synthesis, "distillation": distillation}
        left["classification"] = len(self._given_images())
        if self.labelled is not None:
            grows, size = self.synthesizer.plan(0).synthesis_steps > 0, self.labelled.batch_size
            images = (self._given or 0) + (self.epochs * size if grows else 0)
            left["labelling"] = self.labelled.passes(images) if distillation else 0
        return left

    def phases(self, run: RunDirectory) -> Iterator[Phase]:
        """Yield the phases of the epoch that are left, synthesis and distillation alternately.

        Args:
            run: Where samples, images and rollbacks are written.
        """
        plan = self.synthesizer.plan(self.progress.epochs_done)
        done = self._schedule_done
        if self.settling is not None:
            done = self.settling.progress(self.progress.epochs_done, done)
        self.trainee.set_learning_rate(done)
        epoch = f"epoch {self.progress.epochs_done + 1}"
        if given := self._given_images():
            yield Phase("classification", len(given), self._classify(given), f"{epoch}: classifying the pool")
        while self.progress.epoch.round < plan.rounds:
            place = self.progress.epoch.round, plan.rounds
            if not self.progress.epoch.synthesised:
                work = self._synthesise(plan, run)
                yield Phase("synthesis", plan.synthesis_steps, work, f"{epoch}: synthesis", *place)
            labelled = self.labelled
            if labelled is not None and plan.distillation_steps and (passes := labelled.passes()):
                yield Phase("labelling", passes, self._label_views(labelled, run), f"{epoch}: labelling views")
            work = self._distil(plan, run)
            yield Phase("distillation", plan.distillation_steps, work, f"{epoch}: distillation", *place)
            self.progress.epoch.round += 1
            self.progress.epoch.synthesised = False

    def end_epoch(self, run: RunDirectory, scores: Scores | None) -> DistillationEpoch:
        """Check the newest images and count the epoch, whose phases are done; return its event.

        Args:
            run: Where warnings are recorded.
            scores: Scores of the student on real images, if it was evaluated.
        """
        progress, after = self.progress, self._after
        assert after is not None  # there is at least one round
        plan, done = self.synthesizer.plan(progress.epochs_done), progress.epoch
        health = self._check_images(plan, run)
        steps = plan.rounds * plan.distillation_steps
        progress.synthesis_seconds += done.synthesis_seconds
        progress.distillation_seconds += done.distillation_seconds
        progress.agreement, progress.agreement_baseline = done.agreement_before, done.agreement_baseline
        loss = self.trainee.loss_sum.item() / steps if steps else None
        self.trainee.loss_sum.zero_()
        progress.step_count += steps
        disagreement = self._settle() if steps else None
        progress.learning_epochs += plan.advances_learning_rate
        progress.epochs_done += 1
        progress.epoch = EpochFacts()
        return DistillationEpoch(
            epoch=progress.epochs_done,
            epochs=self.epochs,
            learning_rate=self.trainee.learning_rate,
            synthesis=done.terms,
            health=health,
            pool_size=None if self.synthesizer.pool is None else len(self.synthesizer.pool),
            distillation_loss=loss,
            reality_gap_before=done.reality_gap_before,
            reality_gap_after=after.reality_gap,
            inherent_gap_bound=after.inherent_gap_bound,
            derived_gap_bound=after.derived_gap_bound,
            agreement_before=progress.agreement,
            agreement_baseline=progress.agreement_baseline,
            probe_disagreement=disagreement,
            **(dict(scores) if scores else dict.fromkeys(Scores.model_fields)),
            timing=DistillationTiming(
                synthesis=done.synthesis_seconds,
                distillation=done.distillation_seconds,
                images_per_second=steps * self.settings.batch_size / max(done.distillation_seconds, 1e-9),
                remaining=self.time_left.seconds,
            ),
        )

    @property
    def _schedule_done(self) -> float:
        return self.progress.learning_epochs / self._planned_learning_epochs

    def _settle(self) -> float | None:
        """Measure the disagreement on probe images after an epoch, if it counts, and decide whether it has settled."""
        settling, epochs_done = self.settling, self.progress.epochs_done + 1
        if settling is None or not settling.measures(epochs_done, self._schedule_done):
            return None
        angle = self._probes.disagreement(self.student)
        settling.record(epochs_done, angle)
        return share_of(angle)

    def _check_images(self, plan: EpochPlan, run: RunDirectory) -> Health:
        """Check the newest images or, in the first epoch, the given pool; record warnings."""
        health, warnings, pool = Health(), list[str](), self.synthesizer.pool
        if plan.synthesis_steps:
            fresh, targets = self.synthesizer.fresh, self.synthesizer.fresh_targets
            health, warnings = self.monitor.check_images(fresh, targets, self.predict(self.teacher, fresh))
        elif pool is not None and self.progress.epochs_done == 0:
            warnings = self.monitor.check_pool(pool.targets, torch.cat(self._given_classes))
        for message in warnings:
            run.record(Warned(epoch=self.progress.epochs_done + 1, message=message))
        self.progress.lacks_classes = self.monitor.lacks_classes
        return health

    def _given_images(self) -> tuple[Tensor, ...]:
        """Return, in batches, the images of a given pool; none after the first epoch, or if the run synthesises."""
        pool = self.synthesizer.pool
        if pool is None or self.progress.epochs_done or self.synthesizer.plan(0).synthesis_steps:
            return ()
        return torch.split(pool.images, batch_size_for(self.card.input_shape))

    def _classify(self, given: tuple[Tensor, ...]) -> Generator[int, None, None]:
        """Let the teacher predict the classes of a given pool, which `_check_images` counts."""
        self._given_classes = []
        for done, images in enumerate(given, 1):
            self._given_classes.append(self.predict(self.teacher, images).argmax(dim=1))
            yield done
        self.runtime.synchronize()

    def _label_views(self, labelled: LabelledViews, run: RunDirectory) -> Generator[int, None, None]:
        """Let the teacher label the views of the images that have none; a run that can resume keeps their logits."""
        earlier, started, start = self.progress.epoch.distillation_seconds, self._clock(), labelled.finished
        if (lost := self.progress.labelled_images - start) > 0:
            views = f"{lost * labelled.count:,} views are labelled again"
            run.show(Note(message=f"{views}, because files of the run's logits are lost or have changed"))
        for done in labelled.extend():
            if labelled.finished > start and self.can_resume:
                run.write_logits(start, labelled.logits(start, labelled.finished))
                self.progress.labelled_images = labelled.finished
            start = labelled.finished
            self.progress.epoch.distillation_seconds = earlier + time.perf_counter() - started
            yield done
        self.progress.epoch.distillation_seconds = earlier + self._clock() - started

    def _synthesise(self, plan: EpochPlan, run: RunDirectory) -> Generator[int, None, None]:
        """Synthesise images or resume it, at half the learning rate after each divergence."""
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
                    self._check_teacher(self._views(error.images, plan.synthesis_steps))
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
        """Write the newest images to the run, if it keeps them; samples only in the last round."""
        fresh, targets, epoch = self.synthesizer.fresh, self.synthesizer.fresh_targets, self.progress.epochs_done + 1
        self.progress.images_synthesized += len(fresh)
        if self.settings.samples and is_last:
            run.write_samples(epoch, self.settings.epochs, fresh, targets, self.card.class_names)
        if self.settings.keep_pool and self.synthesizer.pool is not None:
            run.write_pool_shard(epoch, to_uint8(fresh), targets, self.origin)

    def _compare_before(self, plan: EpochPlan) -> None:
        """Compare teacher and student on the newest images before the student trains on them."""
        before = self._compare_on_fresh()
        if not math.isfinite(before.reality_gap):
            self._check_teacher([self.synthesizer.fresh])
            raise self._not_finite("student")
        done = self.progress.epoch
        done.reality_gap_before = before.reality_gap
        # Not for the pool of an earlier run: after the first epoch the student has trained on all of it.
        if plan.synthesis_steps:
            done.agreement_before, done.agreement_baseline = before.agreement, before.agreement_baseline

    def _distil(self, plan: EpochPlan, run: RunDirectory) -> Generator[int, None, None]:
        """Train the student or resume it; after the last round, measure the reality gap on the newest images."""
        epoch, index = self.progress.epochs_done, self.progress.epoch.round
        earlier, started = self.progress.epoch.distillation_seconds, self._clock()
        while True:
            inputs = self.student_steps.batches(epoch, index, self.trainee.steps_done)
            for done in self.trainee.train(epoch, index, plan.distillation_steps, inputs):
                self.progress.epoch.distillation_seconds = earlier + time.perf_counter() - started
                yield done
            self.progress.epoch.distillation_seconds = earlier + self._clock() - started
            # In each of many short rounds it would cost as much as a step.
            self._after = self._compare_on_fresh() if index == plan.rounds - 1 else None
            is_sound = self._after is None or math.isfinite(self._after.reality_gap)
            try:
                rollback = self.trainee.settle(epoch, is_sound)
            except RunError:
                inputs = islice(self.student_steps.batches(epoch, index, 0), plan.distillation_steps)
                self._check_teacher(self.student_steps.views(*each) for each in inputs)
                raise
            if rollback is None:
                return
            run.record(rollback)

    def _check_teacher(self, batches: Iterable[Tensor]) -> None:
        """Raise `NotFinite` if the teacher's logits on finite images, (N, C, H, W) each, are not finite."""
        for images in batches:
            if images.isfinite().all() and not self.predict(self.teacher, images).isfinite().all():
                raise self._not_finite("teacher")

    def _views(self, images: Tensor, count: int) -> Iterator[Tensor]:
        """Yield images of a synthesis, then `count` views of them like those of its steps."""
        yield images
        stream = self.runtime.random_stream("views of a synthesis that diverged")
        for _ in range(count if self.synthesizer.augments else 0):
            yield self.augmentation(images, self.augmentation.draw(len(images), stream))

    def _not_finite(self, whose: str) -> NotFinite:
        return NotFinite(
            f"the {whose}'s logits on the images of epoch {self.progress.epochs_done + 1} are not finite; "
            f"try --precision fp32, or another {whose}"
        )

    def _compare_on_fresh(self) -> Differences:
        fresh, targets = self.synthesizer.fresh, self.synthesizer.fresh_targets
        return differences(self.predict(self.teacher, fresh), self.predict(self.student, fresh), targets)

    def predict(self, module: nn.Module, images: Tensor) -> Tensor:
        """Return the logits (N, K) of images (N, C, H, W), normalising them first."""
        return predict(module, images, self.normalization, self.runtime)

    def compare(self) -> ClassCounts:
        """Count, for each class that the teacher predicts, the images on which the student agrees, at the end of a run.

        The images are those of `images_to_compare`.
        """
        teacher, student = [], []
        size, epoch = self.settings.batch_size, self.progress.epochs_done
        for images in images_to_compare(self.synthesizer, self.card.num_classes, size, epoch):
            teacher.append(self.predict(self.teacher, images).argmax(dim=1))
            student.append(self.predict(self.student, images).argmax(dim=1))
        return count_by_class(torch.cat(student), torch.cat(teacher), self.card.num_classes)

    def _clock(self) -> float:
        self.runtime.synchronize()
        return time.perf_counter()
