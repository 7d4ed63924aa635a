"""The parts of a distillation, made from settings: augmentation, student, synthesizer, cost and model card."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from gapssg.core.augment import Augmentation, choose_crop_padding
from gapssg.core.muon import products_per_step
from gapssg.core.runtime import Runtime
from gapssg.errors import InputError
from gapssg.models import create_model
from gapssg.models.checkpoint_file import read_checkpoint_weights
from gapssg.models.description import ModelCard, Provenance
from gapssg.models.foreign import check_finite_logits, check_is_module, copy_module, name_of_module, tensors_of
from gapssg.models.model_file import LoadedModel, load_foreign_weights, load_model
from gapssg.models.model_path import model_file
from gapssg.models.recognition import adapt_trainable
from gapssg.models.reference import MODULE
from gapssg.models.signature import signature_of
from gapssg.runs.directory import pool_shards, versions
from gapssg.synthesis import method_classes
from gapssg.synthesis.base import BATCH_NORM, PoolMethodSettings, RunSize
from gapssg.synthesis.context import SynthesisContext
from gapssg.synthesis.pool_synthesizer import PoolSynthesizer, read_pool
from gapssg.synthesis.requirements import missing_for
from gapssg.synthesis.shards import PoolOrigin
from gapssg.synthesis.synthesizer import Synthesizer
from gapssg.training.memory import StepMemory, saved_bytes, training_memory
from gapssg.training.settings import DistillSettings


def choose_augmentation(settings: DistillSettings, card: ModelCard) -> Augmentation:
    """Return the augmentation of the settings or else the teacher; raise `InputError` if crops may miss an image."""
    return Augmentation(
        choose_crop_padding(settings.crop_padding, card.input_shape, card.crop_padding),
        card.flip if settings.flip is None else settings.flip,
        settings.crop_padding_mode or card.crop_padding_mode or settings.method.crop_padding_mode,
    )


def with_modules(settings: DistillSettings, teacher: LoadedModel | None, student: nn.Module | None) -> DistillSettings:
    """Return the settings of a run with the modules of a Python program, where they are not None.

    Raises `InputError` if the settings name another teacher or student, or there is none.
    """
    if teacher is not None and not isinstance(teacher, LoadedModel):
        raise InputError("the teacher is not a loaded model; pass teacher=model_from_module(module, ...)")
    if teacher is not None and settings.teacher not in (Path(MODULE), teacher.path):
        raise InputError(f"the settings name the teacher {settings.teacher}, but another is passed; leave one out")
    if teacher is None and settings.teacher == Path(MODULE):
        raise InputError(
            "there is no teacher: name a model file in the settings, or pass a module: "
            "distill(..., teacher=model_from_module(module, ...))"
        )
    if student is not None:
        check_is_module(student, "the student")
    if student is not None and (settings.student.name != MODULE or settings.student.arguments):
        raise InputError(f"the settings name the student {settings.student.name}, but another is passed; leave one out")
    if student is None and settings.student.name == MODULE:
        raise InputError(
            "there is no student: name one in the settings, or pass a module: distill(..., student=module)"
        )
    return settings if teacher is None else settings.model_copy(update={"teacher": teacher.path})


def read_teacher(settings: DistillSettings, given: LoadedModel | None) -> LoadedModel:
    """Read the teacher's file, or copy the teacher that a Python program has given.

    Raises `InputError` as `load_model`, or if the logits of the teacher of a file are not finite.
    """
    if given is None:
        teacher = load_model(settings.teacher, (*settings.model_factories, settings.student.name))
        card = teacher.card
        check_finite_logits(teacher.module, f"the teacher {teacher.path}", card.num_classes, card.input_shape)
        return teacher
    return replace(given, module=copy_module(given.module, given.card.architecture).eval())


def make_student(
    settings: DistillSettings,
    runtime: Runtime,
    teacher: LoadedModel,
    given: nn.Module | None = None,
    resumes: bool = False,
) -> nn.Module:
    """Create the student with its initial weights, or copy the module that a Python program has given.

    For a run that resumes, whose checkpoint has the weights, those of `settings.student.weights` are not read. Raises
    `InputError` if the weights cannot be used, or the student does not fit the teacher's images and classes.
    """
    weights = None if resumes else settings.student.weights
    if given is not None:
        student, name = copy_module(given, "the student"), name_of_module(given)
    else:
        name = settings.student.name
        student = create_model(
            name,
            num_classes=teacher.card.num_classes,
            input_shape=teacher.card.input_shape,
            seed=runtime.derive_seed("initial-weights"),
            arguments=settings.student.arguments,
            weights_follow=weights is not None,
        )
    if weights is not None:
        load_foreign_weights(student, read_checkpoint_weights(model_file(weights)).tensors, weights)
    if given is not None or settings.student.weights is not None:
        adapt_trainable(student, name, teacher.card.num_classes, teacher.card.input_shape)
    return student


def sha256_of_layout(module: nn.Module) -> str:
    """Return the SHA-256 of a module's class and its tensors' names, shapes and dtypes; raises as `tensors_of`."""
    name = name_of_module(module)
    lines = [f"{key}: {tensor.dtype} {tuple(tensor.shape)}" for key, tensor in tensors_of(module, name).items()]
    return hashlib.sha256("\n".join([name, *lines]).encode()).hexdigest()


def sha256_of_tensors(module: nn.Module) -> str:
    """Return the SHA-256 of the values of a module's tensors, in hexadecimal."""
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def make_synthesizer(
    settings: DistillSettings, context: SynthesisContext, teacher: LoadedModel
) -> tuple[Synthesizer, PoolOrigin]:
    """Create the synthesizer, and return where its images come from.

    Raises `InputError` if the method cannot use the pool, or needs batch norm, which the teacher lacks.
    """
    method = settings.method
    if settings.pool is not None:
        if not isinstance(method, PoolMethodSettings):
            raise InputError(
                f"--pool: {method.name} samples its generator; omit --pool, or choose a method with a pool"
            )
        if not settings.grow_pool:
            pool, origin = read_pool(pool_shards(settings.pool), context)
            return PoolSynthesizer(method, context, pool, grows=False), origin
    elif settings.grow_pool:
        raise InputError("grow_pool: there is no pool to start with; add --pool RUN")
    if missing_for(type(method), context.teacher, context.image_shape, context.num_classes) == BATCH_NORM:
        others = ", ".join(m.model_fields["name"].default for m in method_classes() if not m.needs_batch_norm)
        raise InputError(
            f"the teacher {teacher.path} has no batch-norm layers, whose statistics {method.name} "
            f"needs; methods that do not: {others}"
        )
    origin = PoolOrigin(method.name, teacher.sha256)
    if settings.pool is not None and isinstance(method, PoolMethodSettings):
        more = settings.epochs * method.images_per_epoch
        pool, made_by = read_pool(pool_shards(settings.pool), context, more)
        if made_by.teacher_sha256 != teacher.sha256:
            raise InputError(
                f"grow_pool: the pool of {settings.pool} was made for another teacher; use one of this one"
            )
        return PoolSynthesizer(method, context, pool), origin
    return method.build(context), origin


def step_memory(
    settings: DistillSettings, runtime: Runtime, teacher: LoadedModel, student: nn.Module, synthesizer: Synthesizer
) -> dict[str, StepMemory]:
    """Return the memory of the steps of distillation and synthesis, by the kinds of their phases."""
    shape, precision = teacher.card.input_shape, runtime.precision
    steps = {"distillation": training_memory(student, shape, settings.batch_size, precision)}
    run = RunSize(settings.epochs, settings.batch_size, None if settings.pool is None else 0, settings.grow_pool)
    work = settings.method.work(run)
    if work.synthesis or work.teacher_alone:
        passed = (teacher.module, student) if work.synthesis else (teacher.module,)
        kept = sum(saved_bytes(module, shape, precision, trains=False) for module in passed)
        generator = synthesizer.generator
        if generator is not None:
            kept += saved_bytes(generator, (generator.latent_size,), precision, trains=True)
        option = "--set method.synthesis_batch_size="
        steps["synthesis"] = StepMemory(option, settings.method.synthesis_batch_size, kept)
    return steps


def planned_flops(
    settings: DistillSettings,
    teacher: LoadedModel,
    student: nn.Module,
    student_macs: int,
    pool_size: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
) -> int:
    """Return the floating-point operations of a run: of teacher and student, as `Work.flops` counts them, and of Muon.

    `student_macs` are the student's multiply-adds for one image. Without `pool_size`, the size of a given pool is
    estimated from the number of its shards. The run may end after fewer `epochs` than planned, and have other
    distillation `steps`: one that is extended waits again in the warm-up of the longer run.
    """
    if pool_size is None and settings.pool is not None:
        pool_size = len(pool_shards(settings.pool)) * settings.method.synthesis_batch_size
    run = RunSize(epochs or settings.epochs, settings.batch_size, pool_size, settings.grow_pool, settings.epochs)
    work = settings.method.work(run)
    if steps is not None:
        work = work._replace(distillation=steps * settings.batch_size)
    products = products_per_step(student) if settings.optimizer.algorithm == "muon" else 0
    return work.flops(teacher.profile.macs, student_macs) + products * -(-work.distillation // settings.batch_size)


def student_card(
    settings: DistillSettings,
    teacher: LoadedModel,
    student: nn.Module,
    augmentation: Augmentation,
    origin: PoolOrigin,
    had_seen_images: bool,
) -> ModelCard:
    """Return the card of the student, most of which is that of the teacher.

    `had_seen_images` is whether the student's batch norms had statistics of images before the run.
    """
    grows, method = settings.pool is None or settings.grow_pool, settings.method
    procedural = grows and isinstance(method, PoolMethodSettings) and method.procedural_images > 0
    return teacher.card.model_copy(
        update={
            "architecture": name_of_module(student) if settings.student.name == MODULE else settings.student.name,
            "arguments": settings.student.arguments,
            **asdict(signature_of(student)),
            "graph": None,
            "crop_padding": augmentation.padding,
            "crop_padding_mode": augmentation.padding_mode,
            "flip": augmentation.flip,
            "provenance": Provenance(
                command="distill",
                method=origin.method,
                teacher_sha256=teacher.sha256,
                pool_teacher_sha256=origin.teacher_sha256 if origin.teacher_sha256 != teacher.sha256 else None,
                procedural=procedural or None,
                initial_weights=had_seen_images or settings.student.weights is not None or None,
                seed=settings.seed,
                versions=versions(),
            ),
        }
    )
