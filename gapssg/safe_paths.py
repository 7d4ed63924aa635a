"""Paths in untrusted directories: no symbolic link below the directory is followed, no pipe or device is opened."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PosixPath
from typing import Self

from gapssg.errors import InputError, RunError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY


class InsidePath(PosixPath):
    """A path below an untrusted directory: no symbolic link below that directory is followed.

    Attributes:
        directory: The directory; it may itself be reached through links, because the user named it.
        held: The directory, if this process holds its lock; each write then checks that it still does.
    """

    directory: Path = Path("/")  # of a path that was derived in another way than by `/` and `parent`
    held: HeldDirectory | None = None

    def __truediv__(self, name: str | os.PathLike[str]) -> Self:
        return self._at(super().__truediv__(name))

    def with_name(self, name: str) -> Self:
        """Return a path in the same folder."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> Self:
        """Return a path in the same folder."""
        return self.parent / Path(self).with_suffix(suffix).name

    @property
    def parent(self) -> Self:
        """The folder that contains it."""
        above = self._at(super().parent)
        if self == self.directory:
            above.directory, above.held = Path(above), None
        return above

    @property
    def below(self) -> tuple[str, ...]:
        """The parts of the path below the directory; raises `InputError` if it is not inside."""
        parts = Path(self).parts[len(self.directory.parts) :]
        if not self.is_relative_to(self.directory) or ".." in parts:
            raise InputError(f"{self} is not inside {self.directory}")
        return parts

    def _at(self, place: Path) -> Self:
        path = type(self)(place)
        path.directory, path.held = self.directory, self.held
        return path


def inside(directory: Path) -> InsidePath:
    """Return the path of an untrusted directory; paths below it are reached through no link."""
    if isinstance(directory, InsidePath):
        return directory
    path = InsidePath(directory)
    path.directory = Path(directory)
    return path


class HeldDirectory(contextlib.AbstractContextManager["HeldDirectory"]):
    """A directory that this process has locked, so that no other process writes there.

    Attributes:
        path: The directory.
        descriptor: The open directory, which stays the same if the directory is renamed.
        written: SHA-256 of each file that was written as a whole, by its path below the directory.
    """

    def __init__(self, file: Path, descriptor: int, locked: int, opened: contextlib.ExitStack) -> None:
        """Hold the lock that `files.lock` took: the open folder and lock file, by descriptor, which `opened` closes."""
        self.path = Path(file.parent)
        self.descriptor = descriptor
        self.written: dict[str, str] = {}
        self._name, self._locked, self._opened = file.name, locked, opened

    @property
    def root(self) -> InsidePath:
        """The path of the directory; each write below it checks that the lock is still held."""
        path = inside(self.path)
        path.held = self
        return path

    def check(self) -> None:
        """Check that neither the directory nor its lock was removed, moved or replaced.

        Raises `RunError` if one of them was, so that another process may write there, and `OSError` if the directory
        does not exist.
        """
        is_same = os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        if not is_same or not has_name(self._locked, self._name, self.descriptor):
            raise RunError(
                f"{self.path} is no longer the directory that this process locked: it or its lock was removed or "
                "replaced, so another process may be writing there; stopped without writing more"
            )

    def close(self) -> None:
        """Release the lock."""
        self._opened.close()

    def __del__(self) -> None:
        self.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def has_name(handle: int, name: str, folder: int) -> bool:
    """Tell whether an open file still has this name in a folder."""
    try:
        named = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(handle))


@contextlib.contextmanager
def opened_folder(folder: Path) -> Iterator[int]:
    """Open a folder until the block ends, through no link below the directory of an `InsidePath`.

    Raises `InputError` if one of the path's parts is a link or a file, and `OSError` if the folder cannot be opened.
    """
    with contextlib.ExitStack() as opened:

        def keep(handle: int) -> int:
            opened.callback(os.close, handle)
            return handle

        if not isinstance(folder, InsidePath):
            yield keep(os.open(folder, _FOLDER))
            return
        place, held = folder.directory, folder.held
        handle = keep(os.open(place, _FOLDER) if held is None else os.dup(held.descriptor))
        for name in folder.below:
            place /= name
            mode = os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode
            if not stat.S_ISDIR(mode):
                raise InputError(f"{place} is {file_kind(mode)} where a folder is expected; remove it")
            handle = keep(os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=handle))
        yield handle


def open_file(path: Path, flags: int, folder: int | None = None) -> int:
    """Open a regular file without waiting for a pipe, touching a device or following a link in an `InsidePath`.

    An `InsidePath` needs the descriptor of the folder that contains it. Raises `InputError` if it is not a regular
    file, or has several hard links and would be written to, and `OSError` if it cannot be opened.
    """
    follow = not isinstance(path, InsidePath)
    name = path if folder is None else path.name
    try:
        _check_file(path, os.stat(name, dir_fd=folder, follow_symlinks=follow), flags)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    handle = os.open(name, flags | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW), 0o666, dir_fd=folder)
    try:
        _check_file(path, os.fstat(handle), flags)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _check_file(path: Path, found: os.stat_result, flags: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        if isinstance(path, InsidePath):
            raise InputError(
                f"{path} is {file_kind(found.st_mode)} where a file is expected; remove it, or put the file there"
            )
        raise InputError(f"{path} is not a file")
    if found.st_nlink > 1 and flags & (os.O_WRONLY | os.O_RDWR):
        raise InputError(f"{path} has a second hard link, which a write would change too; remove it")


def file_kind(mode: int) -> str:
    """Return in words what a file mode stands for."""
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "a pipe, a socket or a device"
