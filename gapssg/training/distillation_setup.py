"""The parts of a distillation, made from settings: augmentation, student, synthesizer, cost and model card."""

from __future__ import annotations

from torch import nn

from gapssg.core.augment import Augmentation, choose_crop_padding
from gapssg.core.runtime import Runtime
from gapssg.errors import InputError
from gapssg.models import create_model
from gapssg.models.checkpoint_file import read_checkpoint_weights
from gapssg.models.description import ModelCard, Provenance
from gapssg.models.foreign import check_classifier
from gapssg.models.model_file import LoadedModel, load_foreign_weights
from gapssg.models.profile import executed_batch_norm_layers, profile_model
from gapssg.runs.directory import pool_shards, versions
from gapssg.synthesis import SynthesisContext, Synthesizer, method_classes
from gapssg.synthesis.base import PoolMethodSettings
from gapssg.synthesis.pool_synthesizer import PoolSynthesizer, read_pool
from gapssg.synthesis.shards import PoolOrigin
from gapssg.training.settings import DistillSettings


def choose_augmentation(settings: DistillSettings, card: ModelCard) -> Augmentation:
    """Return the augmentation of the settings, or of the teacher's card where they set none.

    Raises:
        InputError: The crop padding is as large as the images.
    """
    return Augmentation(
        choose_crop_padding(settings.crop_padding, card.input_shape, card.crop_padding),
        card.flip if settings.flip is None else settings.flip,
        settings.crop_padding_mode or card.crop_padding_mode or settings.method.crop_padding_mode,
    )


def make_student(settings: DistillSettings, runtime: Runtime, teacher: LoadedModel) -> nn.Module:
    """Create the student with its initial weights.

    Raises:
        InputError: The weights cannot be used, or the student does not fit the teacher's images and classes.
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
        weights = read_checkpoint_weights(settings.student.weights)
        load_foreign_weights(student, weights.tensors, settings.student.weights)
        check_classifier(student, settings.student.name, teacher.card.num_classes, teacher.card.input_shape)
    return student


def make_synthesizer(
    settings: DistillSettings, context: SynthesisContext, teacher: LoadedModel
) -> tuple[Synthesizer, PoolOrigin]:
    """Create the synthesizer, and return where its images come from.

    Raises:
        InputError: The method cannot use the pool, or needs batch norm, which the teacher lacks.
    """
    method = settings.method
    if settings.pool is not None:
        if not isinstance(method, PoolMethodSettings):
            raise InputError(
                f"--pool: {method.name} samples its generator; omit --pool, or choose a method with a pool"
            )
        pool, origin = read_pool(pool_shards(settings.pool), context)
        return PoolSynthesizer(method, context, pool), origin
    if method.needs_batch_norm and not executed_batch_norm_layers(context.teacher, context.image_shape):
        others = ", ".join(m.model_fields["name"].default for m in method_classes() if not m.needs_batch_norm)
        raise InputError(
            f"the teacher {teacher.path} has no batch-norm layers, whose statistics {method.name} "
            f"needs; methods that do not: {others}"
        )
    return method.build(context), PoolOrigin(method.name, teacher.sha256)


def planned_flops(
    settings: DistillSettings, teacher: LoadedModel, student: nn.Module, pool_size: int | None = None
) -> int:
    """Return the floating-point operations of a run in teacher and student, as `Work.flops` counts them.

    Without `pool_size`, the size of a given pool is estimated from the number of its shards.
    """
    if pool_size is None and settings.pool is not None:
        pool_size = len(pool_shards(settings.pool)) * settings.method.synthesis_batch_size
    macs = (profile_model(module, teacher.card.input_shape).macs for module in (teacher.module, student))
    return settings.method.work(settings.epochs, settings.batch_size, pool_size).flops(*macs)


def student_card(
    settings: DistillSettings, teacher: LoadedModel, augmentation: Augmentation, origin: PoolOrigin
) -> ModelCard:
    """Return the card of the student, most of which is that of the teacher."""
    return teacher.card.model_copy(
        update={
            "architecture": settings.student.name,
            "arguments": settings.student.arguments,
            "outputs": "logits",
            "graph": None,
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
