"""The sample pool, and the synthesizers that distil from one."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from gapssg.batches import shuffled_batches, steps_for_passes
from gapssg.errors import InputError
from gapssg.models.model_file import read_weights
from gapssg.runtime import to_uint8, to_unit_range
from gapssg.synthesis.base import EpochPlan, PoolMethodSettings, SynthesisContext
from gapssg.synthesis.losses import distillation_divergence


class SamplePool:
    """Append-only images and their targets, preallocated on the device.

    Attributes:
        capacity: Samples that fit.
    """

    def __init__(self, capacity: int, image_shape: tuple[int, int, int], device: torch.device) -> None:
        """Allocate room for `capacity` uint8 images of shape (C, H, W)."""
        self.capacity = capacity
        self._images = torch.empty((capacity, *image_shape), dtype=torch.uint8, device=device)
        self._targets = torch.empty(capacity, dtype=torch.int64, device=device)
        self._count = 0

    def __len__(self) -> int:
        """Return how many samples are in the pool."""
        return self._count

    @property
    def images(self) -> Tensor:
        """The samples so far, (len, C, H, W) uint8; a view."""
        return self._images[: self._count]

    @property
    def targets(self) -> Tensor:
        """Their target classes, (len,) int64; a view."""
        return self._targets[: self._count]

    def append(self, images: Tensor, targets: Tensor) -> None:
        """Add images (N, C, H, W) uint8 with their targets (N,) int64.

        Raises:
            ValueError: They do not fit.
        """
        end = self._count + len(images)
        if end > self.capacity:
            raise ValueError(f"the pool holds {self.capacity} samples and would get {end}")
        self._images[self._count : end] = images
        self._targets[self._count : end] = targets
        self._count = end


class PoolSynthesizer:
    """Adds one batch an epoch to a pool, and samples the pool in shuffled passes.

    This is the sample-balanced schedule: the number of distillation steps grows with the pool, so that each
    epoch visits every sample `passes` times.
    """

    augments = True

    def __init__(self, settings: PoolMethodSettings, context: SynthesisContext, capacity: int | None = None) -> None:
        """Allocate the pool, by default for one batch an epoch."""
        self.settings = settings
        self.context = context
        capacity = settings.synthesis_batch_size * context.epochs if capacity is None else capacity
        self.pool = SamplePool(capacity, context.image_shape, context.runtime.device)
        self._batches: Iterator[Tensor] = iter(())

    @property
    def fresh(self) -> Tensor:
        """The newest images, (N, C, H, W) float32 in [0, 1], as they stand in the pool."""
        return to_unit_range(self.pool.images[-self.settings.synthesis_batch_size :])

    @property
    def fresh_targets(self) -> Tensor:
        """Their target classes, (N,) int64."""
        return self.pool.targets[-self.settings.synthesis_batch_size :]

    def plan(self, epoch: int) -> EpochPlan:
        """Return one round: a synthesis and the distillation steps for the pool with its samples."""
        count = self.settings.synthesis_batch_size * (epoch + 1)
        return EpochPlan(1, self._synthesis_step_count(), self._distillation_step_count(count))

    def synthesis_steps(self, student: nn.Module, epoch: int) -> Iterator[dict[str, Tensor]]:
        """Add one batch of images to the pool and shuffle it for the epoch."""
        targets = self._draw_targets(epoch)
        images = yield from self._synthesise(student, targets, epoch)
        self.pool.append(to_uint8(images), targets)
        self._shuffle(epoch)

    def sample(self, count: int) -> Tensor:
        """Return the next batch of the epoch's shuffled passes.

        Raises:
            ValueError: `count` is not the batch size of the run.
        """
        indices = next(self._batches)
        if len(indices) != count:
            raise ValueError(f"the pool was shuffled for batches of {len(indices)}, not {count}")
        return to_unit_range(self.pool.images[indices])

    def distillation_loss(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the Kullback-Leibler divergence at the method's temperature."""
        return distillation_divergence(student_logits, teacher_logits, self.settings.temperature)

    def _synthesis_step_count(self) -> int:
        return 1

    def _synthesise(
        self, student: nn.Module, targets: Tensor, epoch: int
    ) -> Generator[dict[str, Tensor], None, Tensor]:
        """Yield each step's loss terms; return images (N, C, H, W) in [0, 1] for the targets."""
        raise NotImplementedError

    def _distillation_step_count(self, pool_size: int) -> int:
        return steps_for_passes(pool_size, self.settings.passes, self.context.batch_size)

    def _draw_targets(self, epoch: int) -> Tensor:
        """Draw targets uniformly over the classes, sorted."""
        runtime = self.context.runtime
        targets = torch.randint(
            self.context.num_classes,
            (self.settings.synthesis_batch_size,),
            generator=runtime.random_stream("targets", epoch),
            device=runtime.device,
        )
        return targets.sort().values

    def _shuffle(self, epoch: int) -> None:
        stream = self.context.runtime.random_stream("pool-order", epoch)
        batches = shuffled_batches(len(self.pool), self.settings.passes, self.context.batch_size, stream)
        self._batches = iter(batches)


class NoisePool(PoolSynthesizer):
    """Gaussian noise with the mean and deviation of the teacher's input, clipped to [0, 1]."""

    def _synthesise(
        self, student: nn.Module, targets: Tensor, epoch: int
    ) -> Generator[dict[str, Tensor], None, Tensor]:
        runtime, normalization = self.context.runtime, self.context.normalization
        noise = torch.randn(
            (len(targets), *self.context.image_shape),
            generator=runtime.random_stream("noise", epoch),
            device=runtime.device,
        )
        yield {}
        return (noise * normalization.deviation + normalization.mean).clamp(0, 1)


class StoredPool(PoolSynthesizer):
    """The pool of an earlier run: everything is there from the first epoch, and nothing is synthesised."""

    def __init__(self, settings: PoolMethodSettings, context: SynthesisContext, shards: list[Path]) -> None:
        """Read the shards.

        Raises:
            InputError: A shard is damaged, or its images do not fit the teacher.
        """
        stored = [_read_shard(shard, context) for shard in shards]
        super().__init__(settings, context, capacity=sum(len(targets) for _, targets in stored))
        for images, targets in stored:
            self.pool.append(images, targets)

    def plan(self, epoch: int) -> EpochPlan:
        """Return one round of as many distillation steps as visit the whole pool `passes` times."""
        return EpochPlan(1, 0, self._distillation_step_count(len(self.pool)))

    def synthesis_steps(self, student: nn.Module, epoch: int) -> Iterator[dict[str, Tensor]]:
        """Shuffle the pool for the epoch."""
        self._shuffle(epoch)
        yield from ()


def _read_shard(path: Path, context: SynthesisContext) -> tuple[Tensor, Tensor]:
    tensors = read_weights(path)
    images, targets = tensors.get("images"), tensors.get("targets")
    if images is None or targets is None or images.dtype != torch.uint8 or targets.dtype != torch.int64:
        raise InputError(f"{path} is not a shard of a sample pool")
    if images.ndim != 4 or tuple(images.shape[1:]) != context.image_shape or len(images) == 0:
        given, expected = "x".join(map(str, images.shape[1:])), "x".join(map(str, context.image_shape))
        raise InputError(f"{path}: its images are {given}, but the teacher takes {expected}")
    if targets.shape != (len(images),) or targets.min() < 0 or targets.max() >= context.num_classes:
        raise InputError(f"{path}: its targets are not classes of the teacher (0 to {context.num_classes - 1})")
    return images, targets
