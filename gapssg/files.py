"""Durable, atomic file writing, bounded reading and canonical JSON: the only place that writes files.

What lies in a directory that anybody may have made is named by an `InsidePath`: no link below the directory is
followed, no pipe waited for, no device read.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PosixPath
from typing import Any, BinaryIO, Self

from gapssg.errors import InputError, RunError, Taken, shortened

_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes
LARGEST_FILE = 4 * 2**30  # bytes; of safetensors files
_BLOCK = 2**20  # bytes
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{12}\.tmp")
_HOLDER = b"process "


def canonical_json(value: Any) -> str:
    """Return `value` as JSON with sorted keys and no spaces, so that equal values are equal texts.

    Raises:
        ValueError: A number is not finite (JSON has no word for it).
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_json(text: str | bytes) -> Any:
    """Return what JSON of a stranger holds.

    Raises:
        ValueError: It is not JSON, or its texts have halves of characters, which validators cannot even complain of.
        RecursionError: It is nested too deeply.
    """
    value = json.loads(text)
    json.dumps(value, ensure_ascii=False).encode()
    return value


def user_path(path: str | Path) -> Path:
    """Return a path as the user means it: `~` and `~user` stand for home folders.

    Raises:
        InputError: No file or folder can have this path, or the folder that it is seen from is gone.
    """
    text = os.fspath(path)
    shown = shortened(repr(text))
    if not text:
        raise InputError("an empty path names no file or folder")
    try:
        names = [len(os.fsencode(name)) for name in text.split("/")]
    except UnicodeEncodeError as error:
        raise InputError(f"{shown} cannot be a path: it has halves of characters") from error
    if "\0" in text:
        raise InputError(f"{shown} cannot be a path: it has a NUL character")
    if max(names) > _LONGEST_NAME or sum(names) + len(names) > _LONGEST_PATH:
        raise InputError(f"{shown} cannot be a path: names have at most {_LONGEST_NAME} bytes, paths {_LONGEST_PATH}")
    meant = path if isinstance(path, Path) else Path(path)  # which may be an `InsidePath`
    if text.startswith("~"):
        try:
            meant = Path(text).expanduser()
        except RuntimeError as error:
            raise InputError(
                f"{shown} names no home folder; for a name that begins with ~, write ./{shown[1:-1]}"
            ) from error
    if not meant.is_absolute():
        check_current_folder()
    # A path does not keep the `./` that was before a `~`, and may come here again.
    return meant.absolute() if str(meant).startswith("~") else meant


def check_current_folder() -> None:
    """Check that the folder from which relative paths are seen is there.

    Raises:
        InputError: It was removed.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise InputError("the current folder is gone; change to another one and start again") from error


class InsidePath(PosixPath):
    """A path below a directory that anybody may have made: no link below that directory is followed.

    Attributes:
        directory: The directory; it may itself be reached through links, because the user named it.
        held: The directory, if this process holds its lock; each write then checks that it still does.
    """

    directory: Path = Path("/")  # of a path that was derived in another way than by `/` and `parent`
    held: HeldDirectory | None = None

    def __truediv__(self, name: str | os.PathLike[str]) -> Self:
        """Return a path below this one."""
        return self._at(super().__truediv__(name))

    def with_name(self, name: str) -> Self:
        """Return a path in the same folder."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> Self:
        """Return a path in the same folder."""
        return self.parent / Path(self).with_suffix(suffix).name

    @property
    def parent(self) -> Self:
        """The folder in which it lies."""
        above = self._at(super().parent)
        if self == self.directory:
            above.directory, above.held = Path(above), None
        return above

    @property
    def below(self) -> tuple[str, ...]:
        """The names by which it is reached from the directory.

        Raises:
            InputError: It is not inside.
        """
        parts = Path(self).parts[len(self.directory.parts) :]
        if not self.is_relative_to(self.directory) or ".." in parts:
            raise InputError(f"{self} is not inside {self.directory}")
        return parts

    def _at(self, place: Path) -> Self:
        path = type(self)(place)
        path.directory, path.held = self.directory, self.held
        return path


def inside(directory: Path) -> InsidePath:
    """Return the path of a directory that anybody may have made; what is below it is reached through no link."""
    if isinstance(directory, InsidePath):
        return directory
    path = InsidePath(directory)
    path.directory = Path(directory)
    return path


class HeldDirectory:
    """A directory whose lock this process holds: nobody else writes there.

    Attributes:
        path: The directory.
        descriptor: Of the directory, however it is called by now.
        written: By its path below the directory the SHA-256 of each file that was written in whole.
    """

    def __init__(self, file: Path, descriptor: int, locked: int, opened: contextlib.ExitStack) -> None:
        """Hold a lock that `lock` has taken.

        Args:
            file: The lock's file.
            descriptor: Of its folder.
            locked: The descriptor of the file.
            opened: Closes both.
        """
        self.path = Path(file.parent)
        self.descriptor = descriptor
        self.written: dict[str, str] = {}
        self._name, self._locked, self._opened = file.name, locked, opened

    @property
    def root(self) -> InsidePath:
        """The directory's path, below which each write checks that the lock is still held."""
        path = InsidePath(self.path)
        path.directory, path.held = self.path, self
        return path

    def check(self) -> None:
        """Check that the lock is still that of the directory: neither was removed, moved or replaced.

        Raises:
            RunError: It is not, so that another process may write there.
            OSError: There is no such directory.
        """
        folder = os.stat(self.path)
        is_same = os.path.samestat(folder, os.fstat(self.descriptor))
        if not is_same or not _has_name(self._locked, self._name, self.descriptor):
            raise RunError(
                f"{self.path} is no longer the directory that this process holds: it or its lock was removed or "
                "replaced, so another process may write there; nothing more is written"
            )

    def close(self) -> None:
        """Release the lock."""
        self._opened.close()

    def __del__(self) -> None:
        """Release the lock with the last that knows of it."""
        self.close()

    def __enter__(self) -> Self:
        """Hold the directory until the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        self.close()


def _has_name(handle: int, name: str, folder: int) -> bool:
    """Tell whether an open file still has its name in a folder."""
    try:
        named = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(handle))


@contextlib.contextmanager
def _opened_folder(folder: Path) -> Iterator[int]:
    """Open a folder as `_open_folder` does, until the block ends."""
    handle = _open_folder(folder)
    try:
        yield handle
    finally:
        os.close(handle)


def _open_folder(folder: Path) -> int:
    """Open a folder, through no link below the directory of an `InsidePath`.

    Raises:
        InputError: A link or a file stands where a folder belongs.
        OSError: It cannot be opened.
    """
    if not isinstance(folder, InsidePath):
        return os.open(folder, _FOLDER)
    handle = os.open(folder.directory, _FOLDER) if folder.held is None else os.dup(folder.held.descriptor)
    place = folder.directory
    for name in folder.below:
        place /= name
        outer = handle
        try:
            mode = os.stat(name, dir_fd=outer, follow_symlinks=False).st_mode
            if not stat.S_ISDIR(mode):
                raise InputError(f"{place} is {_kind(mode)} where a folder belongs; remove it")
            handle = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=outer)
        finally:
            os.close(outer)
    return handle


def _open_file(path: Path, flags: int, folder: int | None = None) -> int:
    """Open a regular file: no pipe is waited for, no device touched, and below a directory no link followed.

    Args:
        path: The file.
        flags: As `os.open` takes them.
        folder: The descriptor of the folder in which it lies; needed for an `InsidePath`.

    Raises:
        InputError: It is something else than a file of one name.
        OSError: It cannot be opened.
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
            raise InputError(f"{path} is {_kind(found.st_mode)} where a file belongs; remove it, or put the file there")
        raise InputError(f"{path} is not a file")
    if found.st_nlink > 1 and flags & (os.O_WRONLY | os.O_RDWR):
        raise InputError(f"{path} has a second name (a hard link), and what is written would be in both; remove it")


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "a pipe, a socket or a device"


def open_regular(path: Path, most_bytes: int) -> BinaryIO:
    """Open a file that may be a stranger's to read it: no pipe is waited for, no device is read.

    Raises:
        InputError: It is missing, no file, larger than `most_bytes`, or cannot be read; or a link leads to it below
            the directory of an `InsidePath`.
    """
    try:
        if isinstance(path, InsidePath):
            with _opened_folder(path.parent) as folder:
                handle = _open_file(path, os.O_RDONLY, folder)
        else:
            handle = _open_file(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError) as error:
        seen_from = "" if path.is_absolute() else f" (seen from {Path.cwd()})"
        raise InputError(f"{path} does not exist{seen_from}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    file = os.fdopen(handle, "rb")
    size = os.fstat(file.fileno()).st_size
    if size > most_bytes:
        file.close()
        raise InputError(f"{path} has {size:,} bytes, more than the {most_bytes:,} that such a file may have")
    return file


def is_file(path: str | Path) -> bool:
    """Tell whether there is a file of this name; what cannot be one, such as a text of 300 characters, is none.

    Raises:
        InputError: A link or a device stands there, below the directory of an `InsidePath`.
    """
    if isinstance(path, InsidePath):
        return stat.S_ISREG(_mode(path))
    try:
        return user_path(path).is_file()
    except (InputError, OSError):
        return False


def is_folder(path: InsidePath) -> bool:
    """Tell whether there is a folder of this name.

    Raises:
        InputError: A link or a device stands there, or it cannot be looked at.
    """
    return stat.S_ISDIR(_mode(path))


def _mode(path: InsidePath) -> int:
    """Return what stands at a path, 0 for nothing.

    Raises:
        InputError: A link or a device, or it cannot be looked at.
    """
    try:
        if path == path.directory:
            return os.stat(path).st_mode
        with _opened_folder(path.parent) as folder:
            mode = os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError(f"{path} is {_kind(mode)} where a file or a folder belongs; remove it")
    return mode


def entries_in(folder: InsidePath) -> dict[str, bool]:
    """Return the names in a folder, sorted, and whether each is a folder itself; none if it is not there.

    Raises:
        InputError: A link leads there, it is no folder, or it cannot be read.
    """
    try:
        with _opened_folder(folder) as handle, os.scandir(handle) as entries:
            return dict(sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from error


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """Read a file that may be a stranger's.

    Raises:
        InputError: As `open_regular`.
    """
    with open_regular(path, most_bytes) as file:
        try:
            return file.read(most_bytes)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name beside `path`, flush it to the disk, and rename it.

    A reader sees the old file or the new one, never a part.

    Raises:
        RunError: The folder or the disk refuses the write; the old file, if any, is untouched.
    """
    with staged(path, content):
        pass


@contextlib.contextmanager
def staged(path: Path, content: bytes) -> Iterator[Path]:
    """Write `content` as `write_atomically` does, and rename it only when the block, which may try it out, ends.

    If the block raises, the file is removed and `path` is as it was.

    Yields:
        The file under its temporary name, on the disk.

    Raises:
        RunError: The folder or the disk refuses the write; the old file, if any, is untouched.
    """
    with contextlib.ExitStack() as opened:
        with _refusal_of(path):
            _check_held(path)
            folder = opened.enter_context(_opened_folder(path.parent))
            if _held(path) is None:
                _remove_abandoned(folder, path.name)
            handle, temporary = _create_temporary(path.name, folder)
        opened.callback(os.close, handle)
        try:
            with _refusal_of(path):
                _write(handle, content)
                os.fsync(handle)
            yield path.with_name(temporary)
            with _refusal_of(path):
                _check_held(path)
                os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
                os.fsync(folder)
        finally:
            # It is gone if all went well; a disk that refuses this too is not worth a second complaint.
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
    if isinstance(path, InsidePath) and path.held is not None:
        path.held.written["/".join(path.below)] = hashlib.sha256(content).hexdigest()


def append(path: Path, content: bytes) -> None:
    """Append to a file, which is made if it is not there, and flush it to the disk.

    Raises:
        InputError: It is a link, a device, or has a second name.
        RunError: The disk refuses the write, which may be there in part.
    """
    with _refusal_of(path), contextlib.ExitStack() as opened:
        _check_held(path)
        folder = opened.enter_context(_opened_folder(path.parent))
        flags, is_new = os.O_WRONLY | os.O_APPEND, False
        try:
            handle = _open_file(path, flags, folder)
        except FileNotFoundError:
            handle, is_new = _open_file(path, flags | os.O_CREAT | os.O_EXCL, folder), True
        opened.callback(os.close, handle)
        _write(handle, content)
        os.fsync(handle)
        if is_new:
            os.fsync(folder)


def remove(path: Path) -> None:
    """Remove a file, or a link itself, if it is there.

    Raises:
        RunError: The system refuses.
    """
    with _refusal_of(path):
        _check_held(path)
        with contextlib.suppress(FileNotFoundError), _opened_folder(path.parent) as folder:
            os.unlink(path.name, dir_fd=folder)


def remove_folder(path: InsidePath) -> None:
    """Remove an empty folder, if it is there.

    Raises:
        RunError: The system refuses.
    """
    with _refusal_of(path):
        _check_held(path)
        with contextlib.suppress(FileNotFoundError), _opened_folder(path.parent) as folder:
            os.rmdir(path.name, dir_fd=folder)


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, and flush each name to the disk.

    Raises:
        InputError: A link or a file stands where a folder belongs.
        RunError: The system refuses.
    """
    try:
        _check_held(path)
        if is_folder(path) if isinstance(path, InsidePath) else path.is_dir():
            return
        make_folder(path.parent)
        with _opened_folder(path.parent) as folder:
            with contextlib.suppress(FileExistsError):  # another process has just made it
                os.mkdir(path.name, dir_fd=folder)
            os.fsync(folder)
        with _opened_folder(path):  # is it one?
            pass
    except OSError as error:
        raise RunError(f"cannot write to {path}: {error.strerror or error}") from error


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, if it is there.

    Raises:
        RunError: The system refuses.
    """
    with _refusal_of(folder), contextlib.suppress(FileNotFoundError), _opened_folder(folder) as handle:
        os.fsync(handle)


def _held(path: Path) -> HeldDirectory | None:
    return path.held if isinstance(path, InsidePath) else None


def _check_held(path: Path) -> None:
    if (held := _held(path)) is not None:
        held.check()


def _create_temporary(name: str, folder: int) -> tuple[int, str]:
    """Make a file under a temporary name; the lock on it shows that its writer lives."""
    while True:
        temporary = f".{name}.{secrets.token_hex(6)}.tmp"
        # Opened by hand, so that the system applies the umask; asking for it would change it for other threads.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=folder)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)  # somebody took it for abandoned before it was locked


def _remove_abandoned(folder: int, name: str | None = None) -> None:
    """Remove what writers that were killed have left in a folder: all, or what was to become one file."""
    for entry in os.listdir(folder):
        found = _TEMPORARY.fullmatch(entry)
        if found is None or name not in (None, found[1]):
            continue
        with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
            handle = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            opened.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(entry, dir_fd=folder)


def _write(handle: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]


@contextlib.contextmanager
def _refusal_of(path: Path) -> Iterator[None]:
    """Say in one sentence that `path` cannot be written, if the system says so."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def sha256_of_files(paths: Iterable[Path], most_bytes: int) -> str:
    """Return the SHA-256 of files one after another, in hexadecimal.

    Raises:
        InputError: As `open_regular`.
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(bytes.fromhex(sha256_of_file(path, most_bytes)))
    return digest.hexdigest()


def sha256_of_file(path: Path, most_bytes: int) -> str:
    """Return the SHA-256 of a file that may be a stranger's, in hexadecimal.

    Raises:
        InputError: As `open_regular`.
    """
    digest = hashlib.sha256()
    with open_regular(path, most_bytes) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            for _ in range(-(-size // _BLOCK)):  # some files of /proc have no end
                digest.update(file.read(_BLOCK))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    text = json.dumps(value, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False)
    write_atomically(path, (text + "\n").encode())


def check_exists(path: Path) -> None:
    """Check that a file or folder that is read later is there.

    Raises:
        InputError: It is not, or cannot be looked at.
    """
    try:
        if path.exists():
            return
        seen_from = "" if path.is_absolute() else f" (seen from {Path.cwd()})"
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    raise InputError(f"{path} does not exist{seen_from}")


def check_writable(folder: Path) -> None:
    """Check that `folder` can be made and written to, leaving nothing behind.

    Raises:
        InputError: The nearest existing parent is not a folder or cannot be written to.
    """
    existing = (folder.directory if isinstance(folder, InsidePath) else folder).absolute()
    try:
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir():
            raise InputError(f"cannot write to {folder}: {existing} is not a folder; choose another --output")
        with tempfile.TemporaryFile(dir=existing):
            pass
        # A name that is too long or not allowed shows only where it is looked up.
        folder.absolute().exists()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write to {folder}: {reason}; choose another --output") from error


def check_output_file(path: Path, overwrite: bool, *, makes_folder: bool = False, inputs: Iterable[Path] = ()) -> None:
    """Check that `path` can be written as a file that `--output` names, changing nothing.

    Args:
        path: The file.
        overwrite: Whether it may be there already.
        makes_folder: Whether its folder need not be there yet.
        inputs: Files that the command reads, which it does not replace.

    Raises:
        InputError: It is a folder, an input or there already, or its folder is missing or cannot be written to.
    """
    try:
        for file in inputs if path.exists() else ():
            if file.exists() and path.samefile(file):
                raise InputError(f"--output {path} is {file} itself, which is read; name another file")
        if path.is_dir():
            raise InputError(f"--output {path} is a folder; name the file to write")
        if len(os.fsencode(path.name)) > _LONGEST_NAME - len("." + 12 * "x" + ".tmp."):
            raise InputError(f"--output {path.name}: this name is too long; choose a shorter one")
        if path.exists() and not overwrite:
            raise InputError(f"--output {path} already exists; add --overwrite to replace it")
        if not makes_folder and not path.parent.is_dir():
            raise InputError(f"--output {path}: there is no folder {path.parent}; make it first")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another --output") from error
    check_writable(path.parent)


def lock(file: Path, *, wait: bool = False) -> HeldDirectory:
    """Take the lock that a file stands for; the system releases it when it is closed, or the process ends, however.

    What writers that were killed left in the file's folder is removed.

    Args:
        file: Made if it is not there.
        wait: Wait for the process that holds it.

    Raises:
        Taken: Another process holds it; said of the file's folder.
        InputError: The file is something else than a lock.
        OSError: The file cannot be made.
    """
    file = file if isinstance(file, InsidePath) else inside(file.parent) / file.name
    while True:
        with contextlib.ExitStack() as opened:
            folder = _open_folder(file.parent)
            opened.callback(os.close, folder)
            handle = _open_file(file, os.O_RDWR | os.O_CREAT, folder)
            opened.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
                raise Taken(file.parent, holder or "another process") from error
            if _has_name(handle, file.name, folder):  # else it was replaced before it was locked
                _sign(file, handle)
                _remove_abandoned(folder)
                return HeldDirectory(file, folder, handle, opened.pop_all())


def _sign(file: Path, handle: int) -> None:
    """Write into a lock who holds it."""
    before = os.pread(handle, len(_HOLDER), 0).strip(b"\0")
    if not _HOLDER.startswith(before):  # a write that was cut off leaves a part of it
        raise InputError(f"{file} is not a lock of this program; move it elsewhere")
    os.ftruncate(handle, 0)
    os.pwrite(handle, _HOLDER + f"{os.getpid()} on {platform.node()}\n".encode(), 0)
