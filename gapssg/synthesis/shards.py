"""The shards of a sample pool on disk: one safetensors file per synthesis."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from gapssg.errors import InputError, shortened
from gapssg.files import canonical_json, write_atomically
from gapssg.models.safetensors_file import read_safetensors

_METADATA_KEY = "gapssg"  # one key, because the order of several in the header is not fixed


class PoolOrigin(NamedTuple):
    """The origin of the images of a pool."""

    method: str
    """The method that synthesised them."""
    teacher_sha256: str
    """SHA-256 of the teacher's model file."""


def write_shard(path: Path, images: Tensor, targets: Tensor, origin: PoolOrigin) -> None:
    """Write images (N, C, H, W) uint8 and targets (N,) int64 atomically; raise `RunError` if that fails."""
    tensors = {"images": images.cpu().contiguous(), "targets": targets.cpu().contiguous()}
    write_atomically(path, save(tensors, metadata={_METADATA_KEY: canonical_json(origin._asdict())}))


def read_shard(path: Path, image_shape: tuple[int, int, int], num_classes: int) -> tuple[Tensor, Tensor, PoolOrigin]:
    """Read the images (N, C, H, W) uint8, the targets (N,) int64 and the origin of one shard.

    Raises `InputError` if the file is damaged, or its images and targets do not match a teacher of these shapes.
    """
    file = read_safetensors(path)
    images, targets = file.tensors.get("images"), file.tensors.get("targets")
    if images is None or targets is None or images.dtype != torch.uint8 or targets.dtype != torch.int64:
        raise InputError(f"{path} is not a shard of a sample pool")
    if images.ndim != 4 or len(images) == 0 or targets.shape != (len(images),):
        raise InputError(f"{path} is not a shard of a sample pool: its tensors have invalid shapes")
    if tuple(images.shape[1:]) != image_shape:
        given, expected = ("x".join(map(str, shape)) for shape in (images.shape[1:], image_shape))
        raise InputError(f"{path}: its images are {given}, but the teacher takes {expected}")
    if targets.min() < 0 or targets.max() >= num_classes:
        raise InputError(f"{path}: its targets are not classes of the teacher (0 to {num_classes - 1})")
    try:
        origin = PoolOrigin(**json.loads(file.metadata[_METADATA_KEY]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} does not name the method and teacher of its images") from error
    return images, targets, PoolOrigin(shortened(origin.method), shortened(origin.teacher_sha256))


def read_images(
    shards: Sequence[Path], image_shape: tuple[int, int, int], num_classes: int, most: int | None = None
) -> Tensor:
    """Return images (N, C, H, W) uint8 of shards; with `most`, about so many, spread evenly. Raises as `read_shard`."""
    first, *_ = read_shard(shards[0], image_shape, num_classes)
    wanted = len(shards) if most is None else min(len(shards), -(-most // len(first)))
    chosen = [shards[index * len(shards) // wanted] for index in range(wanted)]
    return torch.cat([first, *(read_shard(shard, image_shape, num_classes)[0] for shard in chosen[1:])])
