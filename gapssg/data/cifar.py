"""CIFAR-10 and CIFAR-100: 50,000 training and 10,000 test images of 32x32 pixels in RGB."""

import contextlib
import os
import sys
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from gapssg.data.convert import convert_channels, resize_images
from gapssg.data.image_set import ImageSet
from gapssg.data.source import LoadOptions
from gapssg.errors import InputError
from gapssg.files import user_path

FLIPPING_IS_MEANINGFUL = True

_DATASETS = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def load(name: str, split: Literal["train", "test"], options: LoadOptions) -> ImageSet:
    """Read `cifar10` or `cifar100` with torchvision.

    The files are pickles; torchvision loads only those whose MD5 is that of the published file. Raises `InputError` if
    there is no root, the files are missing or altered, or the download failed.
    """
    folder = options.root or os.environ.get("GAPSSG_DATA")
    if not folder:
        raise InputError("the folder of CIFAR is not known: pass --data-root, or set $GAPSSG_DATA")
    root = user_path(folder)
    dataset = _open(name, root, split)
    if dataset is None and options.download:
        _download(name, root)
        dataset = _open(name, root, split)
    if dataset is None:
        raise InputError(f"there is no intact copy of {name} in {root}: add --download, or pass another --data-root")
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    _, _, height, width = images.shape
    images = resize_images(images, options.image_size or (height, width))
    return ImageSet(
        images=convert_channels(images, options.channels or 3),
        labels=torch.tensor(dataset.targets, dtype=torch.int64),
        class_names=tuple(dataset.classes),
    )


def _open(name: str, root: Path, split: Literal["train", "test"]) -> Any:
    """Return torchvision's data set, or None if its files are missing or altered."""
    try:
        return _DATASETS[name](root, train=split == "train")
    except RuntimeError:
        return None
    except OSError as error:
        raise InputError(f"{name} cannot be read from {root}: {error}") from error


def _download(name: str, root: Path) -> None:
    try:
        # Some versions of torchvision print; stdout belongs to the command's result.
        with contextlib.redirect_stdout(sys.stderr):
            _DATASETS[name](root, download=True)
    except (OSError, HTTPException, RuntimeError) as error:
        raise InputError(
            f"{name} could not be downloaded to {root} ({error}): check the network, or put the files there"
        ) from error
