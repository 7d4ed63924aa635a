"""Per-sample random crop and flip, and normalisation, vectorised on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gapssg.errors import InputError
from gapssg.settings.parts import PaddingMode


class Shifts(NamedTuple):
    """One random crop and flip for each sample."""

    rows: Tensor
    """(N,) int64, the crop's vertical offset in pixels, in [-padding, padding]."""
    columns: Tensor
    """(N,) int64, its horizontal offset."""
    flips: Tensor
    """(N,) bool, whether the crop is mirrored left to right."""


@dataclass(frozen=True)
class Augmentation:
    """Random crop after padding and, optionally, a random horizontal flip."""

    padding: int
    """Pixels of padding on each side."""
    flip: bool
    """Whether samples are mirrored with probability 1/2."""
    padding_mode: PaddingMode = "zeros"
    """Whether the padding is 0 or the mirrored image."""

    def describe(self) -> str:
        """Describe the augmentation in words."""
        unit = "pixel" if self.padding == 1 else "pixels"
        kind = "mirrored" if self.padding_mode == "reflect" else "zero"
        crops = f"crops with {self.padding} {unit} of {kind} padding" if self.padding else "no crops"
        return f"{crops}, {'random horizontal flips' if self.flip else 'no flips'}"

    def __call__(self, images: Tensor, shifts: Shifts) -> Tensor:
        """Crop and flip each of the images (N, C, H, W), of any dtype, by the result of `draw`; differentiable."""
        if self.padding_mode == "zeros" or not self.padding:
            return crop_and_flip(images, shifts)
        border = slice(self.padding, -self.padding)
        return crop_and_flip(reflect(images, self.padding), shifts)[..., border, border]

    def draw(self, count: int, generator: torch.Generator) -> Shifts:
        """Draw a crop and a flip for each of `count` samples, on the generator's device."""
        device = generator.device
        low, high = -self.padding, self.padding + 1
        rows = torch.randint(low, high, (count,), generator=generator, device=device)
        columns = torch.randint(low, high, (count,), generator=generator, device=device)
        if self.flip:
            flips = torch.rand(count, generator=generator, device=device) < 0.5
        else:
            flips = torch.zeros(count, dtype=torch.bool, device=device)
        return Shifts(rows, columns, flips)


def choose_crop_padding(given: int | None, image_shape: tuple[int, int, int], otherwise: int | None = None) -> int:
    """Return the pixels of padding on each side for random crops: those given by the user or the default.

    Without either it is an eighth of the shorter side of the image shape (channels, height, width). Raises `InputError`
    if it is as large as the image, because each crop must contain a part of it.
    """
    shorter = min(image_shape[1:])
    padding = next(value for value in (given, otherwise, shorter // 8) if value is not None)
    if padding >= shorter:
        _, height, width = image_shape
        raise InputError(
            f"--crop-padding {padding} is too large: a crop could miss all of an image of {height}x{width} pixels; "
            f"give at most {shorter - 1}"
        )
    return padding


def crop_and_flip(images: Tensor, shifts: Shifts) -> Tensor:
    """Crop each image at its own offset, with zeros outside, and then flip it.

    Equals torchvision's `RandomCrop((H, W), padding)` followed by a flip, with these random numbers. Images
    (N, C, H, W) have any dtype, and the result is differentiable if they are floating.
    """
    result: Tensor = _CropAndFlip.apply(images, *shifts)
    return result


def reflect(images: Tensor, padding: int) -> Tensor:
    """Return images (N, C, H, W) with `padding` mirrored pixels on each side; the pixel at the edge is not repeated.

    Equals `torch.nn.functional.pad(mode="reflect")`, whose gradient is not deterministic on a GPU.
    """
    for dimension in (2, 3):
        size = images.shape[dimension]
        before = images.narrow(dimension, 1, padding).flip(dimension)
        after = images.narrow(dimension, size - 1 - padding, padding).flip(dimension)
        images = torch.cat([before, images, after], dimension)
    return images


class _CropAndFlip(torch.autograd.Function):
    """A crop moves each pixel to at most one place, so its adjoint is a crop too, not a scatter."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, rows: Tensor, columns: Tensor, flips: Tensor) -> Tensor:
        ctx.save_for_backward(rows, columns, flips)
        return _shift(images, rows, columns, flips)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        rows, columns, flips = ctx.saved_tensors
        return _shift(gradient, -rows, torch.where(flips, columns, -columns), flips), None, None, None


def _shift(images: Tensor, rows: Tensor, columns: Tensor, flips: Tensor) -> Tensor:
    """`out[n, :, i, j] = images[n, :, i + rows[n], j' + columns[n]]` with j' = W-1-j where flipped."""
    count, channels, height, width = images.shape
    down = torch.arange(height, device=images.device)
    right = torch.arange(width, device=images.device)
    source_rows = down + rows[:, None]
    source_columns = torch.where(flips[:, None], width - 1 - right, right) + columns[:, None]
    inside_rows = (source_rows >= 0) & (source_rows < height)
    inside_columns = (source_columns >= 0) & (source_columns < width)
    inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    index = source_rows.clamp(0, height - 1)[:, :, None] * width + source_columns.clamp(0, width - 1)[:, None, :]
    index = index.view(count, 1, height * width).expand(-1, channels, -1)
    gathered = images.reshape(count, channels, height * width).gather(2, index)
    return torch.where(inside, gathered.view(count, channels, height, width), 0)


class Mixture(NamedTuple):
    """The partner with which each sample of a batch is blended, and its share."""

    partners: Tensor
    """(N,) int64, the index of the partner."""
    shares: Tensor
    """(N, 1, 1, 1) float32 in [0, 1), the share of the partner."""


def draw_mixture(count: int, probability: float, generator: torch.Generator) -> Mixture:
    """Draw a partner for each of `count` samples, and its share: uniform with this probability, else 0."""
    device = generator.device
    partners = torch.randperm(count, generator=generator, device=device)
    shares, chosen = torch.rand(2, count, 1, 1, 1, generator=generator, device=device)
    return Mixture(partners, torch.where(chosen < probability, shares, 0))


def mix(images: Tensor, mixture: Mixture) -> Tensor:
    """Blend each of the images (N, C, H, W) with its partner.

    Zhang et al., "mixup", ICLR 2018; in distillation, with the teacher's output for the blended image as the target,
    Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022.
    """
    return images.lerp(images[mixture.partners], mixture.shares)


@dataclass(frozen=True)
class Normalization:
    """The normalisation that a classifier expects of its input."""

    mean: Tensor
    """(1, C, 1, 1) float32, for images in [0, 1]."""
    deviation: Tensor
    """(1, C, 1, 1) float32, the standard deviation."""

    @classmethod
    def from_statistics(
        cls, mean: tuple[float, ...], deviation: tuple[float, ...], device: torch.device
    ) -> Normalization:
        """Create the normalisation from per-channel means and standard deviations."""
        shape = (1, -1, 1, 1)
        return cls(
            torch.tensor(mean, dtype=torch.float32, device=device).view(shape),
            torch.tensor(deviation, dtype=torch.float32, device=device).view(shape),
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Return `(images - mean) / deviation` in channels-last layout."""
        normalized = (images - self.mean) / self.deviation
        return normalized.contiguous(memory_format=torch.channels_last)
