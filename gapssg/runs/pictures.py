"""Reading the pictures of a run, whose directory may be untrusted. Imports no torch."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from gapssg.errors import GapssgError, InputError, shortened
from gapssg.files import numbered_files, read_bounded
from gapssg.safe_paths import InsidePath, inside

if TYPE_CHECKING:
    from PIL.Image import Image

_LARGEST_PICTURE = 64 * 2**20
_MOST_PIXELS = 18_000_000  # a grid of 64 images of 512 x 512 with labels
_GRID = re.compile(r"epoch-(\d{1,7})\.png")


def sample_grids(run: Path) -> dict[int, InsidePath]:
    """Return the files of a run's sample grids by epoch, in order; raise `InputError` if the folder cannot be read."""
    return numbered_files(inside(run) / "samples", _GRID)


def read_picture(path: Path) -> Image:
    """Read a PNG of a run; raise `InputError` if it is missing, damaged, or larger than the pictures of a run are."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(read_bounded(path, _LARGEST_PICTURE)), formats=("PNG",)) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise InputError(f"{path} has more than {_MOST_PIXELS:,} pixels")
            picture.load()
            return picture
    except GapssgError:
        raise
    # On a damaged file the decoder raises OSError, SyntaxError, zlib.error and many others.
    except Exception as error:
        raise InputError(f"{path} is not a readable PNG: {shortened(error)}") from error
