"""Procedural images: coloured noise and dead leaves, which have the statistics of images but no contents.

Baradad et al., "Learning to See by Looking at Noise", NeurIPS 2021, train networks on such images. Dead leaves are
shapes that occlude each other: Lee, Mumford and Huang, "Occlusion Models for Natural Images", IJCV 2001.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAVES = 24


def procedural_images(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Draw images of which each channel has mean 0 and standard deviation 1, half of each kind.

    Returns:
        (count, C, H, W) float32 on the generator's device.
    """
    half = count // 2
    images = torch.cat([coloured_noise(half, shape, generator), dead_leaves(count - half, shape, generator)])
    mean = images.mean(dim=(2, 3), keepdim=True)
    deviation = images.std(dim=(2, 3), keepdim=True, correction=0)
    return (images - mean) / deviation.clamp_min(1e-6)


def coloured_noise(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Draw Gaussian noise whose amplitude falls as `frequency^-a`, with an a in [0.5, 2] for each image."""
    channels, height, width = shape
    device = generator.device
    rows = torch.fft.fftfreq(height, device=device)[:, None]
    columns = torch.fft.rfftfreq(width, device=device)[None]
    frequency = (rows.square() + columns.square()).sqrt()
    frequency[0, 0] = math.inf  # no mean
    exponent = 0.5 + 1.5 * torch.rand(count, 1, 1, 1, generator=generator, device=device)
    noise = torch.fft.rfft2(torch.randn(count, channels, height, width, generator=generator, device=device))
    return torch.fft.irfft2(noise * frequency.pow(-exponent), s=(height, width))


def dead_leaves(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Draw rotated ellipses of random size, position and colour, each over the earlier ones."""
    channels, height, width = shape
    device, side = generator.device, min(height, width)

    def uniform(*size: int) -> Tensor:
        return torch.rand(count, *size, generator=generator, device=device)

    rows = torch.arange(height, device=device)[None, :, None]
    columns = torch.arange(width, device=device)[None, None, :]
    images = uniform(channels, 1, 1).expand(-1, -1, height, width)
    for _ in range(LEAVES):
        y, x = uniform(1, 1) * height - rows, uniform(1, 1) * width - columns
        turn = math.pi * uniform(1, 1)
        # Radii from 1/32 to 1/2 of the side, small ones more often.
        radii = (side / 32) * 16 ** uniform(2, 1, 1)
        along, across = y * turn.sin() + x * turn.cos(), y * turn.cos() - x * turn.sin()
        inside = (along / radii[:, 0]).square() + (across / radii[:, 1]).square() < 1
        images = torch.where(inside[:, None], uniform(channels, 1, 1), images)
    return images
