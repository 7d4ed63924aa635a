"""What is audited: models, the sample pool, and images whose membership is known."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gapssg.audit.settings import AuditSettings, MembersSettings, NonMembersSettings
from gapssg.data.image_set import ImageSet, sha256_of_images
from gapssg.errors import InputError
from gapssg.evaluation.real_images import check_same_images, read_images_of_model
from gapssg.evaluation.teachers import read_teacher
from gapssg.models.model_file import LoadedModel, load_model
from gapssg.runs.directory import Display, pool_shards
from gapssg.runs.events import Warned
from gapssg.runs.results.audit import AuditedImages, Role
from gapssg.synthesis.shards import read_shard
from gapssg.training.settings import distillation_of


@dataclass(frozen=True)
class Audited:
    """The models and the sample pool."""

    models: Mapping[Role, LoadedModel]
    """By role, the teacher first if it is known."""
    pool: Tensor | None
    """The synthetic images (N, C, H, W) uint8 of a run; None if a model file was named."""

    @property
    def first(self) -> LoadedModel:
        """The teacher or, if it is not known, the only model."""
        return next(iter(self.models.values()))


@dataclass(frozen=True)
class KnownImages:
    """Members and non-members, on the CPU."""

    members: ImageSet
    """The images that the teacher was trained on."""
    non_members: ImageSet
    """Images that are not among them."""
    numbers: Tensor
    """(N,) int64, the numbers of the non-members in their split."""
    facts: tuple[AuditedImages, AuditedImages]
    """Facts of members and non-members."""

    @property
    def both(self) -> ImageSet:
        """Members and then non-members."""
        sets = (self.members, self.non_members)
        images, labels = (torch.cat(parts) for parts in zip(*((s.images, s.labels) for s in sets), strict=True))
        return ImageSet(images, labels, self.members.class_names)


def read_audited(settings: AuditSettings) -> Audited:
    """Read the models and the pool that the settings name.

    Raises `InputError` if a file is missing or damaged, the models do not fit each other, or a run has no pool.
    """
    model = load_model(settings.model, settings.model_factories)
    distillation = distillation_of(settings.model) if settings.model.is_dir() else None
    teacher = None
    if distillation or settings.teacher:
        recorded = None if distillation is None else distillation.teacher
        teacher = read_teacher(model, settings.teacher, recorded, settings.model_factories, "the audit")
    if teacher is None:
        return Audited({"student" if model.card.provenance.teacher_sha256 else "model": model}, None)
    check_same_images(teacher, model)
    pool = None if distillation is None else _read_pool(settings.model, model, teacher)
    return Audited({"teacher": teacher, "student": model}, pool)


def _read_pool(run: Path, student: LoadedModel, teacher: LoadedModel) -> Tensor:
    try:
        shards = pool_shards(run)
    except InputError as error:
        raise InputError(
            f"{run} has no sample pool to audit: {error}; to audit only its models, name {student.path} "
            f"and --teacher {teacher.path}"
        ) from error
    parts = []
    for shard in shards:
        images, _, origin = read_shard(shard, teacher.card.input_shape, teacher.card.num_classes)
        if origin.teacher_sha256 != teacher.sha256:
            raise InputError(f"{shard} was synthesised from another teacher than {teacher.path}; name another run")
        parts.append(images)
    return torch.cat(parts)


def read_known_images(settings: AuditSettings, model: LoadedModel, display: Display) -> KnownImages:
    """Read members and non-members; images in both are left out of the non-members.

    Raises `InputError` if the images do not fit the model, or all non-members are members.
    """
    members = read_images_of_model(settings.members, settings.members.split, model, display)
    others = read_images_of_model(settings.non_members, settings.non_members.split, model, display)
    known = set(_digests(members.images))
    is_new = torch.tensor([digest not in known for digest in _digests(others.images)])
    named, shared = _describe(settings.non_members), int((~is_new).sum())
    if shared == len(others):
        raise InputError(
            f"every image of --non-members ({named}) is also in --members ({_describe(settings.members)}), by SHA-256; "
            "name images that the teacher was not trained on"
        )
    if shared:
        message = f"{shared:,} of {len(others):,} images of {named} are also members, by SHA-256, and are left out"
        display.event(Warned(epoch=0, message=message))
    non_members = ImageSet(others.images[is_new], others.labels[is_new], others.class_names)
    facts = (_facts(settings.members, members, 0), _facts(settings.non_members, non_members, shared))
    return KnownImages(members, non_members, is_new.nonzero().squeeze(1), facts)


def _digests(images: Tensor) -> list[bytes]:
    return [hashlib.sha256(image.numpy().data).digest() for image in images.contiguous()]


def _describe(data: MembersSettings | NonMembersSettings) -> str:
    return f"{data.name}, split {data.split}"


def _facts(data: MembersSettings | NonMembersSettings, images: ImageSet, left_out: int) -> AuditedImages:
    return AuditedImages(
        data=data.name, split=data.split, images=len(images), left_out=left_out, sha256=sha256_of_images(images)
    )
