"""Labelled images in memory, as one uint8 tensor on any device."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gapssg.errors import InputError
from gapssg.text import listed

# A constant channel has std 0, by which images cannot be divided.
_SMALLEST_DEVIATION = 1e-3
_VALUES_PER_CHUNK = 2**23


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images.

    Attributes:
        images: (N, C, H, W) uint8, N at least 1.
        labels: (N,) int64 in [0, number of classes), on the device of the images.
        class_names: One name per class, in the order of the labels.

    Raises:
        ValueError: A shape, dtype, device or label is not as described.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.images.numel() == 0:
            raise ValueError(f"images must be (N, C, H, W) uint8 and not empty, not {_describe(self.images)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels must be ({len(self.images)},) int64, not {_describe(self.labels)}")
        if self.labels.device != self.images.device:
            raise ValueError(f"images are on {self.images.device}, but labels on {self.labels.device}")
        if self.labels.min() < 0 or self.labels.max() >= len(self.class_names):
            raise ValueError(f"labels must be in [0, {len(self.class_names)}), one for each class name")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """Number of classes, also of those without images."""
        return len(self.class_names)

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the images and labels on a device."""
        return ImageSet(self.images.to(device), self.labels.to(device), self.class_names)

    def in_class_order(self, class_names: Sequence[str]) -> ImageSet:
        """Return the images with the same classes in another order; raise `ValueError` if the classes differ."""
        places = {name: number for number, name in enumerate(class_names)}
        if len(class_names) != self.num_classes or places.keys() != set(self.class_names):
            raise ValueError("the classes differ, or two have the same name")
        order = torch.tensor([places[name] for name in self.class_names], device=self.labels.device)
        return ImageSet(self.images, order[self.labels], tuple(class_names))

    def subsample(self, count: int) -> ImageSet:
        """Return at most `count` images at equal distances, so that sorted classes are all represented."""
        chosen = torch.arange(min(count, len(self)), device=self.labels.device) * len(self) // min(count, len(self))
        return ImageSet(self.images[chosen], self.labels[chosen], self.class_names)

    def channel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and the population std of images / 255 per channel, in float64.

        A constant channel has std 1e-3 rather than 0, so that normalised images stay finite.
        """
        channels, height, width = self.input_shape
        count = len(self) * height * width
        # Integer sums are exact, so the result depends neither on the chunks nor on the device.
        sums = torch.zeros(channels, dtype=torch.int64, device=self.images.device)
        square_sums = torch.zeros_like(sums)
        for chunk in torch.split(self.images, max(1, _VALUES_PER_CHUNK // (channels * height * width))):
            values = chunk.long()
            sums += values.sum(dim=(0, 2, 3))
            square_sums += values.square().sum(dim=(0, 2, 3))
        mean = tuple(total / (255 * count) for total in sums.tolist())
        deviation = tuple(
            max(math.sqrt(count * squares - total * total) / (255 * count), _SMALLEST_DEVIATION)
            for total, squares in zip(sums.tolist(), square_sums.tolist(), strict=True)
        )
        return mean, deviation


def check_same_classes(train: ImageSet, test: ImageSet) -> None:
    """Raise `InputError`, which names the differences, unless two splits have the same classes in order."""
    if train.class_names == test.class_names:
        return
    only_train = [name for name in train.class_names if name not in set(test.class_names)]
    only_test = [name for name in test.class_names if name not in set(train.class_names)]
    differences = [
        f"only the {split} images have {listed([repr(name) for name in names])}"
        for split, names in (("training", only_train), ("test", only_test))
        if names
    ]
    reason = " and ".join(differences) or "they are in a different order"
    raise InputError(f"the training and test images differ in their classes: {reason}; use the same classes in both")


def sha256_of_images(*sets: ImageSet) -> str:
    """Return the SHA-256 of the images and labels of several sets, in hexadecimal."""
    digest = hashlib.sha256()
    for images in sets:
        for tensor in (images.images, images.labels):
            digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
