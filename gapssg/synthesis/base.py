"""What every data-free method has: settings, and the contract of its synthesizer. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from pydantic import Field

from gapssg.settings.base import Settings
from gapssg.settings.parts import PaddingMode

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gapssg.core.augment import Augmentation, Normalization
    from gapssg.core.runtime import Runtime
    from gapssg.synthesis.pool import SamplePool


class EpochPlan(NamedTuple):
    """How much is done in one epoch.

    Attributes:
        rounds: How often synthesis and distillation alternate.
        synthesis_steps: Steps of each synthesis.
        distillation_steps: Steps of the distillation after it.
        advances_learning_rate: Whether the learning-rate schedule counts this epoch.
    """

    rounds: int
    synthesis_steps: int
    distillation_steps: int
    advances_learning_rate: bool = True


class Work(NamedTuple):
    """How many images pass through the networks in a run, each as often as it does.

    Attributes:
        synthesis: Forward and backward through teacher and student.
        distillation: Forward through the teacher, forward and backward through the student.
    """

    synthesis: int
    distillation: int

    def flops(self, teacher_macs: int, student_macs: int) -> int:
        """Return the floating-point operations in teacher and student, of multiply-adds of an image in each.

        A multiply-add is two operations. Forward and backward to the images costs two forwards, to the weights as well
        three: `4 (t + s)` an image of synthesis and `2 (t + 3 s)` an image of distillation. What the generator and
        evaluations cost is left out.
        """
        synthesis = 2 * 2 * (teacher_macs + student_macs) * self.synthesis
        return synthesis + 2 * (teacher_macs + 3 * student_macs) * self.distillation


class Responses(NamedTuple):
    """What teacher and student make of a batch of images; the losses of methods are functions of it.

    Attributes:
        teacher_logits: (N, K) float32.
        student_logits: (N, K) float32.
        statistics_loss: The batch-norm statistics loss, 0-dimensional; 0 for methods that need no batch norm.
        features: What the teacher's last linear layer was given, (N, F); (N, 0) for methods that do not ask for it.
    """

    teacher_logits: Tensor
    student_logits: Tensor
    statistics_loss: Tensor
    features: Tensor


@dataclass(frozen=True)
class SynthesisContext:
    """All that a method may know: the teacher and the shape of its input, and no image of anybody's.

    Attributes:
        teacher: Frozen, in eval mode, on the device.
        normalization: What the teacher expects of its input.
        augmentation: The random crop and flip of the teacher's training.
        image_shape: Channels, height and width.
        num_classes: Number of classes, K.
        batch_size: Samples in a distillation step.
        epochs: Epochs of the run.
        runtime: Device, precision and random streams.
    """

    teacher: nn.Module
    normalization: Normalization
    augmentation: Augmentation
    image_shape: tuple[int, int, int]
    num_classes: int
    batch_size: int
    epochs: int
    runtime: Runtime


class Synthesizer(Protocol):
    """Makes the images that a student learns from."""

    @property
    def augments(self) -> bool:
        """Whether distillation augments its samples."""

    @property
    def pool(self) -> SamplePool | None:
        """The growing pool; None for methods that sample their generator."""

    @property
    def fresh(self) -> Tensor:
        """The newest images, (N, C, H, W) float32 in [0, 1]."""

    @property
    def fresh_targets(self) -> Tensor:
        """Their target classes, (N,) int64."""

    def plan(self, epoch: int) -> EpochPlan:
        """Return what is done in epoch `epoch`, counted from 0."""

    def synthesis_steps(self, student: nn.Module, epoch: int, index: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Synthesise in round `index` of an epoch, or go on with it after `load_state_dict`.

        Yields:
            After each step, how many are done, and its loss terms (0-dimensional, on the device).

        Raises:
            Diverged: A loss was not finite. The next call begins this synthesis again.
        """

    def slow_down(self) -> float:
        """Halve the learning rate of the synthesis from now on, and return it."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs besides the pool: a synthesis under way, and what lives as long as the run."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go back to where `state_dict` was called.

        Raises:
            InputError: The tensors are not those of this synthesizer.
        """

    def start_sampling(self, epoch: int, index: int, step: int) -> None:
        """Let `sample` return the batches of the distillation in round `index` from step `step` on."""

    def sample(self, count: int) -> Tensor:
        """Return `count` images for one distillation step, (count, C, H, W) float32 in [0, 1]."""

    def distillation_loss(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the loss that the student minimises."""


class SynthesisSettings(Settings):
    """The settings that every method has."""

    synthesizer: ClassVar[str]
    """The class that synthesises by these settings, as `module:name`: this module imports no torch."""
    summary: ClassVar[str]
    """The method's idea in one line."""
    paper: ClassVar[str]
    """Where it was published."""
    year: ClassVar[int | None] = None
    """When it was published; None for what was not."""
    needs_batch_norm: ClassVar[bool]
    """Whether it reads the teacher's batch-norm statistics."""
    has_pool: ClassVar[bool]
    """Whether its images are kept in a pool; without one the student learns from fresh samples of a generator."""
    published: ClassVar[Mapping[str, float]] = {}
    """The published settings of the run around it, by dotted key; empty where they are not known."""
    is_own: ClassVar[bool] = False
    """Whether it is this project's own, so that nothing is published and the defaults of `distill` hold."""
    published_for_teacher: ClassVar[Mapping[str, Mapping[str, float]]] = {}
    """By the teacher's architecture, the published settings that differ for it from the defaults, by dotted key."""
    departs: ClassVar[tuple[str, ...]] = ()
    """In what it is not the published method, one short phrase each."""
    departs_for_teacher: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """By the teacher's architecture, in what else it is not."""
    crop_padding_mode: ClassVar[PaddingMode] = "zeros"
    """How random crops are padded where it is not known how those of the teacher's training were."""
    makes_class_images: ClassVar[bool] = True
    """Whether its images are meant to show their target class, so that images which do not are worth a warning."""

    temperature: float = Field(default=20.0, gt=0, le=1000)
    """Temperature T of the distillation loss."""
    mixup: float = Field(default=0.0, ge=0, le=1)
    """Probability with which an image of a distillation batch is blended with another, in uniform shares."""

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        """Return what a teacher must have."""
        return ("batch-norm layers",) if cls.needs_batch_norm else ()

    def build(self, context: SynthesisContext) -> Synthesizer:
        """Make the synthesizer of this method."""
        synthesizer: Synthesizer = resolve_name(self.synthesizer)(self, context)
        return synthesizer

    def work(self, epochs: int, batch_size: int, pool_size: int | None = None) -> Work:
        """Return what a run will do; with a pool of `pool_size` images from an earlier run it synthesises nothing."""
        raise NotImplementedError


class PoolMethodSettings(SynthesisSettings):
    """The settings of methods that add a batch to a pool each epoch."""

    synthesizer: ClassVar[str] = "gapssg.synthesis.pool_synthesizer:PoolSynthesizer"
    batch_synthesis: ClassVar[str]
    """The class that makes one batch of images, as `module:name`."""
    has_pool: ClassVar[bool] = True
    balances_targets: ClassVar[bool] = False
    """Whether each batch has every class equally often, not only on average."""

    synthesis_batch_size: int = Field(default=256, ge=2, le=65_536)
    """Images of each synthesis, N."""
    passes: int = Field(default=2, ge=1, le=1000)
    """Sample-balanced schedule: how often each epoch visits every sample of the pool."""
    distillation_steps: int = Field(default=0, ge=0, le=1_000_000)
    """Fixed schedule: distillation steps of every epoch; 0 is the sample-balanced schedule."""

    @property
    def step_count(self) -> int:
        """Steps of one synthesis."""
        return 0

    def warm_up_epochs(self, epochs: int) -> int:
        """Return how many of the first epochs of a run only synthesise."""
        return 0

    def work(self, epochs: int, batch_size: int, pool_size: int | None = None) -> Work:
        """Return what a run will do: a batch an epoch, and passes over all batches so far."""
        fixed = self.distillation_steps * batch_size
        if pool_size is not None:
            return Work(0, epochs * (fixed or self.passes * pool_size))
        warm_up, size = self.warm_up_epochs(epochs), self.synthesis_batch_size
        batches_visited = (epochs * (epochs + 1) - warm_up * (warm_up + 1)) // 2
        distillation = (epochs - warm_up) * fixed or batches_visited * self.passes * size
        return Work(epochs * self.step_count * size, distillation)


class InversionSettings(PoolMethodSettings):
    """The settings of methods that optimise a generator for each batch; they differ in their loss."""

    batch_synthesis: ClassVar[str] = "gapssg.synthesis.inversion:GeneratorInversion"
    keeps_generator: ClassVar[bool] = False
    """Whether the generator goes on from batch to batch, instead of being re-initialised for each."""
    relative_statistics: ClassVar[bool] = False
    """Whether the batch-norm statistics loss is relative to the layers' own deviations."""

    generator_steps: int = Field(default=200, ge=1, le=100_000)
    """Steps of the generator in each synthesis."""
    generator_learning_rate: float = Field(default=2e-3, gt=0, le=10)
    """Adam's learning rate for the generator and the latent."""
    generator_width: int = Field(default=64, ge=4, le=1024)
    """Channels of the generator's last hidden layer."""
    latent_size: int = Field(default=256, ge=1, le=16_384)
    """Dimensions of the latent z."""

    @property
    def step_count(self) -> int:
        """Steps of one synthesis."""
        return self.generator_steps

    def loss(
        self, statistics_loss: Tensor, teacher_logits: Tensor, student_logits: Tensor, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the generator's loss and its named terms, all 0-dimensional."""
        raise NotImplementedError


class TargetInversionSettings(InversionSettings):
    """The settings of methods for whose images teacher and student agree on the class, but not on how sure it is."""

    distillation_steps: int = Field(default=400, ge=0, le=1_000_000)
    """Fixed schedule: distillation steps of every epoch; 0 is the sample-balanced schedule."""
    statistics_weight: float
    """Weight of the batch-norm statistics loss."""
    target_weight: float
    """Weight of the teacher's cross-entropy with the targets."""
    adversarial_weight: float
    """Weight of the masked divergence, which the images are to raise."""

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
    """The settings of methods that mix the statistics of a batch with a running average of earlier batches."""

    statistics_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Share of the running average of earlier batches in the statistics of a batch."""
    warm_up: float
    """Share of the epochs, at the start, that only synthesise."""

    def warm_up_epochs(self, epochs: int) -> int:
        """Return how many of the first epochs of a run only synthesise; the last never does."""
        return min(round(self.warm_up * epochs), epochs - 1)

    def adversarial_from(self, epochs: int) -> int:
        """Return the first epoch, counted from 0, with an adversarial term."""
        return self.warm_up_epochs(epochs)


class GeneratorMethodSettings(SynthesisSettings):
    """The settings of methods that train one generator along with the student; they differ in their losses."""

    synthesizer: ClassVar[str] = "gapssg.synthesis.generator_training:GeneratorTraining"
    has_pool: ClassVar[bool] = False
    departs: ClassVar[tuple[str, ...]] = (
        "the student is in eval mode while images are synthesised",
        "the generator is the one that all methods share",
    )
    reads_features: ClassVar[bool] = False
    """Whether the loss reads the features before the teacher's last linear layer."""

    temperature: float = Field(default=1.0, gt=0, le=1000)
    """Temperature T of the divergence, in synthesis and distillation."""
    augment: bool = False
    """Whether images are cropped and flipped at random, in synthesis and distillation."""
    rounds: int = Field(default=80, ge=1, le=100_000)
    """How often an epoch alternates between generator and student."""
    generator_steps: int = Field(default=1, ge=1, le=100_000)
    """Steps of the generator in each round."""
    distillation_steps: int = Field(default=5, ge=1, le=100_000)
    """Steps of the student in each round."""
    synthesis_batch_size: int = Field(default=256, ge=2, le=65_536)
    """Images in a step of the generator, N."""
    generator_learning_rate: float = Field(default=1e-3, gt=0, le=10)
    """Adam's learning rate for the generator."""
    generator_width: int = Field(default=64, ge=4, le=1024)
    """Channels of the generator's last hidden layer."""
    latent_size: int = Field(default=256, ge=1, le=16_384)
    """Dimensions of the latent z."""

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        """Return what a teacher must have."""
        return (*super().needs(), *(["a last linear layer"] if cls.reads_features else []))

    @property
    def average_momentum(self) -> float | None:
        """Momentum of a moving average of the generator that makes half of the samples; None for no such thing."""
        return None

    def work(self, epochs: int, batch_size: int, pool_size: int | None = None) -> Work:
        """Return what a run will do: `rounds` an epoch."""
        rounds = epochs * self.rounds
        return Work(
            rounds * self.generator_steps * self.synthesis_batch_size, rounds * self.distillation_steps * batch_size
        )

    def loss(self, responses: Responses) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the generator's loss and its named terms, all 0-dimensional."""
        raise NotImplementedError

    def distillation_loss(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the loss that the student minimises: the Kullback-Leibler divergence at temperature T."""
        from gapssg.synthesis.losses import distillation_divergence

        return distillation_divergence(student_logits, teacher_logits, self.temperature)
