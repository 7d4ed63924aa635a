"""A picture of a batch of synthetic images: one row per target class, labelled with its name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gapssg.errors import shortened
from gapssg.text import printable

_MOST_ROWS = 16
_MOST_COLUMNS = 16
_MOST_IMAGES = 64
_LONGEST_NAME = 14  # characters
_LINE = 12  # height of a line of text in pixels
_LABEL = 92  # width of the labels in pixels
_LARGEST_SIDE = 256  # of an image in pixels


def sample_grid(images: Tensor, targets: Tensor, class_names: Sequence[str]) -> Image.Image:
    """Draw up to 64 images in one row per target class, in class order, labelled with the name of the class.

    At most 16 classes are drawn, spread evenly over those with images; if classes are missing, the first line says how
    many are shown. The images of a class are spread evenly over all that it has. Images of more than 256 pixels a side
    are scaled down. Equal images give equal pictures.

    Args:
        images: (N, C, H, W) uint8 on the CPU. With two channels or more than three, only the first is shown.
        targets: (N,) int64 on the CPU.
        class_names: Names of all classes.
    """
    scale = min(1.0, _LARGEST_SIDE / max(images.shape[2:]))
    height, width = (max(1, round(scale * side)) for side in images.shape[2:])
    present = torch.unique(targets).tolist()
    shown = [present[index] for index in _spread(len(present), _MOST_ROWS)]
    columns = min(_MOST_COLUMNS, _MOST_IMAGES // len(shown))
    rows = [images[targets == target] for target in shown]
    rows = [row[_spread(len(row), columns)] for row in rows]
    top = 0 if len(shown) == len(class_names) else _LINE
    row_height = max(height, _LINE) + 1
    size = (_LABEL + max(map(len, rows)) * (width + 1), top + len(rows) * row_height)
    picture = Image.new("RGB" if images.shape[1] == 3 else "L", size)
    draw = ImageDraw.Draw(picture)
    if top:
        _write(draw, 0, f"{len(shown)} of {len(class_names):,} classes")
    for number, (target, row) in enumerate(zip(shown, rows, strict=True)):
        y = top + number * row_height
        _write(draw, y + (row_height - 1 - _LINE) // 2, shortened(class_names[target], _LONGEST_NAME))
        for column, image in enumerate(row):
            tile = picture_of(image)
            if scale < 1:
                tile = tile.resize((width, height), Image.Resampling.BOX)
            picture.paste(tile, (_LABEL + column * (width + 1), y))
    return picture


def picture_of(image: Tensor) -> Image.Image:
    """Return an image (C, H, W) uint8 on the CPU as a picture; with two channels or more than three, the first."""
    pixels = image.permute(1, 2, 0) if len(image) == 3 else image[0]
    return Image.fromarray(pixels.contiguous().numpy())


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` indices, evenly spaced, in order."""
    return torch.linspace(0, count - 1, min(count, most)).round().long().tolist()


def _write(draw: ImageDraw.ImageDraw, y: int, text: str) -> None:
    """Write a label, cut off before the images; characters that Pillow's font may lack become question marks."""
    known = printable(text).encode("latin-1", "replace").decode("latin-1")
    font = ImageFont.load_default()
    while draw.textlength(known, font=font) > _LABEL - 4:
        known = known[:-1]
    draw.text((1, y), known, fill="white", font=font)
