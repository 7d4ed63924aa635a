"""Images in folders: `train/` and `test/` (or `val/`), each with one sub-folder per class.

The folders are untrusted: nothing outside the given folder is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch

from gapssg.data.decode import decode_images, readable_extensions
from gapssg.data.image_set import ImageSet
from gapssg.data.source import LoadOptions
from gapssg.errors import InputError
from gapssg.files import check_exists, user_path
from gapssg.text import listed

FLIPPING_IS_MEANINGFUL = True

_SUBFOLDERS = {"train": ("train",), "test": ("test", "val")}
_DEEPEST_FOLDER = 20
_MOST_IMAGES = 1_000_000


def load(name: str, split: Literal["train", "test"], options: LoadOptions) -> ImageSet:
    """Read a split of `folder:PATH` in the order of torchvision's ImageFolder.

    Classes are the sorted sub-folders of the split; their images are found at any depth and decoded as by
    `decode_images`. Raises `InputError` if the folders are not as described, or an image cannot be used; the message
    names it.
    """
    root = user_path(name.partition(":")[2])
    folder = _split_folder(root, split)
    classes = _class_folders(folder, root.resolve())
    extensions = readable_extensions()
    files: list[Path] = []
    labels: list[int] = []
    unread = [Path(entry.path) for entry in _entries(folder) if not _is_folder(entry)]
    for label, class_folder in enumerate(classes):
        found, others = _image_files(class_folder, root.resolve(), extensions, {folder.resolve()})
        if not found:
            but = f" that can be read, only {listed([other.name for other in others])}" if others else ""
            raise InputError(f"the class folder {class_folder} has no images{but}: add some, or remove the folder")
        unread += others
        # ImageFolder sorts by folder, then by file.
        files += sorted(found, key=os.path.split)
        labels += [label] * len(found)
    _note_unread(folder, unread, len(files), " or are in no class folder", options.note)
    return ImageSet(
        images=torch.from_numpy(decode_images(files, options)),
        labels=torch.tensor(labels, dtype=torch.int64),
        class_names=tuple(class_folder.name for class_folder in classes),
    )


def find_images(paths: Sequence[Path], note: Callable[[str], None] | None = None) -> list[Path]:
    """List the images among `paths` and, at any depth, in the folders among them, as `load` finds those of a class.

    The order of the paths is kept, and `note` is called with a sentence that names the files of a folder that are not
    read, if there are any. Raises `InputError` if one does not exist, is no image, or has none in it, or there are more
    than a million.
    """
    extensions = readable_extensions()
    found: list[Path] = []
    for path in paths:
        check_exists(path)
        if path.is_dir():
            files, unread = _image_files(path, path.resolve(), extensions, set())
            _note_unread(path, unread, len(files), "", note)
            if not files:
                raise InputError(f"{path} has no images that can be read: name another folder")
            found += sorted(files, key=os.path.split)
        elif not path.is_file():
            raise InputError(f"{path} is not a file that can be read, but a device or a pipe: name an image")
        elif path.suffix.lower() not in extensions:
            raise InputError(f"{path} has no image file extension: name it after its format, such as {path.stem}.png")
        else:
            found.append(path)
        if len(found) > _MOST_IMAGES:
            raise InputError(f"there are more than {_MOST_IMAGES:,} images: name fewer at a time")
    return found


def _note_unread(
    folder: Path, unread: list[Path], read: int, or_where: str, note: Callable[[str], None] | None
) -> None:
    if unread and note is not None:
        names = listed([str(path.relative_to(folder)) for path in unread])
        note(
            f"of {read + len(unread):,} files in {folder}, {len(unread):,} are not read, because they have no "
            f"image file extension{or_where}: {names}"
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
        raise InputError(f"{folder} is more than {_DEEPEST_FOLDER} folders deep: move its images up")
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
