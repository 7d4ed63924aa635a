"""The sheet of the closest pairs: synthetic images beside their nearest members and non-members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gapssg.runs.sample_grid import picture_of

_COLUMNS = ("synthetic", "nearest member", "nearest non-member")
_SIDE = 96  # pixels that small images are enlarged to
_LABEL, _LINE, _SPACE = 150, 14, 6
_BETWEEN = 16


class Row(NamedTuple):
    """A row of the sheet."""

    label: tuple[str, ...]
    """Lines of text beside it."""
    images: Tensor
    """Synthetic image, member and non-member, (3, C, H, W) uint8 on the CPU."""


def draw_sheet(rows: Sequence[Row]) -> Image.Image:
    """Draw at least one row of pairs, with headings; images with two channels or more than three show the first."""
    height, width = rows[0].images.shape[2:]
    factor = max(1, _SIDE // max(height, width))
    column = max(width * factor, 110) + _BETWEEN
    row_height = max(height * factor, _LINE * max(len(row.label) for row in rows)) + _SPACE
    size = (_LABEL + len(_COLUMNS) * column, _LINE + _SPACE + len(rows) * row_height)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default()
    for number, heading in enumerate(_COLUMNS):
        draw.text((_LABEL + number * column, 0), heading, fill="black", font=font)
    for number, row in enumerate(rows):
        top = _LINE + _SPACE + number * row_height
        for line, text in enumerate(row.label):
            draw.text((2, top + line * _LINE), text, fill="black", font=font)
        for place, image in enumerate(row.images):
            tile = picture_of(image).resize((width * factor, height * factor), Image.Resampling.NEAREST)
            picture.paste(tile, (_LABEL + place * column, top))
    return picture
