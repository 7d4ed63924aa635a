"""Image sets like those of users: digits, letters in many fonts, and subsets of CIFAR-10.

Letters are rendered from the TrueType and OpenType fonts under /usr/share/fonts (Debian: `apt-get install
fonts-dejavu fonts-liberation fonts-freefont-ttf fonts-urw-base35 fonts-lato fonts-texgyre ...`). Other fonts make other
images, so rows of a letters pair can be compared only if they were measured with the same ones: with many decorative
fonts, a teacher of letters-rgb32 was right on 62 % instead of 97 %. A font family is used either for training or for
testing. CIFAR-10 is read from a folder with train/ and test/.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gapssg.data import load_split
from gapssg.data.image_set import ImageSet

Split = Literal["train", "test"]

FONTS = Path("/usr/share/fonts")
FEWEST_FAMILIES = 60
_SIGNATURE = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Source:
    """An image set that is generated on demand.

    Attributes:
        make: Generates a split, given the folder of CIFAR-10.
        flip: Whether a flipped image still belongs to its class.
    """

    make: Callable[[Split, Path | None], ImageSet]
    flip: bool


def digits(size: int, channels: int) -> Source:
    """Return scikit-learn's handwritten digits at `size` pixels."""
    return Source(lambda split, _: load_split("digits", split, image_size=size, channels=channels), flip=False)


def letters(
    size: int, characters: str, colour: bool = False, train_per_class: int = 300, test_per_class: int = 60
) -> Source:
    """Return letters in many fonts, slightly rotated and shifted, on a background of different brightness."""
    counts = {"train": train_per_class, "test": test_per_class}

    def make(split: Split, _: Path | None) -> ImageSet:
        rng = random.Random(f"{split} {size} {characters}")
        fonts = _fonts(split)
        images = [
            _render(character, fonts[rng.randrange(len(fonts))], size, colour, rng)
            for character in characters
            for _ in range(counts[split])
        ]
        labels = torch.arange(len(characters)).repeat_interleave(counts[split])
        return ImageSet(torch.stack(images), labels, tuple(characters))

    return Source(make, flip=False)


def cifar(
    classes: dict[str, tuple[str, ...]], size: int, channels: int, train: dict[str, int], test_per_class: int = 1000
) -> Source:
    """Return classes of CIFAR-10, or groups of them, in grey or RGB, enlarged bilinearly.

    Args:
        classes: The CIFAR-10 classes that form each class.
        size: Height and width.
        channels: 1 or 3.
        train: Training images of each class.
        test_per_class: Test images of each class, at most.
    """

    def make(split: Split, folder: Path | None) -> ImageSet:
        whole = _cifar10(split, folder)
        names = list(whole.class_names)
        images, labels = [], []
        for label, (name, members) in enumerate(classes.items()):
            per_member = (train[name] if split == "train" else test_per_class) // len(members)
            for member in members:
                indices = (whole.labels == names.index(member)).nonzero().flatten()[:per_member]
                images.append(whole.images[indices])
                labels += [label] * len(indices)
        pixels = torch.cat(images)
        if channels == 1:
            weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
            pixels = (pixels * weights).sum(dim=1, keepdim=True).round().to(torch.uint8)
        if size != pixels.shape[-1]:
            pixels = F.interpolate(pixels.float(), size=(size, size), mode="bilinear", antialias=True)
            pixels = pixels.round().clamp(0, 255).to(torch.uint8)
        return ImageSet(pixels, torch.tensor(labels), tuple(classes))

    return Source(make, flip=True)


@cache
def _cifar10(split: Split, folder: Path | None) -> ImageSet:
    if folder is None:
        raise SystemExit("this pair needs --cifar10 FOLDER, a folder with train/ and test/ of CIFAR-10 images")
    return load_split(f"folder:{folder}", split)


@cache
def _fonts(split: Split) -> tuple[Path, ...]:
    """Return the fonts of a split; a hash of the name assigns a fifth of the families to testing."""
    families: dict[str, list[Path]] = {}
    for path in sorted([*FONTS.rglob("*.ttf"), *FONTS.rglob("*.otf")]):
        if _draws_letters(path):
            family = path.stem.split("-")[0].split("_")[0]
            families.setdefault(family, []).append(path)
    if len(families) < FEWEST_FAMILIES:
        raise SystemExit(f"{FONTS} has {len(families)} font families, but {FEWEST_FAMILIES} are needed")
    chosen = []
    for family, paths in families.items():
        is_test = int(hashlib.sha256(family.encode()).hexdigest(), 16) % 5 == 0
        if is_test == (split == "test"):
            chosen += paths[:2]
    return tuple(chosen)


def _draws_letters(path: Path) -> bool:
    """Return whether a font has 26 different letters; symbol fonts draw the same box for each."""
    try:
        font = ImageFont.truetype(str(path), 24)
        drawn = {bytes(font.getmask(character)) for character in _SIGNATURE}
    except OSError:
        return False
    return len(drawn) == len(_SIGNATURE) and "symbol" not in path.stem.lower() and "math" not in path.stem.lower()


def _render(character: str, path: Path, size: int, colour: bool, rng: random.Random) -> Tensor:
    """Draw a character at a random position, size and angle; (C, size, size) uint8."""
    scale = 2
    canvas = size * scale
    height = int(canvas * rng.uniform(0.55, 0.85))
    mask = Image.new("L", (canvas, canvas), 0)
    draw = ImageDraw.Draw(mask)
    font = ImageFont.truetype(str(path), height)
    left, top, right, bottom = draw.textbbox((0, 0), character, font=font)
    jitter = canvas * 0.06
    x = (canvas - (right - left)) / 2 - left + rng.uniform(-jitter, jitter)
    y = (canvas - (bottom - top)) / 2 - top + rng.uniform(-jitter, jitter)
    draw.text((x, y), character, fill=255, font=font)
    mask = mask.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR).resize((size, size), Image.Resampling.BILINEAR)
    cover = numpy.asarray(mask, dtype=numpy.float32)[None] / 255
    channels = 3 if colour else 1
    ink, ground = (numpy.array([rng.uniform(0, 255) for _ in range(channels)])[:, None, None] for _ in range(2))
    while abs(float(ink.mean() - ground.mean())) < 60:
        ink = numpy.array([rng.uniform(0, 255) for _ in range(channels)])[:, None, None]
    noise = numpy.random.default_rng(rng.randrange(2**32)).normal(0, 6, (channels, size, size))
    pixels = ground * (1 - cover) + ink * cover + noise
    return torch.from_numpy(pixels.round().clip(0, 255).astype(numpy.uint8))


def subset(name: str, *members: str) -> dict[str, tuple[str, ...]]:
    """Return one class that merges several of CIFAR-10."""
    return {name: members}


def single(*names: str) -> dict[str, tuple[str, ...]]:
    """Return unmerged classes of CIFAR-10."""
    return {name: (name,) for name in names}


CIFAR10 = single("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ANIMALS = subset("animal", "bird", "cat", "deer", "dog", "frog", "horse")
VEHICLES = subset("vehicle", "airplane", "automobile", "ship", "truck")
