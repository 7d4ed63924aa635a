"""Images in folders: `train/` and `test/` (or `val/`), each with one sub-folder per class.

The files are untrusted: nothing outside the given folder is read, only common image formats are decoded, and an image
is decoded in full or refused by name. The size of an image is checked before it is decoded, and large images are
decoded one at a time, so that decoding takes at most a gigabyte besides the result, which has a bound of its own. Very
large JPEGs are decoded at a reduced size.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeAlias

import numpy
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from gapssg.data.image_set import ImageSet
from gapssg.data.source import LoadOptions
from gapssg.errors import GapssgError, InputError, shortened
from gapssg.files import user_path
from gapssg.text import listed

FLIPPING_IS_MEANINGFUL = True

Pixels: TypeAlias = NDArray[numpy.uint8]

_SUBFOLDERS = {"train": ("train",), "test": ("test", "val")}
# Pillow has dozens of other decoders, less used and less tested, and passes EPS to another program.
_FORMATS = {"AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"}
_MOST_PIXELS = 2**26
_MOST_PIXELS_OF_JPEG = 2**28  # decoded at an eighth of its sides
_MANY_PIXELS_OF_JPEG = 2**25
_SHARPNESS = 2  # a reduced JPEG is decoded at least this much larger than needed
_MANY_PIXELS = 2**21
_LARGEST_FILE = 2**28  # bytes; some decoders read the whole file
_LARGEST_RESULT = 2**34  # bytes; ImageNet at 64x64 pixels
_DEEPEST_FOLDER = 20
_ONE_AT_A_TIME = Lock()
_GREY_MODES = {"1", "L", "LA", "La"}
_FILES_PER_TASK = 16
_MOST_THREADS = 8


def load(name: str, split: Literal["train", "test"], options: LoadOptions) -> ImageSet:
    """Read a split of `folder:PATH` in the order of torchvision's ImageFolder.

    Classes are the sorted sub-folders of the split; their images are found at any depth. Unless the options say, images
    are grey if all of them are, else RGB. Alpha is dropped, 16-bit grey is scaled to 8 bits, floating-point grey must
    lie in [0, 1], and EXIF orientation is applied. With an image size, images are scaled and centre-cropped to a
    square; without one, all must have the same size.

    Raises:
        InputError: The folders are not as described, or an image cannot be used; the message names it.
    """
    root = user_path(name.partition(":")[2])
    folder = _split_folder(root, split)
    classes = _class_folders(folder, root.resolve())
    formats = _formats_by_extension()
    files: list[Path] = []
    labels: list[int] = []
    unread = [Path(entry.path) for entry in _entries(folder) if not _is_folder(entry)]
    for label, class_folder in enumerate(classes):
        found, others = _image_files(class_folder, root.resolve(), set(formats), {folder.resolve()})
        if not found:
            but = f" that can be read, only {listed([other.name for other in others])}" if others else ""
            raise InputError(f"the class folder {class_folder} has no images{but}: add some, or remove the folder")
        unread += others
        # ImageFolder sorts by folder, then by file.
        files += sorted(found, key=os.path.split)
        labels += [label] * len(found)
    if unread and options.note is not None:
        names = listed([str(path.relative_to(folder)) for path in unread])
        options.note(
            f"of {len(files) + len(unread):,} files in {folder}, {len(unread):,} are not read, because they have no "
            f"image file extension or are in no class folder: {names}"
        )
    with closing(_decode_all(files, formats, options)) as decoded:
        images = _collect(decoded, files, options)
    return ImageSet(
        images=torch.from_numpy(images),
        labels=torch.tensor(labels, dtype=torch.int64),
        class_names=tuple(class_folder.name for class_folder in classes),
    )


def _split_folder(root: Path, split: Literal["train", "test"]) -> Path:
    if not root.exists():
        raise InputError(f"there is no folder {root}: check the path after 'folder:'")
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: name the folder with the train and test sub-folders")
    for subfolder in _SUBFOLDERS[split]:
        if (root / subfolder).is_dir():
            _check_inside(root / subfolder, root.resolve())
            return root / subfolder
    found = listed([f"'{entry.name}'" for entry in _entries(root) if _is_folder(entry)], most=10) or "none"
    wanted = " or ".join(f"'{subfolder}'" for subfolder in _SUBFOLDERS[split])
    raise InputError(f"{root} needs a sub-folder {wanted} with one sub-folder per class; its sub-folders: {found}")


def _class_folders(folder: Path, root: Path) -> list[Path]:
    classes = [Path(entry.path) for entry in _entries(folder) if _is_folder(entry)]
    if not classes:
        raise InputError(f"{folder} has no class sub-folders: put the images of each class into one named after it")
    if len(classes) < 2:
        raise InputError(f"{folder} has only the class '{classes[0].name}': a classifier needs at least 2")
    for class_folder in classes:
        _check_inside(class_folder, root)
        if any("\ud800" <= character <= "\udfff" for character in class_folder.name):
            raise InputError(f"{folder} has the class {class_folder.name!r}, whose name is not UTF-8: rename it")
    return classes


def _image_files(
    folder: Path, root: Path, extensions: set[str], seen: set[Path], depth: int = 1
) -> tuple[list[Path], list[Path]]:
    """List the images and the other files in a folder at any depth; `seen` has the real paths of folders so far."""
    real_folder = folder.resolve()
    if real_folder in seen:  # nested links would multiply
        raise InputError(f"the link {folder} leads back to a folder that is already read: remove it")
    if depth > _DEEPEST_FOLDER:
        raise InputError(f"{folder} is more than {_DEEPEST_FOLDER} folders below its class: move its images up")
    seen.add(real_folder)
    files: list[Path] = []
    others: list[Path] = []
    for entry in _entries(folder):
        path = Path(entry.path)
        is_folder = _is_folder(entry)
        if not is_folder and path.suffix.lower() not in extensions:
            others.append(path)
            continue
        if entry.is_symlink():
            _check_inside(path, root)
        if is_folder:
            deeper = _image_files(path, root, extensions, seen, depth + 1)
            files += deeper[0]
            others += deeper[1]
        elif os.path.isfile(entry) if entry.is_symlink() else entry.is_file():
            files.append(path)
        else:
            raise InputError(f"{path} is not a file that can be read (a broken link or a device): remove it")
    return files, others


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """List the entries of a folder, sorted by name, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be listed: {error.strerror}") from error
    return sorted(visible, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # `entry.is_dir` saves a system call per file, but raises for a link to itself.
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def _check_inside(path: Path, root: Path) -> None:
    """Refuse a link that leads outside: an untrusted folder must not choose which other files are read."""
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:
        raise InputError(f"the link {path} cannot be followed: {error}") from error
    if not target.is_relative_to(root):
        raise InputError(f"the link {path} leads outside {root}: copy what it points to into the folder instead")


def _formats_by_extension() -> dict[str, tuple[str, ...]]:
    """Map each file extension that Pillow reads to the formats to try, its own format first."""
    extensions = Image.registered_extensions()
    readable = [image_format for image_format in Image.OPEN if image_format in _FORMATS]
    return {
        extension: (own_format, *(other for other in readable if other != own_format))
        for extension, own_format in extensions.items()
        if own_format in readable
    }


def _collect(decoded: Iterator[Pixels], files: list[Path], options: LoadOptions) -> Pixels:
    """Write decoded images into one array (N, C, H, W); a colour image after grey ones makes it allocate again."""
    first = next(decoded)
    height, width = first.shape[:2]
    pixels = _allocate(len(files), options.channels or (1 if first.ndim == 2 else 3), height, width)
    for index, image in enumerate(chain([first], decoded)):
        if image.shape[:2] != (height, width):
            raise InputError(
                f"the images differ in size: {files[0]} is {width}x{height} and {files[index]} is "
                f"{image.shape[1]}x{image.shape[0]} pixels; pass --image-size to scale and crop them all"
            )
        if image.ndim == 3 and pixels.shape[1] == 1:
            grey = pixels
            pixels = _allocate(len(files), 3, height, width)
            pixels[:index] = grey[:index]
        # A grey image fills every channel.
        pixels[index] = image if image.ndim == 2 else image.transpose(2, 0, 1)
        done = index + 1
        if options.progress is not None and (done % _FILES_PER_TASK == 0 or done == len(files)):
            options.progress(done, len(files))
    return pixels


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


def _decode_all(
    files: list[Path], formats: dict[str, tuple[str, ...]], options: LoadOptions
) -> Generator[Pixels, None, None]:
    """Decode files on a few threads, in order, only a few tasks ahead of the caller."""

    def decode_task(task: list[Path]) -> list[Pixels]:
        return [_decode(file, formats[file.suffix.lower()], options) for file in task]

    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    tasks = (files[start : start + _FILES_PER_TASK] for start in range(0, len(files), _FILES_PER_TASK))
    pending: deque[Future[list[Pixels]]] = deque()
    executor = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    # The filters apply to all threads. Pillow warns of damaged tags, which do not affect the pixels, and only warns of
    # images up to twice its limit.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            for task in tasks:
                pending.append(executor.submit(decode_task, task))
                if len(pending) > 2 * threads:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)


def _decode(file: Path, formats: tuple[str, ...], options: LoadOptions) -> Pixels:
    """Decode one file to (H, W) uint8 if it is grey, else to (H, W, 3) uint8."""
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise InputError(f"{file} has more than {_LARGEST_FILE // 2**20} MiB: remove or replace it")
        with _open(file, formats, options.image_size) as opened:
            is_large = opened.width * opened.height > _MANY_PIXELS
            if options.image_size is not None and opened.width * opened.height > _MANY_PIXELS_OF_JPEG:
                opened.draft(None, (_SHARPNESS * options.image_size, _SHARPNESS * options.image_size))
            if opened.width * opened.height > _MOST_PIXELS:
                raise Image.DecompressionBombError
            with _ONE_AT_A_TIME if is_large else nullcontext():
                return _decode_opened(opened, file, options)
    except GapssgError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        bounds = f"{_MOST_PIXELS:,}, or {_MOST_PIXELS_OF_JPEG:,} in a baseline JPEG with --image-size"
        raise InputError(f"{file} has more pixels than are read ({bounds}): scale it down or remove it") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{file} is not a readable image: remove or replace it") from error
    # Decoders raise nearly anything on damaged files: SyntaxError, struct.error, IndexError, zlib.error, ...
    except Exception as error:
        raise InputError(f"{file} cannot be decoded ({shortened(error, 200)}): remove or replace it") from error


def _open(file: Path, formats: tuple[str, ...], image_size: int | None) -> Image.Image:
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


def _decode_opened(opened: Image.Image, file: Path, options: LoadOptions) -> Pixels:
    ImageOps.exif_transpose(opened, in_place=True)
    image = _to_eight_bits(opened, file)
    if options.channels == 1:
        image = image.convert("L")
    if options.image_size is not None:
        size = (options.image_size, options.image_size)
        image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    return numpy.asarray(image)


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
