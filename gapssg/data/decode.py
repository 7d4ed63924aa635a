"""Decoding image files to pixels.

The files are untrusted: only common image formats are decoded, and an image is decoded in full or refused by name. The
size of an image is checked before it is decoded, and large images are decoded one at a time, so that decoding takes at
most a gigabyte besides the result, which has a bound of its own. Very large JPEGs are decoded at a reduced size.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import NamedTuple, TypeAlias

import numpy
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from gapssg.data.channels import MOST_PIXELS, channels_of_array, channels_of_picture
from gapssg.data.source import LoadOptions
from gapssg.errors import GapssgError, InputError, shortened

Pixels: TypeAlias = NDArray[numpy.uint8]

# Pillow has dozens of other decoders, less used and less tested, and passes EPS to another program.
_FORMATS = {"AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"}
_ARRAY = ".npy"
_MOST_PIXELS = MOST_PIXELS
_MOST_PIXELS_OF_JPEG = 2**28  # decoded at an eighth of its sides
_MANY_PIXELS_OF_JPEG = 2**25
_SHARPNESS = 2  # a reduced JPEG is decoded at least this much larger than needed
_MANY_PIXELS = 2**21
_MOST_PIXELS_SCALED = 2**25  # before a crop, in each thread
_LARGEST_FILE = 2**28  # bytes; some decoders read the whole file
_LARGEST_RESULT = 2**34  # bytes; ImageNet at 64x64 pixels
_ONE_AT_A_TIME = Lock()
_FILES_PER_TASK = 16
_BYTES_PER_TASK = 2**24
_MOST_PENDING_BYTES = 2**28
_MOST_THREADS = 8


class _Decoded(NamedTuple):
    pixels: Pixels
    size: tuple[int, int]
    """Height and width before it was resized."""


def readable_extensions() -> set[str]:
    """Return the file extensions, in lower case, of the images that `decode_images` reads."""
    return {*_formats_by_extension(), _ARRAY}


def decode_images(files: Sequence[Path], options: LoadOptions) -> Pixels:
    """Decode image files, whose extensions are readable, to one array (N, C, H, W), in order, on a few threads.

    Unless the options say, images are grey if all of them are, else RGB, or have the channels of their arrays (.npy,
    with the channels last) or grey TIFF pages. Alpha is dropped, 16-bit grey is scaled to 8 bits, floating-point grey
    must lie in [0, 1], and EXIF orientation is applied. With an image size, images are resized as the options say;
    without one, all must have the same size. The options' `note` is called if that size is a model's, of which all
    images have height and width swapped. Raises `InputError` if an image cannot be used; the message names it.
    """
    with closing(_decode_all(files, options)) as decoded:
        return _collect(decoded, files, options)


def _formats_by_extension() -> dict[str, tuple[str, ...]]:
    """Map each file extension that Pillow reads to the formats to try, its own format first."""
    extensions = Image.registered_extensions()
    readable = [image_format for image_format in Image.OPEN if image_format in _FORMATS]
    return {
        extension: (own_format, *(other for other in readable if other != own_format))
        for extension, own_format in extensions.items()
        if own_format in readable
    }


def _collect(decoded: Iterator[_Decoded], files: Sequence[Path], options: LoadOptions) -> Pixels:
    """Write decoded images into one array (N, C, H, W); a colour image after grey ones makes it allocate again."""
    first = next(decoded)
    height, width = first.pixels.shape[:2]
    pixels = _allocate(len(files), options.channels or _count_channels(first.pixels), height, width)
    swapped = 0
    for index, (image, size) in enumerate(chain([first], decoded)):
        swapped += _is_swapped(size, (height, width))
        channels, so_far = _count_channels(image), pixels.shape[1]
        if channels != so_far and {channels, so_far} != {1, 3}:
            raise InputError(
                f"the images differ in their channels: {files[0]} has {so_far} and {files[index]} has {channels}; "
                "use images with the same channels"
            )
        if channels > so_far:
            grey = pixels
            pixels = _allocate(len(files), 3, height, width)
            pixels[:index] = grey[:index]
        # A grey image fills every channel.
        pixels[index] = image if image.ndim == 2 else image.transpose(2, 0, 1)
        done = index + 1
        if options.progress is not None and (done % _FILES_PER_TASK == 0 or done == len(files)):
            options.progress(done, len(files))
    if swapped == len(files) and options.for_model and options.resize == "crop" and options.note is not None:
        which = "the image has" if swapped == 1 else f"all {swapped:,} images have"
        options.note(
            f"{which} height and width swapped: {files[0]} is {first.size[0]} pixels high and {first.size[1]} wide, "
            f"but the model takes images {height} high and {width} wide, so they are scaled and cropped; check the "
            "images, or the --input-shape C,H,W of the teacher"
        )
    return pixels


def _is_swapped(size: tuple[int, int], wanted: tuple[int, int]) -> bool:
    """Tell whether an image has the proportions of the wanted height and width when these are swapped."""
    return wanted[0] != wanted[1] and size[0] * wanted[0] == size[1] * wanted[1]


def _count_channels(image: Pixels) -> int:
    return 1 if image.ndim == 2 else int(image.shape[2])


def _allocate(count: int, channels: int, height: int, width: int) -> Pixels:
    size = count * channels * height * width
    need = f"{count} images of {width}x{height} pixels need {size / 2**30:.0f} GiB of memory"
    if size > _LARGEST_RESULT:
        raise InputError(
            f"{need}, more than the {_LARGEST_RESULT // 2**30} that are allowed: pass a smaller --image-size"
        )
    try:
        return numpy.empty((count, channels, height, width), dtype=numpy.uint8)
    except MemoryError as error:
        raise InputError(f"{need}, more than is available: pass a smaller --image-size") from error


def _decode_all(files: Sequence[Path], options: LoadOptions) -> Generator[_Decoded, None, None]:
    """Decode files on a few threads, in order, only a few tasks and images ahead of the caller."""
    formats = _formats_by_extension()

    def decode(file: Path) -> _Decoded:
        return _decode(file, formats.get(file.suffix.lower(), ()), options)

    def decode_task(task: Sequence[Path]) -> list[_Decoded]:
        images = []
        for file in task:
            images.append(decode(file))
            if images[-1].pixels.shape[:2] != first.pixels.shape[:2]:
                sizes = [f"{image.size[1]}x{image.size[0]}" for image in (first, images[-1])]
                raise InputError(
                    f"the images differ in size: {files[0]} is {sizes[0]} and {file} is {sizes[1]} pixels; "
                    "pass --image-size to scale and crop them all"
                )
        return images

    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    pending: deque[Future[list[_Decoded]]] = deque()
    executor = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    # The filters apply to all threads. Pillow warns of damaged tags, which do not affect the pixels, and only warns of
    # images up to twice its limit.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            first = decode(files[0])
            yield first
            per_task = max(1, min(_FILES_PER_TASK, _BYTES_PER_TASK // first.pixels.nbytes))
            most_pending = max(1, min(2 * threads, _MOST_PENDING_BYTES // (per_task * first.pixels.nbytes)))
            for start in range(1, len(files), per_task):
                pending.append(executor.submit(decode_task, files[start : start + per_task]))
                if len(pending) > most_pending:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)


def _decode(file: Path, formats: tuple[str, ...], options: LoadOptions) -> _Decoded:
    """Decode one file to (H, W) uint8 if it is grey, else to (H, W, C) uint8."""
    try:
        if (size := file.stat().st_size) > _LARGEST_FILE:
            raise InputError(f"{file} has more than {_LARGEST_FILE // 2**20} MiB: remove or replace it")
        if file.suffix.lower() == _ARRAY:
            with _ONE_AT_A_TIME if size > _MANY_PIXELS else nullcontext():
                return _resized(channels_of_array(file, options.channels), options)
        with _open(file, formats, options.image_size) as opened:
            is_large = opened.width * opened.height > _MANY_PIXELS
            if options.image_size is not None and opened.width * opened.height > _MANY_PIXELS_OF_JPEG:
                height, width = options.image_size
                least = (options.resize,) * 2 if isinstance(options.resize, int) else (width, height)
                opened.draft(None, (_SHARPNESS * least[0], _SHARPNESS * least[1]))
            if opened.width * opened.height > _MOST_PIXELS:
                raise Image.DecompressionBombError
            with _ONE_AT_A_TIME if is_large else nullcontext():
                return _resized(channels_of_picture(opened, options.channels, file), options)
    except GapssgError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        bounds = (
            f"{_MOST_PIXELS:,}, or {_MOST_PIXELS_OF_JPEG:,} in a baseline JPEG with --image-size; "
            f"{_MOST_PIXELS_SCALED:,} once its shorter side is resized"
        )
        raise InputError(f"{file} has more pixels than are read ({bounds}): scale it down or remove it") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{file} is not a readable image: remove or replace it") from error
    # Decoders raise nearly anything on damaged files: SyntaxError, struct.error, IndexError, zlib.error, ...
    except Exception as error:
        raise InputError(f"{file} cannot be decoded ({shortened(error, 200)}): remove or replace it") from error


def _open(file: Path, formats: tuple[str, ...], image_size: tuple[int, int] | None) -> Image.Image:
    """Open an image, also a JPEG above Pillow's decompression-bomb limit if it can be decoded at a reduced size."""
    try:
        return Image.open(file, formats=formats)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        if image_size is None or formats[0] != "JPEG":
            raise
        opened = JpegImageFile(file)
        # A progressive JPEG takes memory for its full size, even if it is decoded at a reduced one.
        if "progressive" in opened.info or opened.width * opened.height > _MOST_PIXELS_OF_JPEG:
            opened.close()
            raise
        return opened


def _resized(images: list[Image.Image], options: LoadOptions) -> _Decoded:
    """Return one image, or several channels, in the size and the grey of the options."""
    size = images[0].height, images[0].width
    if options.channels == 1:
        images = [image.convert("L") for image in images]
    if options.image_size is not None:
        height, width = options.image_size
        images = [_resize(image, (width, height), options) for image in images]
    arrays = [numpy.asarray(image) for image in images]
    return _Decoded(arrays[0] if len(arrays) == 1 else numpy.stack(arrays, axis=-1), size)


def _resize(image: Image.Image, size: tuple[int, int], options: LoadOptions) -> Image.Image:
    """Bring an image to a width and a height."""
    interpolation = Image.Resampling[options.interpolation.upper()]
    if options.resize == "crop":
        return ImageOps.fit(image, size, interpolation)
    if options.resize == "stretch":
        return image.resize(size, interpolation)
    # As torchvision's Resize and CenterCrop, to the last bit.
    shorter = min(image.size)
    width, height = (int(options.resize * side / shorter) for side in image.size)
    if width * height > _MOST_PIXELS_SCALED:
        raise Image.DecompressionBombError
    left, top = _crop_start(width, size[0]), _crop_start(height, size[1])
    return image.resize((width, height), interpolation).crop((left, top, left + size[0], top + size[1]))


def _crop_start(length: int, size: int) -> int:
    """Return where a crop of the centre starts; below 0, Pillow pads the image with zeros."""
    return round((length - size) / 2) if length >= size else -((size - length) // 2)
