"""What every data-free method has: settings, and the contract of its synthesizer. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from pydantic import Field

from gapssg.settings.base import Settings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gapssg.augment import Augmentation, Normalization
    from gapssg.runtime import Runtime
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
        """Return what a checkpoint needs of a synthesis under way, without the pool; nothing between syntheses."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Let the next synthesis go on where `state_dict` was called.

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

    summary: ClassVar[str]
    """The method's idea in one line."""
    paper: ClassVar[str]
    """Where it was published."""
    needs_batch_norm: ClassVar[bool]
    """Whether it reads the teacher's batch-norm statistics."""
    makes_class_images: ClassVar[bool] = True
    """Whether its images are meant to show their target class, so that a collapse is worth a warning."""

    temperature: float = Field(default=20.0, gt=0, le=1000)
    """Temperature T of the distillation loss."""

    def build(self, context: SynthesisContext) -> Synthesizer:
        """Make the synthesizer of this method."""
        raise NotImplementedError

    def work(self, epochs: int, batch_size: int, pool_size: int | None = None) -> Work:
        """Return what a run will do; with a pool of `pool_size` images from an earlier run it synthesises nothing."""
        raise NotImplementedError


class PoolMethodSettings(SynthesisSettings):
    """The settings of methods that add a batch to a pool each epoch."""

    synthesis_batch_size: int = Field(default=256, ge=2, le=65_536)
    """Images of each synthesis, N."""
    passes: int = Field(default=2, ge=1, le=1000)
    """Sample-balanced schedule: how often each epoch visits every sample of the pool."""

    @property
    def step_count(self) -> int:
        """Steps of one synthesis."""
        return 0

    def work(self, epochs: int, batch_size: int, pool_size: int | None = None) -> Work:
        """Return what a run will do: a batch an epoch, and passes over all batches so far."""
        if pool_size is not None:
            return Work(0, epochs * self.passes * pool_size)
        batches_visited = epochs * (epochs + 1) // 2
        size = self.synthesis_batch_size
        return Work(epochs * self.step_count * size, batches_visited * self.passes * size)


class InversionSettings(PoolMethodSettings):
    """The settings of methods whose generator is re-initialised for each batch; they differ in their loss."""

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
