"""Handwritten digits: 1,797 real images that scikit-learn contains, so nothing is downloaded."""

from typing import Literal

import numpy
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from gapssg.data.convert import convert_channels, resize_images
from gapssg.data.image_set import ImageSet
from gapssg.data.source import LoadOptions

# A mirrored 2 is no digit.
FLIPPING_IS_MEANINGFUL = False

_BRIGHTEST = 16
_DEFAULT_SIZE = (16, 16)
_TEST_IMAGES = 450
_SPLIT_SEED = 0


def load(name: str, split: Literal["train", "test"], options: LoadOptions) -> ImageSet:
    """Read 1,347 training or 450 test images in a fixed stratified split.

    The 17 grey levels of the 8x8 images are scaled to 0..255, and the images bilinearly to 16x16 or to the image size
    of the options.
    """
    digits = load_digits()
    indices = train_test_split(
        numpy.arange(len(digits.target)),
        test_size=_TEST_IMAGES,
        random_state=_SPLIT_SEED,
        stratify=digits.target,
    )[0 if split == "train" else 1]
    levels = torch.from_numpy(digits.images[indices]).unsqueeze(1)
    images = (levels * 255 / _BRIGHTEST).round().to(torch.uint8)
    images = resize_images(images, options.image_size or _DEFAULT_SIZE)
    return ImageSet(
        images=convert_channels(images, options.channels or 1),
        labels=torch.from_numpy(digits.target[indices]).long(),
        class_names=tuple(str(digit) for digit in digits.target_names),
    )
