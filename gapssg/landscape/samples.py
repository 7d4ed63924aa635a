"""The samples of a landscape: images, their labels or teacher logits, and the loss."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from gapssg.core.runtime import Runtime
from gapssg.errors import InputError
from gapssg.evaluation.predict import predict
from gapssg.evaluation.real_images import read_test_images
from gapssg.evaluation.teachers import read_teacher
from gapssg.landscape.settings import POOL, LandscapeSettings
from gapssg.landscape.subjects import Subject
from gapssg.runs.directory import Display, pool_shards
from gapssg.synthesis.losses import distillation_divergence
from gapssg.synthesis.shards import read_images


@dataclass(frozen=True, eq=False)
class Samples:
    """Images on the device with their targets.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, the classes or the teacher's predictions.
        teacher_logits: (N, K) float32 for the distillation loss; None for the cross-entropy.
        temperature: Temperature of the distillation loss.
        sha256: SHA-256 of the images and the labels that were read, without a teacher's predictions.
        teacher_sha256: SHA-256 of the file of the teacher that labelled them, if any.
    """

    images: Tensor
    labels: Tensor
    teacher_logits: Tensor | None = None
    temperature: float = 1.0
    sha256: str = ""
    teacher_sha256: str | None = None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.images)

    def take(self, chosen: Tensor | slice) -> Samples:
        """Return some of the samples."""
        teacher = None if self.teacher_logits is None else self.teacher_logits[chosen]
        return replace(self, images=self.images[chosen], labels=self.labels[chosen], teacher_logits=teacher)

    def draw(self, count: int, generator: torch.Generator) -> Samples:
        """Return at most `count` of the samples, drawn without replacement."""
        if len(self) <= count:
            return self
        order = torch.randperm(len(self), generator=generator, device=generator.device)
        return self.take(order[:count].sort().values.to(self.images.device))

    def loss(self, logits: Tensor) -> Tensor:
        """Return the mean loss of logits (N, K), a scalar of their type."""
        if self.teacher_logits is None:
            return F.cross_entropy(logits, self.labels)
        return distillation_divergence(logits, self.teacher_logits.to(logits.dtype), self.temperature)

    @property
    def loss_name(self) -> str:
        """Name of the loss for labels."""
        if self.teacher_logits is None:
            return "cross-entropy"
        return f"distillation loss at temperature {self.temperature:g}"

    @property
    def accuracy_name(self) -> str:
        """Name of the accuracy for labels."""
        return "accuracy" if self.teacher_logits is None else "agreement with the teacher"


def read_samples(settings: LandscapeSettings, subject: Subject, runtime: Runtime, display: Display) -> Samples:
    """Read the samples for all subjects, on the runtime's device.

    The choice of samples does not depend on the device. `subject` is the first subject, whose input shape and pool are
    used. Raises `InputError` if the data or the pool cannot be used, or do not fit the model.
    """
    if settings.data.name == POOL:
        return _read_pool(settings, subject, runtime)
    images = read_test_images(settings.data, subject.model, display)
    drawn = _draw(Samples(images.images, images.labels), settings, runtime)
    return replace(drawn, images=drawn.images.to(runtime.device), labels=drawn.labels.to(runtime.device))


def _draw(samples: Samples, settings: LandscapeSettings, runtime: Runtime) -> Samples:
    generator = torch.Generator().manual_seed(runtime.derive_seed("landscape samples"))
    drawn = samples.draw(settings.samples, generator)
    digest = hashlib.sha256()
    for tensor in (drawn.images, drawn.labels):
        digest.update(tensor.contiguous().numpy().data)
    return replace(drawn, sha256=digest.hexdigest())


def _read_pool(settings: LandscapeSettings, subject: Subject, runtime: Runtime) -> Samples:
    run, card = subject.run, subject.model.card
    if run is None:
        raise InputError(f"--data pool: {subject.model.path} is not a run; name the run's directory, not its file")
    if run.distillation is None:
        raise InputError(f"--data pool: {run.path} is not a `distill` run, so it has no pool; use real images")
    images = read_images(pool_shards(run.path), card.input_shape, card.num_classes)
    teacher = read_teacher(
        subject.model, settings.teacher, run.distillation.teacher, settings.model_factories, "--data pool"
    )
    # Always in float32, because the teacher's logits are the reference.
    exact = replace(runtime, precision="fp32")
    drawn = _draw(Samples(images, images.new_zeros(len(images), dtype=torch.int64)), settings, runtime)
    logits = predict(runtime.place(teacher.module), drawn.images, teacher.normalization(runtime.device), exact)
    return Samples(
        drawn.images.to(runtime.device),
        logits.argmax(dim=1),
        logits.clone(),
        run.distillation.method.temperature,
        drawn.sha256,
        teacher.sha256,
    )
