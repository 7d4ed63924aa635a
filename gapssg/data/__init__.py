"""Sources of real images: the handwritten digits, CIFAR and folders of images.

A new source is a module that implements `gapssg.data.source.Source`, and a line in `_SOURCES`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from gapssg.data.source import LoadOptions, Source
from gapssg.errors import InputError, did_you_mean, shortened
from gapssg.files import is_folder, user_path
from gapssg.settings.parts import Interpolation, Resize

if TYPE_CHECKING:
    from gapssg.data.image_set import ImageSet

__all__ = [
    "FOLDER",
    "check_data_name",
    "data_names",
    "describe_names",
    "flipping_is_meaningful",
    "load_split",
    "public_name",
]

FOLDER = "folder:"
"""The start of the name of a folder of images, before its path."""
# Names that end in ":PATH" take a path. Modules are imported only when used, because checking a name must be instant.
_SOURCES = {
    "digits": "gapssg.data.digits",
    "cifar10": "gapssg.data.cifar",
    "cifar100": "gapssg.data.cifar",
    "folder:PATH": "gapssg.data.folder",
}


def public_name(name: str) -> str:
    """Return the name of a data set; of a folder only the last part of its path, because the path is private."""
    return (Path(name.removeprefix(FOLDER)).name or "folder") if name.startswith(FOLDER) else name


def whole_name(name: str) -> str:
    """Return the name of a data set; of a folder with its whole path, which is the same in every working directory."""
    return FOLDER + str(user_path(name.removeprefix(FOLDER)).resolve()) if name.startswith(FOLDER) else name


def data_names() -> tuple[str, ...]:
    """Return the names of the data sources; one that takes a path ends in a colon."""
    return tuple(name.removesuffix("PATH") for name in _SOURCES)


def describe_names() -> str:
    """Return the names of the data sources as help texts list them."""
    *others, last = (f"`{name}`" for name in _SOURCES)
    return f"{', '.join(others)} or {last}"


def check_data_name(name: str) -> str:
    """Return the name of a data source if it is valid; raise `InputError`, with a similar one, if not."""
    kind, has_path, path = name.partition(":")
    if has_path and f"{kind}:PATH" in _SOURCES:
        if not path.strip():
            raise InputError(f"data {name!r} has no path; write it as {kind}:PATH")
        user_path(path)
        return name
    if name in _SOURCES:
        return name
    hint = f" (did you mean folder:{name}?)" if is_folder(name) else did_you_mean(kind, _SOURCES)
    raise InputError(f"unknown data {shortened(repr(name))}{hint}; valid are {', '.join(_SOURCES)}")


def load_split(
    name: str,
    split: Literal["train", "test"],
    *,
    root: Path | None = None,
    download: bool = False,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
    resize: Resize = "crop",
    interpolation: Interpolation = "bilinear",
    for_model: bool = False,
) -> ImageSet:
    """Read one split of a data source into memory.

    Args:
        name: The name of a data source.
        split: `train`, or `test`, which in a folder may also be called `val`.
        root: Folder of the CIFAR files; by default the environment variable GAPSSG_DATA.
        download: Whether missing CIFAR files are downloaded.
        image_size: Height and width of the images in pixels, or the side of squares; by default they keep their size.
        channels: 1 for grey, 3 for RGB, or another number of which the files of a folder must be; by default as the
            files are.
        progress: Called with (done, total) images while a folder is decoded.
        note: Called with a sentence that names the files of a folder that are not read, if there are any, and with one
            that says that height and width of its images are swapped, if they are read `for_model`.
        resize: How images of a folder are brought to the image size: `crop` scales until both sides are covered and
            crops the centre, a number scales the shorter side to so many pixels first, `stretch` scales both sides.
        interpolation: The filter with which they are resized.
        for_model: Whether the image size is that of a model's input, not one that the user wants.

    Raises:
        InputError: The name is unknown, or the images cannot be read.
    """
    check_data_name(name)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    options = LoadOptions(root, download, size, channels, progress, note, resize, interpolation, for_model)
    return _source(name).load(name, split, options)


def flipping_is_meaningful(name: str) -> bool:
    """Tell whether a mirrored image of this source is still of its class; raises as `check_data_name`."""
    return _source(check_data_name(name)).FLIPPING_IS_MEANINGFUL


def _source(name: str) -> Source:
    kind, has_path, _ = name.partition(":")
    return cast(Source, import_module(_SOURCES[f"{kind}:PATH" if has_path else name]))
