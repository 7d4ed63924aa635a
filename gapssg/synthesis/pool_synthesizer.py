"""The synthesizer of methods that distil from a sample pool, in shuffled passes."""

from __future__ import annotations

from collections.abc import Generator as Steps
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Protocol

import torch
from torch import Tensor, nn

from gapssg.core.batches import shuffled_batches
from gapssg.core.runtime import to_uint8, to_unit_range
from gapssg.errors import InputError
from gapssg.models.generator import Generator
from gapssg.synthesis.base import PoolMethodSettings
from gapssg.synthesis.context import SynthesisContext
from gapssg.synthesis.dead_leaves import dead_leaves
from gapssg.synthesis.labelled_views import LabelledViews
from gapssg.synthesis.losses import distillation_divergence
from gapssg.synthesis.pool import PROCEDURAL, SamplePool
from gapssg.synthesis.shards import PoolOrigin, read_shard
from gapssg.synthesis.synthesizer import EpochPlan


class BatchSynthesis(Protocol):
    """Synthesises one batch of images."""

    @property
    def generator(self) -> Generator | None:
        """The network that makes the images; None if there is none."""

    @property
    def step_count(self) -> int:
        """Steps per synthesis."""

    def synthesise(
        self, student: nn.Module, targets: Tensor, epoch: int
    ) -> Steps[tuple[int, dict[str, Tensor]], None, Tensor]:
        """Yield steps done and loss terms after each step; return images (N, C, H, W) in [0, 1] for targets (N,).

        Raises `Diverged` if a loss was not finite.
        """

    def slow_down(self) -> float:
        """Halve the learning rate permanently, and return it."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint: that of an unfinished synthesis, and what persists between syntheses."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state of a synthesis, which is then resumed; raise `InputError` if it does not match."""


class PoolSynthesizer:
    """Adds one batch per epoch to a pool, and samples the pool in shuffled passes.

    In the sample-balanced schedule the number of distillation steps grows with the pool, so that each epoch visits
    every sample `passes` times. With the pool of an earlier run there is no synthesis, and every epoch uses all of it,
    unless the pool is to grow.
    """

    augments = True

    def __init__(
        self,
        settings: PoolMethodSettings,
        context: SynthesisContext,
        pool: SamplePool | None = None,
        grows: bool = True,
    ) -> None:
        """Sample `pool`, by default an empty one, to which each epoch adds one batch if it `grows`.

        A pool that grows has room for the batches of the run.
        """
        self.settings = settings
        self.context = context
        self.synthesis: BatchSynthesis | None = None
        if grows:
            self.synthesis = resolve_name(settings.batch_synthesis)(settings, context)
        if pool is None:
            capacity = settings.images_per_epoch * context.epochs
            pool = SamplePool(capacity, context.image_shape, context.runtime.device)
        self.pool = pool
        self._given = len(pool)
        self.labelled: LabelledViews | None = None
        if views := settings.labelled_views:
            size = settings.images_per_epoch if grows else settings.synthesis_batch_size
            self.labelled = LabelledViews(views, settings.mixup, size, context, pool, self.sample_indices)
        self._batches: Iterator[Tensor] = iter(())

    @property
    def generator(self) -> Generator | None:
        """The network that makes the images; None if there is none."""
        return None if self.synthesis is None else self.synthesis.generator

    @property
    def fresh(self) -> Tensor:
        """The newest images, (N, C, H, W) float32 in [0, 1], as stored in the pool."""
        return to_unit_range(self.pool.images[-self.settings.synthesis_batch_size :])

    @property
    def fresh_targets(self) -> Tensor:
        """Their target classes, (N,) int64."""
        return self.pool.targets[-self.settings.synthesis_batch_size :]

    def plan(self, epoch: int) -> EpochPlan:
        """Return one round: a synthesis, if any, and the distillation steps for the pool including its images."""
        if self.synthesis is None:
            return EpochPlan(1, 0, self._distillation_steps(len(self.pool)))
        if epoch < self.settings.warm_up_epochs(self.context.epochs):
            return EpochPlan(1, self.synthesis.step_count, 0, advances_learning_rate=False)
        pool_size = self._given + self.settings.images_per_epoch * (epoch + 1)
        return EpochPlan(1, self.synthesis.step_count, self._distillation_steps(pool_size))

    def _distillation_steps(self, pool_size: int) -> int:
        return self.settings.steps_on(pool_size, self.context.batch_size)

    def synthesis_steps(self, student: nn.Module, epoch: int, index: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Add one batch of images to the pool, if any."""
        if self.synthesis is not None:
            targets = self._draw_targets(epoch)
            images = yield from self.synthesis.synthesise(student, targets, epoch)
            self.add(epoch, to_uint8(images), targets)

    def add(self, epoch: int, images: Tensor, targets: Tensor) -> None:
        """Add the images (N, C, H, W) uint8 that an epoch has synthesised, and its procedural images.

        These come first, because the last images of the pool are the newest synthesised ones.
        """
        if count := self.settings.procedural_images:
            context = self.context
            stream = context.runtime.random_stream("dead leaves", epoch)
            procedural = dead_leaves(count, context.image_shape, context.normalization, stream)
            self.pool.append(procedural, targets.new_full((count,), PROCEDURAL))
        self.pool.append(images, targets)

    def slow_down(self) -> float:
        """Halve the learning rate of the synthesis permanently, and return it."""
        return 0.0 if self.synthesis is None else self.synthesis.slow_down()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint."""
        return {} if self.synthesis is None else self.synthesis.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state of a synthesis, which is then resumed; raise `InputError` if it does not match."""
        if self.synthesis is not None:
            self.synthesis.load_state_dict(state)

    def start_sampling(self, epoch: int, index: int, step: int) -> None:
        """Shuffle the pool for the epoch, in the same order on every call."""
        order = self.context.runtime.random_stream("pool-order", epoch)
        count, batch_size = len(self.pool), self.context.batch_size
        passes = -(-self._distillation_steps(count) * batch_size // count)
        batches = shuffled_batches(count, passes, batch_size, order)
        self._batches = iter(batches[step:])

    def sample_indices(self, count: int) -> Tensor:
        """Return the indices (count,) of the next batch; raise `ValueError` if `count` is not the run's batch size."""
        indices = next(self._batches)
        if len(indices) != count:
            raise ValueError(f"the pool was shuffled for batches of {len(indices)}, not {count}")
        return indices

    def sample(self, count: int) -> Tensor:
        """Return the images of the next batch, as `sample_indices`."""
        return to_unit_range(self.pool.images[self.sample_indices(count)])

    def distillation_loss(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the Kullback-Leibler divergence at the method's temperature."""
        return distillation_divergence(student_logits, teacher_logits, self.settings.temperature)

    def _draw_targets(self, epoch: int) -> Tensor:
        """Draw sorted targets, uniformly or balanced over the classes."""
        runtime, num_classes, count = self.context.runtime, self.context.num_classes, self.settings.synthesis_batch_size
        stream = runtime.random_stream("targets", epoch)
        if self.settings.balances_targets:
            order = torch.randperm(num_classes, generator=stream, device=runtime.device)
            targets = order.repeat(-(-count // num_classes))[:count]
        else:
            targets = torch.randint(num_classes, (count,), generator=stream, device=runtime.device)
        return targets.sort().values


def read_pool(shards: list[Path], context: SynthesisContext, more: int = 0) -> tuple[SamplePool, PoolOrigin]:
    """Read the shards of an earlier run's pool, oldest first, and their origin; the pool has room for `more` images.

    Raises `InputError` if a shard is damaged, its images do not match the teacher, or shards of several runs are mixed.
    """
    stored = [read_shard(shard, context.image_shape, context.num_classes) for shard in shards]
    origins = {origin for _, _, origin in stored}
    if len(origins) > 1:
        folders = " and ".join(dict.fromkeys(str(shard.parent) for shard in shards))
        raise InputError(f"{folders}: their images are of several methods or teachers; name a run of one")
    pool = SamplePool(sum(len(targets) for _, targets, _ in stored) + more, context.image_shape, context.runtime.device)
    for images, targets, _ in stored:
        pool.append(images, targets)
    return pool, origins.pop()
