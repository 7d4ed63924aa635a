"""Pictures that are embedded in the page."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image


class Picture(NamedTuple):
    """A picture with its caption; the URI holds the PNG itself."""

    caption: str
    uri: str


def embed(caption: str, image: Image, largest_side: int) -> Picture:
    """Re-encode a picture with at most `largest_side` pixels a side: nothing else of an untrusted file is kept."""
    shown = image.convert("L" if image.mode in ("1", "L") else "RGB")
    shown.thumbnail((largest_side, largest_side))
    buffer = io.BytesIO()
    shown.save(buffer, format="PNG", optimize=True)
    return Picture(caption, f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}")
