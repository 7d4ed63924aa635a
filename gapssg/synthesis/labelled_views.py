"""Random views of the images of a pool, with the teacher's logits, each computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gapssg.core.augment import Shifts
from gapssg.core.runtime import to_unit_range
from gapssg.synthesis.base import PoolMethodSettings, SynthesisContext
from gapssg.synthesis.pool import SamplePool


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
    A student step on such views needs no teacher. A checkpoint holds nothing of them: they are made and labelled again
    from the pool, with the same random numbers and in the same batches.

    Attributes:
        batch_size: Images that are labelled together, those of a synthesis.
    """

    def __init__(
        self,
        settings: PoolMethodSettings,
        context: SynthesisContext,
        pool: SamplePool,
        sample_indices: Callable[[int], Tensor],
    ) -> None:
        """Label no view yet of the pool as it is.

        `sample_indices` returns the indices of the images of the next distillation batch.
        """
        self.batch_size, self._given = settings.synthesis_batch_size, len(pool)
        self._count, self._mixup = settings.labelled_views, settings.mixup
        self._context, self._pool, self._sample_indices = context, pool, sample_indices
        self._views: Views | None = None

    def extend(self, most: int | None = None, pretend: bool = False) -> None:
        """Label the views of the images that were added to the pool, a synthesis at a time.

        Args:
            most: Stop at so many images in all.
            pretend: Leave the logits at 0, as an estimate of the cost does.
        """
        end = len(self._pool) if most is None else most
        while (start := 0 if self._views is None else len(self._views.logits)) < end:
            new = self._draw(start)
            self._views = new if self._views is None else Views(*map(torch.cat, zip(self._views, new, strict=True)))
            if not pretend:
                self._label(self._views, start)

    def draw(self, count: int, stream: torch.Generator) -> Tensor:
        """Draw the numbers (count,) of the views of a batch."""
        return torch.randint(self._count, (count,), generator=stream, device=stream.device)

    def batch(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the views of these numbers of the next images, (B, C, H, W) in [0, 1], and their logits (B, K)."""
        assert self._views is not None
        indices = self._sample_indices(len(numbers))
        return self._make(self._views, indices, numbers), self._views.logits[indices, numbers]

    def _draw(self, start: int) -> Views:
        """Draw the views of the images from `start` on, without logits."""
        # The batches of a pool that grew must be those of one that is read at once.
        end = min(start + self.batch_size, self._given if start < self._given else len(self._pool))
        shape = end - start, self._count
        device = self._context.runtime.device
        stream = self._context.runtime.random_stream("views", start)
        shifts = self._context.augmentation.draw(shape[0] * shape[1], stream)
        partners = torch.randint(end, shape, generator=stream, device=device)
        shares, chosen = torch.rand(2, *shape, generator=stream, device=device)
        shares = torch.where(chosen < self._mixup, shares, 0)
        logits = torch.zeros(*shape, self._context.num_classes, device=device)
        rows, columns, flips = (each.reshape(shape) for each in shifts)
        return Views(rows, columns, flips, partners, shares, logits)

    def _label(self, views: Views, start: int) -> None:
        """Fill in the logits of the images from `start` on."""
        context = self._context
        indices = torch.arange(start, len(views.logits), device=views.logits.device)
        with torch.no_grad(), context.runtime.configured():
            for number in range(self._count):
                images = self._make(views, indices, torch.full_like(indices, number))
                own = context.normalization(context.runtime.own_rows(images))
                with context.runtime.autocast():
                    logits = context.teacher(own).float()
                views.logits[start:, number] = context.runtime.all_rows(logits, len(images))

    def _make(self, views: Views, indices: Tensor, numbers: Tensor) -> Tensor:
        shares = views.shares[indices, numbers].reshape(-1, 1, 1, 1)
        images = self._crop(views, indices, numbers)
        if not self._mixup:
            return images
        return images.lerp(self._crop(views, views.partners[indices, numbers], numbers), shares)

    def _crop(self, views: Views, indices: Tensor, numbers: Tensor) -> Tensor:
        shifts = Shifts(*(each[indices, numbers] for each in views[:3]))
        return self._context.augmentation(to_unit_range(self._pool.images[indices]), shifts)
