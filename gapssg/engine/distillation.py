"""Teacher, student and synthesizer, and what one epoch does with them."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gapssg.augment import Augmentation, Normalization, Shifts, crop_and_flip
from gapssg.engine.checkpoint import Checkpoint, restore
from gapssg.engine.inference import predict
from gapssg.engine.metrics import agreement
from gapssg.engine.optimizer import make_optimizer, set_learning_rate
from gapssg.engine.run_directory import RunDirectory, pool_shards, versions
from gapssg.engine.settings import DistillSettings
from gapssg.engine.step import TrainingStep
from gapssg.errors import InputError, RunError
from gapssg.models import create_model
from gapssg.models.model_file import LoadedModel, Provenance, load_weights, save_model
from gapssg.models.profile import batch_norm_layers
from gapssg.models.safetensors_file import read_safetensors
from gapssg.runtime import Runtime, to_uint8
from gapssg.synthesis import EpochPlan, SynthesisContext, Synthesizer, method_classes
from gapssg.synthesis.health import synthesis_health
from gapssg.synthesis.losses import reality_gap
from gapssg.synthesis.pool_synthesizer import PoolSynthesizer, read_pool
from gapssg.synthesis.shards import PoolOrigin, read_shard

_FACTS = ("learning_rate", "learning_epochs", "agreement", "images_synthesized", "step_count", "seconds")


class Distillation:
    """Teacher, student and synthesizer, and what one epoch does with them."""

    def __init__(self, settings: DistillSettings, runtime: Runtime, teacher: LoadedModel) -> None:
        """Make the student and the synthesizer for a teacher.

        Raises:
            InputError: The student's weights or the pool cannot be used, or the teacher lacks batch norm.
        """
        card = teacher.card
        self.settings = settings
        self.runtime = runtime
        self.teacher_file = teacher
        context = SynthesisContext(
            teacher=runtime.place(teacher.module).eval().requires_grad_(False),
            normalization=Normalization.from_statistics(card.mean, card.deviation, runtime.device),
            augmentation=Augmentation(card.crop_padding, card.flip),
            image_shape=card.input_shape,
            num_classes=card.num_classes,
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            runtime=runtime,
        )
        self.teacher = context.teacher
        self.normalization = context.normalization
        self.augmentation = context.augmentation
        self.student = runtime.place(_make_student(settings, runtime, teacher))
        self.synthesizer, self.origin = _make_synthesizer(settings, context, teacher)
        self.card = card.model_copy(
            update={
                "architecture": settings.student.name,
                "provenance": Provenance(
                    command="distill",
                    method=self.origin.method,
                    teacher_sha256=teacher.sha256,
                    seed=settings.seed,
                    versions=versions(),
                ),
            }
        )
        self.optimizer = make_optimizer(self.student, settings.optimizer)
        self.learning_rate = settings.optimizer.learning_rate
        self.agreement: float | None = None
        self.images_synthesized = 0
        self.step_count = 0
        self.seconds = {"synthesis": 0.0, "distillation": 0.0}
        self.learning_epochs = 0
        self.step = TrainingStep(self._loss, self.optimizer, runtime)

    def save_student(self, path: Path) -> None:
        """Write the student as a model file."""
        save_model(path, self.student, self.card)

    @property
    def can_continue(self) -> bool:
        """Whether a checkpoint suffices to continue: the images must be on disk."""
        return self.settings.pool is not None or self.settings.keep_pool

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint keeps besides tensors."""
        return {name: getattr(self, name) for name in _FACTS}

    def restore(self, checkpoint: Checkpoint, run: Path) -> None:
        """Go back to where a checkpoint was written.

        Raises:
            InputError: The checkpoint or the pool of the run is damaged.
        """
        restore(checkpoint, self.student, self.optimizer)
        for name in _FACTS:
            setattr(self, name, checkpoint.facts["distillation"][name])
        if self.settings.pool is None and self.synthesizer.pool is not None:
            for shard in pool_shards(run)[: checkpoint.epoch]:
                images, targets, _ = read_shard(shard, self.card.input_shape, self.card.num_classes)
                self.synthesizer.pool.append(images, targets)

    def run_epoch(self, epoch: int, run: RunDirectory) -> dict[str, Any]:
        """Synthesise and distil; return what the epoch's event says of it."""
        plan = self.synthesizer.plan(epoch)
        self.learning_rate = set_learning_rate(
            self.optimizer, self.settings.optimizer, self.learning_epochs / self.settings.epochs
        )
        self.learning_epochs += plan.advances_learning_rate
        synthesis_seconds = distillation_seconds = 0.0
        with self.runtime.seeded_globals("modules", epoch):
            for index in range(plan.rounds):
                started = self._clock()
                terms = self._synthesise(epoch, index, plan, run)
                synthesised = self._clock()
                before = self._compare_on_fresh(epoch)
                distillation_started = self._clock()
                loss = self._distil(epoch, index, plan, run)
                distilled = self._clock()
                synthesis_seconds += synthesised - started
                distillation_seconds += distilled - distillation_started
        after = self._compare_on_fresh(epoch)
        # From the samples of an earlier run there is none: a trained student has trained on all of them.
        self.agreement = before["agreement"] if plan.synthesis_steps else None
        self.seconds["synthesis"] += synthesis_seconds
        self.seconds["distillation"] += distillation_seconds
        health = self._check_health(epoch, run) if plan.synthesis_steps else {}
        return {
            "learning_rate": self.learning_rate,
            "synthesis": terms,
            "health": health,
            "pool_size": None if self.synthesizer.pool is None else len(self.synthesizer.pool),
            "distillation_loss": loss,
            "reality_gap_before": before["reality_gap"],
            "reality_gap_after": after["reality_gap"],
            "agreement_before": self.agreement,
            "timing": {
                "synthesis": synthesis_seconds,
                "distillation": distillation_seconds,
                "images_per_second": plan.rounds
                * plan.distillation_steps
                * self.settings.batch_size
                / max(distillation_seconds, 1e-9),
            },
        }

    def _synthesise(self, epoch: int, index: int, plan: EpochPlan, run: RunDirectory) -> dict[str, float]:
        """Make new images; return the loss terms of the last step."""
        terms: dict[str, Tensor] = {}
        total = plan.rounds * plan.synthesis_steps
        for step, terms in enumerate(self.synthesizer.synthesis_steps(self.student, epoch), 1):  # noqa: B007
            run.progress(f"epoch {epoch + 1}: synthesis", index * plan.synthesis_steps + step, total)
        if plan.synthesis_steps:
            fresh = self.synthesizer.fresh
            self.images_synthesized += len(fresh)
            if self.settings.samples:
                run.write_samples(epoch + 1, fresh)
            if self.settings.keep_pool and self.synthesizer.pool is not None:
                run.write_pool_shard(epoch + 1, to_uint8(fresh), self.synthesizer.fresh_targets, self.origin)
        return {
            name: _finite(term.item(), name, epoch, "method.generator_learning_rate") for name, term in terms.items()
        }

    def _distil(self, epoch: int, index: int, plan: EpochPlan, run: RunDirectory) -> float:
        """Train the student; return the mean loss."""
        batch_size = self.settings.batch_size
        stream = self.runtime.random_stream("augmentation", epoch, index)
        total = torch.zeros((), device=self.runtime.device)
        self.student.train()
        for step in range(plan.distillation_steps):
            images = self.synthesizer.sample(batch_size)
            shifts = self.augmentation.draw(batch_size, stream)
            total += self.step(images, shifts)
            done = index * plan.distillation_steps + step + 1
            run.progress(f"epoch {epoch + 1}: distillation", done, plan.rounds * plan.distillation_steps)
        self.step_count += plan.distillation_steps
        return _finite(total.item() / plan.distillation_steps, "distillation loss", epoch)

    def _loss(self, images: Tensor, shifts: Shifts) -> Tensor:
        views = crop_and_flip(images, shifts) if self.synthesizer.augments else images
        views = self.normalization(views)
        with self.runtime.autocast():
            with torch.no_grad():
                teacher_logits = self.teacher(views).float()
            student_logits = self.student(views).float()
        return self.synthesizer.distillation_loss(student_logits, teacher_logits)

    def _compare_on_fresh(self, epoch: int) -> dict[str, float]:
        """Compare teacher and student on the newest images, as they are."""
        teacher_logits = self.predict(self.teacher, self.synthesizer.fresh)
        student_logits = self.predict(self.student, self.synthesizer.fresh)
        return {
            "reality_gap": _finite(reality_gap(teacher_logits, student_logits).item(), "student's output", epoch),
            "agreement": agreement(teacher_logits, student_logits),
        }

    def predict(self, module: nn.Module, images: Tensor) -> Tensor:
        """Return logits (N, K) of images that are not normalised yet."""
        return predict(module, images, self.normalization, self.runtime)

    def _check_health(self, epoch: int, run: RunDirectory) -> dict[str, float]:
        """Measure the newest images; record a warning where they have collapsed."""
        fresh = self.synthesizer.fresh
        health = synthesis_health(fresh, self.synthesizer.fresh_targets, self.predict(self.teacher, fresh))
        if self.settings.method.makes_class_images:
            for sentence in health.warnings(self.card.num_classes, len(fresh)):
                run.record("warning", epoch=epoch + 1, message=sentence)
        return health._asdict()

    def _clock(self) -> float:
        self.runtime.synchronize()
        return time.perf_counter()


def _make_student(settings: DistillSettings, runtime: Runtime, teacher: LoadedModel) -> nn.Module:
    student = create_model(
        settings.student.name,
        num_classes=teacher.card.num_classes,
        input_shape=teacher.card.input_shape,
        seed=runtime.derive_seed("initial-weights"),
    )
    if settings.student.weights is not None:
        load_weights(student, read_safetensors(settings.student.weights).tensors, settings.student.weights)
    return student


def _make_synthesizer(
    settings: DistillSettings, context: SynthesisContext, teacher: LoadedModel
) -> tuple[Synthesizer, PoolOrigin]:
    method = settings.method
    if settings.pool is not None:
        pool, origin = read_pool(pool_shards(settings.pool), context)
        return PoolSynthesizer(method, context, None, pool), origin
    if method.needs_batch_norm and not batch_norm_layers(context.teacher):
        others = ", ".join(m.model_fields["name"].default for m in method_classes() if not m.needs_batch_norm)
        raise InputError(
            f"the teacher {teacher.path} has no batch-norm layers, whose statistics {method.name} "
            f"needs; methods that do not: {others}"
        )
    return method.build(context), PoolOrigin(method.name, teacher.sha256)


def _finite(value: float, what: str, epoch: int, setting: str = "optimizer.learning_rate") -> float:
    if not math.isfinite(value):
        raise RunError(f"the {what.replace('_', ' ')} of epoch {epoch + 1} is not finite; lower {setting}")
    return value
