"""Base settings of data-free methods. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from gapssg.settings.base import Settings
from gapssg.settings.parts import PaddingMode

BATCH_NORM, LAST_LINEAR = "batch-norm layers", "a last linear layer"
LINEAR_OR_EMBEDDINGS = "a last linear layer or method.label_embeddings"
"""What a method can need of a teacher."""
ImagePrior = Literal["batch-norm statistics", "input statistics"]
"""What keeps the images of `gapssg` and `gapssg-fast` like those of the teacher's training."""

if TYPE_CHECKING:
    from torch import Tensor

    from gapssg.synthesis.context import SynthesisContext
    from gapssg.synthesis.synthesizer import Synthesizer


class Work(NamedTuple):
    """Number of images that pass through the networks in a run, repetitions included."""

    synthesis: int
    """Forward and backward through teacher and student."""
    distillation: int
    """Forward and backward through the student."""
    labelled: int | None = None
    """Forward through the teacher in distillation; None if those are the images of the student."""
    teacher_alone: int = 0
    """Further ones of synthesis, forward and backward through the teacher alone."""

    def flops(self, teacher_macs: int, student_macs: int) -> int:
        """Return the floating-point operations in teacher and student, given the multiply-adds per image of each.

        A multiply-add is two operations. Forward and backward passes cost two forward passes for gradients of the
        images, three if the weights have gradients too: `4 (t + s)` per image of synthesis, `4 t` per further one
        through the teacher alone, `2 t` per labelled image and `6 s` per image of distillation. The generator, CMI's
        head and evaluations are not counted.
        """
        labelled = self.distillation if self.labelled is None else self.labelled
        synthesis = 2 * 2 * ((teacher_macs + student_macs) * self.synthesis + teacher_macs * self.teacher_alone)
        return synthesis + 2 * teacher_macs * labelled + 6 * student_macs * self.distillation


class RunSize(NamedTuple):
    """What the work of a run depends on, besides the settings of its method."""

    epochs: int
    """Epochs that the run has."""
    batch_size: int
    """Samples per distillation step."""
    pool_size: int | None = None
    """Images of a given pool, with which there is no synthesis unless it grows."""
    grows: bool = False
    """Whether a given pool grows."""
    planned: int | None = None
    """Epochs that were planned, if the run has fewer."""


class Responses(NamedTuple):
    """Outputs of teacher and student for a batch of images, from which a method computes its loss."""

    teacher_logits: Tensor
    """(N, K) float32."""
    student_logits: Tensor
    """(N, K) float32."""
    statistics_loss: Tensor
    """The batch-norm statistics loss, 0-dimensional; 0 for methods that need no batch norm."""
    features: Tensor
    """Inputs of the teacher's last linear layer, (N, F); (N, 0) for methods that do not use them."""


class SynthesisSettings(Settings):
    """Settings shared by all methods."""

    synthesizer: ClassVar[str]
    """The synthesizer class as `module:name`, because this module imports no torch."""
    summary: ClassVar[str]
    """The method's idea in one line."""
    paper: ClassVar[str]
    """Where it was published."""
    year: ClassVar[int | None] = None
    """Year of publication; None if unpublished."""
    needs_batch_norm: ClassVar[bool]
    """Whether it uses the teacher's batch-norm statistics and cannot run without them."""
    has_pool: ClassVar[bool]
    """Whether its images are kept in a pool; otherwise the student is trained on fresh generator samples."""
    published: ClassVar[Mapping[str, float]] = {}
    """Published run settings (epochs, batch size, learning rate) by dotted key; empty if unknown."""
    published_pair: ClassVar[str | None] = None
    """The data, teacher and student for which alone they are known, joined by hyphens; None if for all."""
    is_own: ClassVar[bool] = False
    """Whether it is this project's own method: nothing is published, and the defaults of `distill` apply."""
    published_for_teacher: ClassVar[Mapping[str, Mapping[str, float]]] = {}
    """Published settings that differ from the defaults, by teacher architecture and dotted key."""
    departs: ClassVar[tuple[str, ...]] = ()
    """Departures from the published method, one short phrase each."""
    departs_for_teacher: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Further departures, by teacher architecture."""
    crop_padding_mode: ClassVar[PaddingMode] = "zeros"
    """Padding of random crops if that of the teacher's training is unknown."""
    makes_class_images: ClassVar[bool] = True
    """Whether its images should show their target class; if so, images that do not cause a warning."""

    temperature: float = Field(default=20.0, gt=0, le=1000)
    """Temperature T of the distillation loss."""
    mixup: float = Field(default=0.0, ge=0, le=1)
    """Probability that an image of a distillation batch is mixed with another one, with uniformly drawn weights."""

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        """Return what the method requires of a teacher."""
        return (BATCH_NORM,) if cls.needs_batch_norm else ()

    def build(self, context: SynthesisContext) -> Synthesizer:
        """Create the synthesizer of this method."""
        synthesizer: Synthesizer = resolve_name(self.synthesizer)(self, context)
        return synthesizer

    def shared_batches(self, batch_size: int) -> dict[str, int]:
        """Return the sizes of further batches that several processes share equally, by what can change them."""
        return {}

    def work(self, run: RunSize) -> Work:
        """Return the work of a run."""
        raise NotImplementedError


class GeneratorSettings(Settings):
    """The generator and its training."""

    generator_steps: int = Field(default=200, ge=1, le=100_000)
    """Generator steps per synthesis."""
    generator_learning_rate: float = Field(default=2e-3, gt=0, le=10)
    """Adam's learning rate for the generator and the latent."""
    generator_width: int = Field(default=64, ge=4, le=1024)
    """Channels of the generator's last hidden layer."""
    latent_size: int = Field(default=256, ge=1, le=16_384)
    """Dimensions of the latent z."""
    synthesis_scale: int = Field(default=1, ge=1, le=64)
    """Factor by which synthetic images are upsampled bilinearly from what the generator makes; over 1 it saves time and
    memory for large images, which then lack fine detail."""


def _beside(synthesised: int, share: float) -> int:
    """Return the number of other images that make up a share of all."""
    return round(synthesised * share / (1 - share))


class PoolMethodSettings(SynthesisSettings):
    """Settings of methods that add one batch per epoch to a pool."""

    synthesizer: ClassVar[str] = "gapssg.synthesis.pool_synthesizer:PoolSynthesizer"
    batch_synthesis: ClassVar[str]
    """The class that synthesises one batch of images, as `module:name`."""
    has_local_views: ClassVar[bool] = False
    """Whether a synthesis step passes a second view of each image through the teacher alone."""
    has_pool: ClassVar[bool] = True
    balances_targets: ClassVar[bool] = False
    """Whether the targets of each batch are balanced over the classes, not only on average."""

    synthesis_batch_size: int = Field(default=256, ge=2, le=65_536)
    """Images per synthesis, N."""
    passes: int = Field(default=2, ge=1, le=1000)
    """Sample-balanced schedule: passes over the pool per epoch."""
    distillation_steps: int = Field(default=0, ge=0, le=1_000_000)
    """Fixed schedule: distillation steps per epoch; 0 selects the sample-balanced schedule."""
    labelled_views: int = Field(default=0, ge=0, le=1000)
    """Random views of each image, whose teacher logits are computed once; 0 computes them in every step, for a new
    view, as published."""
    procedural_share: float = Field(default=0.0, ge=0, le=0.9)
    """Share of procedural images (dead leaves), which take no synthesis, in what an epoch adds to the pool."""

    @field_validator("procedural_share")
    @classmethod
    def _adds_images(cls, share: float, given: ValidationInfo) -> float:
        size = given.data.get("synthesis_batch_size")
        if size and share and not _beside(size, share):
            raise ValueError(f"adds no image to {size}; set it to {1 / (size + 1):.2g} or more, or to 0")
        return share

    @property
    def procedural_images(self) -> int:
        """Procedural images of an epoch, beside those that are synthesised."""
        return _beside(self.synthesis_batch_size, self.procedural_share)

    @property
    def images_per_epoch(self) -> int:
        """Images that an epoch adds to the pool."""
        return self.synthesis_batch_size + self.procedural_images

    @property
    def step_count(self) -> int:
        """Steps per synthesis."""
        return 0

    def shared_batches(self, batch_size: int) -> dict[str, int]:
        """Return the sizes of further batches that several processes share equally, by what can change them."""
        return {"method.synthesis_batch_size": self.synthesis_batch_size}

    def warm_up_epochs(self, epochs: int) -> int:
        """Return the number of first epochs that only synthesise."""
        return 0

    def steps_on(self, pool_size: int, batch_size: int) -> int:
        """Return the distillation steps of an epoch on so many images."""
        return self.distillation_steps or -(-self.passes * pool_size // batch_size)

    def work(self, run: RunSize) -> Work:
        """Return the work of a run: one synthesis per epoch, and passes over all images so far."""
        epochs, given = run.epochs, run.pool_size or 0
        size, synthesised, warm_up = 0, 0, 0
        if run.pool_size is None or run.grows:
            size, synthesised = self.images_per_epoch, self.synthesis_batch_size
            warm_up = self.warm_up_epochs(run.planned or epochs)
        pool_sizes = (given + size * (epoch + 1) for epoch in range(warm_up, epochs))
        distillation = run.batch_size * sum(self.steps_on(pool_size, run.batch_size) for pool_size in pool_sizes)
        labelled = self.labelled_views * (given + epochs * size) or None
        synthesis = epochs * self.step_count * synthesised
        return Work(synthesis, distillation, labelled, synthesis * self.has_local_views)


class InversionSettings(GeneratorSettings, PoolMethodSettings):
    """Settings of methods that optimise a generator for each batch and differ in their loss."""

    batch_synthesis: ClassVar[str] = "gapssg.synthesis.inversion:GeneratorInversion"
    keeps_generator: ClassVar[bool] = False
    """Whether the generator keeps its weights between batches instead of being re-initialised."""
    relative_statistics: ClassVar[bool] = False
    """Whether the batch-norm statistics loss is relative to the layers' standard deviations."""

    @property
    def step_count(self) -> int:
        """Steps per synthesis."""
        return self.generator_steps

    def loss(
        self, statistics_loss: Tensor, teacher_logits: Tensor, student_logits: Tensor, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the generator's loss and its named terms, all 0-dimensional."""
        raise NotImplementedError


class TargetInversionSettings(InversionSettings):
    """Settings of methods whose images maximise the divergence where teacher and student predict the same class."""

    distillation_steps: int = Field(default=400, ge=0, le=1_000_000)
    """Fixed schedule: distillation steps per epoch; 0 selects the sample-balanced schedule."""
    statistics_weight: float
    """Weight of the batch-norm statistics loss."""
    target_weight: float
    """Weight of the teacher's cross-entropy with the targets."""
    adversarial_weight: float
    """Weight of the masked divergence, which the images maximise."""

    def loss(
        self, statistics_loss: Tensor, teacher_logits: Tensor, student_logits: Tensor, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of `L_bn`, `CE(z_t, y)` and `-mean(KL [argmax z_s = argmax z_t])`, and its terms."""
        import torch.nn.functional as F

        from gapssg.synthesis.losses import masked_divergence

        target_loss = F.cross_entropy(teacher_logits, targets)
        divergence = masked_divergence(student_logits, teacher_logits)
        loss = (
            self.statistics_weight * statistics_loss
            + self.target_weight * target_loss
            - self.adversarial_weight * divergence
        )
        return loss, {
            "batch_norm_statistics_loss": statistics_loss,
            "target_loss": target_loss,
            "masked_divergence": divergence,
        }


class AveragedInversionSettings(TargetInversionSettings):
    """Settings of methods that mix the statistics of a batch with a running average of earlier batches."""

    statistics_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Weight of the running average of earlier batches in the statistics of a batch."""
    warm_up: float
    """Share of epochs at the start that only synthesise."""

    def warm_up_epochs(self, epochs: int) -> int:
        """Return the number of first epochs that only synthesise; the last epoch is never one of them."""
        return min(round(self.warm_up * epochs), epochs - 1)

    def adversarial_from(self, epochs: int) -> int:
        """Return the first epoch, counted from 0, with an adversarial term."""
        return self.warm_up_epochs(epochs)


class GeneratorMethodSettings(GeneratorSettings, SynthesisSettings):
    """Settings of methods that train one generator alongside the student and differ in their losses."""

    synthesizer: ClassVar[str] = "gapssg.synthesis.generator_training:GeneratorTraining"
    has_pool: ClassVar[bool] = False
    departs: ClassVar[tuple[str, ...]] = (
        "the student is in eval mode during synthesis, the generator in training mode while it is sampled",
        "the generator is the one shared by all methods",
    )
    reads_features: ClassVar[bool] = False
    """Whether the loss uses the inputs of the teacher's last linear layer."""
    reads_student: ClassVar[bool] = True
    """Whether the loss uses the student's logits."""

    temperature: float = Field(default=1.0, gt=0, le=1000)
    """Temperature T of the divergence, in synthesis and distillation."""
    augment: bool = False
    """Whether to crop and flip images at random, in synthesis and distillation."""
    rounds: int = Field(default=80, ge=1, le=100_000)
    """Alternations between generator and student per epoch."""
    generator_steps: int = Field(default=1, ge=1, le=100_000)
    """Generator steps per round."""
    distillation_steps: int = Field(default=5, ge=1, le=100_000)
    """Student steps per round."""
    synthesis_batch_size: int = Field(default=256, ge=2, le=65_536)
    """Images per generator step, N."""
    generator_learning_rate: float = Field(default=1e-3, gt=0, le=10)
    """Adam's learning rate for the generator."""

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        """Return what the method requires of a teacher."""
        return (*super().needs(), *([LAST_LINEAR] if cls.reads_features else []))

    @property
    def average_momentum(self) -> float | None:
        """Momentum of a moving average of the generator that makes half of the samples; None without one."""
        return None

    def shared_batches(self, batch_size: int) -> dict[str, int]:
        """Return the sizes of further batches that several processes share equally, by what can change them."""
        halves = {} if self.average_momentum is None else {"batch_size (each half)": batch_size // 2}
        return {"method.synthesis_batch_size": self.synthesis_batch_size, **halves}

    def work(self, run: RunSize) -> Work:
        """Return the work of a run: `rounds` per epoch."""
        rounds = run.epochs * self.rounds
        synthesis = rounds * self.generator_steps * self.synthesis_batch_size
        distillation = rounds * self.distillation_steps * run.batch_size
        if not self.reads_student:
            return Work(0, distillation, teacher_alone=synthesis)
        return Work(synthesis, distillation)

    def loss(self, responses: Responses) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the generator's loss and its named terms, all 0-dimensional."""
        raise NotImplementedError

    def distillation_loss(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the loss that the student minimises: the Kullback-Leibler divergence at temperature T."""
        from gapssg.synthesis.losses import distillation_divergence

        return distillation_divergence(student_logits, teacher_logits, self.temperature)
