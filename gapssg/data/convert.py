"""Converts the size and the channels of uint8 images."""

import torch
from torch import Tensor
from torch.nn import functional

from gapssg.errors import InputError

_IMAGES_PER_CHUNK = 1024


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images (N, C, H, W) uint8 bilinearly to (N, C, *size), rounded, with antialiasing if a side shrinks."""
    before = images.shape[-2:]
    if before == size:
        return images
    shrinks = any(side < side_before for side, side_before in zip(size, before, strict=True))
    return torch.cat(
        [
            functional.interpolate(chunk.float(), size=size, mode="bilinear", align_corners=False, antialias=shrinks)
            .round()
            .clamp(0, 255)
            .to(torch.uint8)
            for chunk in torch.split(images, _IMAGES_PER_CHUNK)
        ]
    )


def convert_channels(images: Tensor, channels: int) -> Tensor:
    """Convert grey images to RGB or RGB to grey (ITU-R 601 luma, rounded as in Pillow).

    Images are (N, 1, H, W) or (N, 3, H, W) uint8. Raises `InputError` if `channels` is neither 1 nor 3.
    """
    if images.shape[1] == channels:
        return images
    if channels not in (1, 3):
        raise InputError(f"this data can be read in grey (1 channel) or RGB (3), not with {channels} channels")
    if channels == 3:
        return images.repeat(1, 3, 1, 1)
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32, device=images.device).view(1, 3, 1, 1)
    return torch.cat(
        [
            ((chunk * weights).sum(dim=1, keepdim=True) + 2**15).bitwise_right_shift(16).to(torch.uint8)
            for chunk in torch.split(images, _IMAGES_PER_CHUNK)
        ]
    )
