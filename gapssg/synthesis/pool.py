"""The sample pool: all images that a run has synthesised, and procedural ones beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gapssg.errors import InputError

SMALLER_POOL = "lower epochs, method.synthesis_batch_size or method.procedural_share"
"""What makes a pool smaller."""
PROCEDURAL = -1
"""The target of procedural images, which are made for no class."""


@contextmanager
def refusing_too_large(name: str, size: int, device: torch.device, advice: str) -> Iterator[None]:
    """Raise `InputError` with this advice if `size` bytes, for what has this name, cannot be allocated on a device."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(
            f"{name} needs {size / 2**30:.1f} GiB on {device}, more than is available; {advice}"
        ) from error


class SamplePool:
    """Append-only images and their targets, preallocated on the device.

    Attributes:
        capacity: Largest number of samples.
    """

    def __init__(self, capacity: int, image_shape: tuple[int, int, int], device: torch.device) -> None:
        """Allocate room for `capacity` uint8 images of shape (C, H, W); raise `InputError` if memory is short."""
        self.capacity = capacity
        size = capacity * math.prod(image_shape)
        with refusing_too_large(f"a pool of {capacity:,} images", size, device, SMALLER_POOL):
            self._images = torch.empty((capacity, *image_shape), dtype=torch.uint8, device=device)
        self._targets = torch.empty(capacity, dtype=torch.int64, device=device)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def images(self) -> Tensor:
        """The samples so far, (len, C, H, W) uint8; a view."""
        return self._images[: self._count]

    @property
    def targets(self) -> Tensor:
        """Their target classes, (len,) int64, or `PROCEDURAL`; a view."""
        return self._targets[: self._count]

    @property
    def procedural(self) -> int:
        """The number of procedural samples."""
        return int((self.targets == PROCEDURAL).sum())

    @property
    def synthesised(self) -> Tensor:
        """The indices of the samples that are not procedural, int64."""
        return (self.targets != PROCEDURAL).nonzero().squeeze(1)

    def append(self, images: Tensor, targets: Tensor) -> None:
        """Add images (N, C, H, W) uint8 with targets (N,) int64; raise `ValueError` if they exceed the capacity."""
        end = self._count + len(images)
        if end > self.capacity:
            raise ValueError(f"the pool has room for {self.capacity} samples, not {end}")
        self._images[self._count : end] = images
        self._targets[self._count : end] = targets
        self._count = end
