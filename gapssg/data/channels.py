"""The channels of an image file: those of a picture, the pages of a TIFF, or the last dimension of an array."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image, ImageOps

from gapssg.errors import InputError
from gapssg.models.names import MOST_CHANNELS

MOST_PIXELS = 2**26
_GREY_MODES = {"1", "L", "LA", "La"}
_MODES_OF_MORE_CHANNELS = {"LA", "RGBA", "CMYK"}
_PHOTOMETRIC = 262  # tag of TIFF: 0 if the number 0 is white
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def channels_of_picture(opened: Image.Image, channels: int | None, file: Path) -> list[Image.Image]:
    """Decode a picture to one image in mode L or RGB or, with other than 1 or 3 channels, to one in mode L for each.

    The pages of a TIFF are channels if they are grey and equally large, and `channels` is not 1. The alpha channel is
    dropped, unless `channels` counts it. Raises `InputError` if the picture has other than `channels` channels, or more
    than there may be, and `Image.DecompressionBombError` if its pages have too many pixels.
    """
    pages = 1 if channels == 1 else _count_grey_pages(opened, file)
    if pages > 1:
        if pages * opened.width * opened.height > MOST_PIXELS:
            raise Image.DecompressionBombError
        images = []
        for page in range(pages):
            opened.seek(page)
            images.append(_upright(opened, file))
        return _checked(images, channels, file)
    if channels in (None, 1, 3):
        return [_upright(opened, file)]
    ImageOps.exif_transpose(opened, in_place=True)
    return _checked(list(opened.split()) if opened.mode in _MODES_OF_MORE_CHANNELS else [opened], channels, file)


def channels_of_array(file: Path, channels: int | None) -> list[Image.Image]:
    """Read a .npy array (H, W) or (H, W, C) as `channels_of_picture` does; nothing in it can run code.

    Its numbers are uint8, uint16 in [0, 65535], floating in [0, 1], or boolean. Raises `InputError` if it is none of
    these, or the file is damaged.
    """
    array = _read_array(file)
    shape = array.shape if array.ndim == 3 else (*array.shape, 1)
    if array.ndim not in (2, 3) or 0 in shape:
        raise InputError(f"{file} has the shape {_shape(array)}: save an image as (height, width, channels)")
    height, width, count = shape
    if height * width > MOST_PIXELS:
        raise Image.DecompressionBombError
    is_channels_first = count > height if channels is None else count != channels == height
    if count > MOST_CHANNELS or is_channels_first:
        or_set = f", or set `channels` of the data to {count}" if channels is None and count <= MOST_CHANNELS else ""
        raise InputError(
            f"{file} is {_shape(array)}, but arrays are read as (height, width, channels): "
            f"save numpy.moveaxis(array, 0, -1){or_set}"
        )
    planes = array.reshape(shape)
    images = [_to_eight_bits(Image.fromarray(numpy.ascontiguousarray(planes[..., k])), file) for k in range(count)]
    return _checked(images, channels, file)


def _read_array(file: Path) -> NDArray[Any]:
    with file.open("rb") as opened:
        try:
            shape, _, dtype = _HEADERS[npy.read_magic(opened)](opened)
        except (KeyError, ValueError) as error:
            raise InputError(f"{file} is not a readable array: save it with numpy.save") from error
        if dtype.hasobject:
            raise InputError(f"{file} holds Python objects, and reading them could run code: save an array of numbers")
        if dtype.kind not in "bf" and dtype.newbyteorder("=") not in (numpy.uint8, numpy.uint16):
            raise InputError(f"{file} holds {dtype}: save uint8, uint16, or floating-point numbers in [0, 1]")
        expected = math.prod(shape) * dtype.itemsize
        left = os.fstat(opened.fileno()).st_size - opened.tell()
        if expected != left:
            raise InputError(f"{file} has {left:,} bytes of pixels instead of {expected:,}: replace it")
        opened.seek(0)
        array: NDArray[Any] = npy.read_array(opened, allow_pickle=False)
    if dtype.kind == "b":
        return array.astype(numpy.uint8) * numpy.uint8(255)
    return array.astype(numpy.float32 if dtype.kind == "f" else dtype.newbyteorder("="), copy=False)


def _checked(images: list[Image.Image], channels: int | None, file: Path) -> list[Image.Image]:
    """Return the channels, three of them as one image in RGB; a single one also serves as three."""
    count = sum(len(image.getbands()) for image in images)
    if channels is not None and count != channels and not (count in (1, 3) and channels in (1, 3)):
        has = "1 channel" if count == 1 else f"{count} channels"
        raise InputError(
            f"{file} has {has} instead of {channels}: use a TIFF with a grey page for each channel, "
            "or a .npy array (height, width, channels)"
        )
    return [Image.merge("RGB", images)] if len(images) == 3 else images


def _count_grey_pages(opened: Image.Image, file: Path) -> int:
    """Count the pages of a TIFF if they are grey and equally large; else only the first is read."""
    if opened.format != "TIFF":
        return 1
    first, pages = opened.size, 0
    try:
        while opened.size == first and (opened.mode in _GREY_MODES or opened.mode.startswith(("I", "F"))):
            pages += 1
            if pages > MOST_CHANNELS:
                raise InputError(f"{file} has more than {MOST_CHANNELS} pages: save at most {MOST_CHANNELS} channels")
            opened.seek(pages)
        pages = 1
    except EOFError:
        pass
    opened.seek(0)
    return pages


def _upright(opened: Image.Image, file: Path) -> Image.Image:
    """Convert an opened image to 8 bits, turned as its EXIF orientation says."""
    # Pillow inverts a TIFF in which 0 is white only if it has 8 bits or fewer.
    is_inverted = opened.mode.startswith(("I", "F")) and getattr(opened, "tag_v2", {}).get(_PHOTOMETRIC) == 0
    image = _to_eight_bits(ImageOps.exif_transpose(opened), file)
    return ImageOps.invert(image) if is_inverted else image


def _to_eight_bits(image: Image.Image, file: Path) -> Image.Image:
    """Convert an image of any mode to mode L if it is grey, else to RGB."""
    if image.mode.startswith("I"):
        return _scale_grey(image, 65535, file)
    if image.mode == "F":
        return _scale_grey(image, 1, file)
    # Pillow warns when it drops the transparency of a palette.
    image.info.pop("transparency", None)
    return image.convert("L" if image.mode in _GREY_MODES else "RGB")


def _scale_grey(image: Image.Image, brightest: int, file: Path) -> Image.Image:
    """Scale [0, brightest] to 0..255; Pillow's own conversion would clip at 255."""
    values: NDArray[Any] = numpy.asarray(image).astype(numpy.float64)
    if not bool(((values >= 0) & (values <= brightest)).all()):
        raise InputError(f"{file} has grey values outside [0, {brightest}]: save it with 8 or 16 bits per pixel")
    values *= 255 / brightest
    return Image.fromarray(values.round(out=values).astype(numpy.uint8))


def _shape(array: NDArray[Any]) -> str:
    return "x".join(map(str, array.shape)) or "a single number"
