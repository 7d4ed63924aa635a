"""Procedural images: opaque shapes that occlude one another, the dead leaves model.

Those of `quality.probes` are others on purpose, because no student should have learned from probe images.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gapssg.core.augment import Normalization
from gapssg.core.runtime import to_uint8

_LEAVES = 60
_SMALLEST, _LARGEST = 1 / 20, 1 / 2  # radii, as shares of the shorter side
_COMMON, _OWN = 1.1, 0.65  # deviations of a colour from the mean, alike and independently in the channels
_UNKNOWN = 0.5, 0.25  # mean and standard deviation of a channel if those of the teacher's input are not of images
_LONGEST = 0.5  # of half the logarithm of the ratio of the sides
_SHADE, _NOISE = 0.02, 0.1
_TOGETHER = 64  # images


def dead_leaves(
    count: int, image_shape: tuple[int, int, int], normalization: Normalization, generator: torch.Generator
) -> Tensor:
    """Return `count` images (N, C, H, W) uint8 of discs and rectangles, in colours of the teacher's input.

    The radii have the density r^-3, with which such images have the statistics of natural ones at all scales (Lee,
    Mumford & Huang, "Occlusion models for natural images", IJCV 2001); networks learn useful features from them
    (Baradad et al., "Learning to see by looking at noise", NeurIPS 2021). Each image is blurred, and noise is added, to
    a random degree. The variance of values in [0, 1] is at most `mean (1 - mean)`; a channel with a larger one, such as
    of mean 0 and deviation 1, which stand for no normalisation, gets mean 0.5 and deviation 0.25. The other constants
    were chosen by eye.

    Args:
        count: Number of images, N.
        image_shape: Channels, height and width.
        normalization: Mean and standard deviation of the teacher's input, for the colours.
        generator: What the images depend on; they are made on its device.
    """
    parts = [
        _draw(min(_TOGETHER, count - start), image_shape, normalization, generator)
        for start in range(0, count, _TOGETHER)
    ]
    return torch.cat(parts) if parts else torch.empty(0, *image_shape, dtype=torch.uint8, device=generator.device)


def _draw(
    count: int, image_shape: tuple[int, int, int], normalization: Normalization, generator: torch.Generator
) -> Tensor:
    channels, height, width = image_shape
    device, side = generator.device, min(height, width)
    is_possible = normalization.deviation**2 < normalization.mean * (1 - normalization.mean)
    mean = normalization.mean.where(is_possible, _UNKNOWN[0])
    deviation = normalization.deviation.where(is_possible, _UNKNOWN[1])

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator, device=device)

    def normal(channels: int = 1) -> Tensor:
        return torch.randn(count, channels, 1, 1, generator=generator, device=device)

    def colour() -> Tensor:
        return mean + deviation * (_COMMON * normal() + _OWN * normal(channels))

    down = torch.arange(height, device=device).view(-1, 1)
    right = torch.arange(width, device=device)
    images = colour().expand(-1, -1, height, width)
    for _ in range(_LEAVES):
        radius = side * uniform(_LARGEST**-2, _SMALLEST**-2) ** -0.5
        angle, stretch = uniform(0, math.pi), uniform(-_LONGEST, _LONGEST).exp()
        rows, columns = down - uniform(0, height), right - uniform(0, width)
        along = (columns * angle.cos() + rows * angle.sin()) * stretch
        across = (rows * angle.cos() - columns * angle.sin()) / stretch
        is_inside = torch.where(
            uniform(0, 1) < 0.5, along**2 + across**2 < radius**2, (along.abs() < radius) & (across.abs() < radius)
        )
        shade = 1 + _SHADE * (32 / side) * along * normal()
        images = torch.where(is_inside, colour() * shade, images)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), "replicate"), 3, 1)
    images = images.lerp(blurred, uniform(0, 1))
    noise = torch.randn(images.shape, generator=generator, device=device)
    return to_uint8((images + _NOISE * uniform(0, 1) * deviation * noise).clamp(0, 1))
