"""Random views of the images of a pool, with the teacher's logits, each computed once."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple

import torch
from torch import Tensor

from gapssg.core.augment import Shifts
from gapssg.core.runtime import to_unit_range
from gapssg.errors import InputError
from gapssg.synthesis.context import SynthesisContext
from gapssg.synthesis.pool import SamplePool, refusing_too_large

SMALLER_VIEWS = "lower method.labelled_views, epochs, method.synthesis_batch_size or method.procedural_share"
"""What makes the labelled views smaller."""
_BYTES_OF_A_VIEW = 3 * 8 + 1 + 4  # three int64, one bool, one float32


class Views(NamedTuple):
    """What makes V views of each of N images, and their logits."""

    rows: Tensor
    """(N, V) int64, as in `Shifts`."""
    columns: Tensor
    """(N, V) int64."""
    flips: Tensor
    """(N, V) bool."""
    partners: Tensor
    """(N, V) int64, the image in the pool whose view of the same number is mixed in."""
    shares: Tensor
    """(N, V) float32, its share."""
    logits: Tensor
    """(N, V, K) float32, of the teacher."""


class LabelledViews:
    """Gives each image of a pool a fixed number of views, whose teacher logits are computed once.

    View v of an image is a random crop and flip, mixed with view v of a random image of the same or an earlier batch.
    A student step on such views needs no teacher. A run that resumes draws them again, with the same random numbers and
    in the same batches, and reads their logits from its directory.

    Attributes:
        batch_size: Images that are labelled together, those that an epoch adds.
        count: Views of each image.
    """

    def __init__(
        self,
        count: int,
        mixup: float,
        batch_size: int,
        context: SynthesisContext,
        pool: SamplePool,
        sample_indices: Callable[[int], Tensor],
    ) -> None:
        """Reserve memory for `count` views of each image that the pool has room for; none is labelled yet.

        A view is mixed with probability `mixup`. `sample_indices` returns the indices of the images of the next
        distillation batch. Raises `InputError` if memory is short.
        """
        self.batch_size, self._given = batch_size, len(pool)
        self.count, self._mixup = count, mixup
        self._context, self._pool, self._sample_indices = context, pool, sample_indices
        self._labelled = 0
        shape, device = (pool.capacity, self.count), context.runtime.device
        size = pool.capacity * self.count * (_BYTES_OF_A_VIEW + 4 * context.num_classes)
        name = f"labelling {self.count} views of each of {pool.capacity:,} images"
        with refusing_too_large(name, size, device, SMALLER_VIEWS):
            rows, columns, partners = (torch.empty(shape, dtype=torch.int64, device=device) for _ in range(3))
            flips, shares = torch.empty(shape, dtype=torch.bool, device=device), torch.empty(shape, device=device)
            logits = torch.empty(*shape, context.num_classes, device=device)
        self._views = Views(rows, columns, flips, partners, shares, logits)

    @property
    def finished(self) -> int:
        """The images, from the first of the pool on, whose views are all labelled."""
        return self._labelled

    def passes(self, end: int | None = None) -> int:
        """Return how many passes of `extend` are left for the pool as it is, or when it will have `end` images."""
        start, end = self._labelled, len(self._pool) if end is None else end
        given = min(max(start, self._given), end)
        return self.count * sum(-(-images // self.batch_size) for images in (given - start, end - given))

    @property
    def unused_bytes(self) -> int:
        """The reserved memory that is not written to yet."""
        return sum(each[self._labelled :].nbytes for each in self._views)

    def extend(self, pretend: bool = False) -> Generator[int, None, None]:
        """Label the views of the images that were added to the pool, a synthesis at a time.

        Yields after each pass through the teacher, which labels one view of each image of a synthesis, how many are
        done. If it is closed before its end, the next call repeats the passes of the unfinished synthesis.

        Args:
            pretend: Set the logits to 0, as an estimate of the cost does.
        """
        done = 0
        while (start := self._labelled) < len(self._pool):
            end = self._draw(start)
            for number in range(self.count):
                if not pretend:
                    self._label(start, end, number)
                if number == self.count - 1:
                    self._labelled = end
                done += 1
                yield done

    def logits(self, start: int, end: int) -> Tensor:
        """Return the logits (N, V, K) float32 of the views of the images from `start` to `end`."""
        return self._views.logits[start:end]

    def restore(self, logits: Tensor) -> None:
        """Take the logits (N, V, K) float32 of the next synthesis, as `logits` returned them.

        Raises `InputError` if they do not match the images.
        """
        start = self._labelled
        end = self._draw(start) if start < len(self._pool) else start
        place = self._views.logits[start:end]
        if logits.shape != place.shape or logits.dtype != place.dtype or start == end:
            raise InputError("the logits of the labelled views do not match the pool; restart with --overwrite")
        place.copy_(logits)
        self._labelled = end

    def draw(self, count: int, stream: torch.Generator) -> Tensor:
        """Draw the numbers (count,) of the views of a batch."""
        return torch.randint(self.count, (count,), generator=stream, device=stream.device)

    def batch(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the views of these numbers of the next images, (B, C, H, W) in [0, 1], and their logits (B, K)."""
        indices = self._sample_indices(len(numbers))
        return self._make(indices, numbers), self._views.logits[indices, numbers]

    def _draw(self, start: int) -> int:
        """Draw the views of a synthesis from image `start` on, with logits of 0; return the end of its images."""
        # The batches of a pool that grew must be those of one that is read at once.
        end = min(start + self.batch_size, self._given if start < self._given else len(self._pool))
        shape = end - start, self.count
        device = self._context.runtime.device
        stream = self._context.runtime.random_stream("views", start)
        shifts = self._context.augmentation.draw(shape[0] * shape[1], stream)
        partners = torch.randint(end, shape, generator=stream, device=device)
        shares, chosen = torch.rand(2, *shape, generator=stream, device=device)
        shares = torch.where(chosen < self._mixup, shares, 0)
        drawn = *(each.reshape(shape) for each in shifts), partners, shares, torch.zeros((), device=device)
        for place, new in zip(self._views, drawn, strict=True):
            place[start:end] = new
        return end

    def _label(self, start: int, end: int, number: int) -> None:
        """Fill in the logits of view `number` of the images from `start` to `end`."""
        context = self._context
        indices = torch.arange(start, end, device=context.runtime.device)
        with torch.no_grad(), context.runtime.configured():
            images = self._make(indices, torch.full_like(indices, number))
            own = context.normalization(context.runtime.own_rows(images))
            with context.runtime.autocast():
                logits = context.teacher(own).float()
            self._views.logits[start:end, number] = context.runtime.all_rows(logits, len(images))

    def _make(self, indices: Tensor, numbers: Tensor) -> Tensor:
        views = self._views
        images = self._crop(indices, numbers)
        if not self._mixup:
            return images
        partners = self._crop(views.partners[indices, numbers], numbers)
        return images.lerp(partners, views.shares[indices, numbers].reshape(-1, 1, 1, 1))

    def _crop(self, indices: Tensor, numbers: Tensor) -> Tensor:
        shifts = Shifts(*(each[indices, numbers] for each in self._views[:3]))
        return self._context.augmentation(to_unit_range(self._pool.images[indices]), shifts)
