"""Durable, atomic file writing, bounded reading and canonical JSON: the only place that writes files."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from gapssg.errors import InputError, RunError, Taken, os_errors_as, shortened
from gapssg.safe_paths import HeldDirectory, InsidePath, file_kind, has_name, inside, open_file, opened_folder

_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes
LARGEST_FILE = 4 * 2**30  # bytes; of safetensors files
_BLOCK = 2**20  # bytes
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{12}\.tmp")
_HOLDER = b"process "
_LARGEST_LOCK = 1000  # bytes


def canonical_json(value: object) -> str:
    """Return `value` as JSON with sorted keys and no spaces, so that equal values are equal texts.

    Raises `ValueError` if a number is not finite (JSON cannot represent it).
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_json(text: str | bytes) -> Any:
    """Parse untrusted JSON.

    Raises `ValueError` if it is not valid JSON, or a string has lone surrogates, which validators cannot even report,
    and `RecursionError` if it is nested too deeply.
    """
    value = json.loads(text)
    json.dumps(value, ensure_ascii=False).encode()
    return value


def user_path(path: str | Path) -> Path:
    """Return a path as the user means it: `~` and `~user` stand for home folders.

    Raises `InputError` if nothing can have this path, or it is relative and the current folder no longer exists.
    """
    text = os.fspath(path)
    shown = shortened(repr(text))
    if not text:
        raise InputError("an empty path names no file or folder")
    try:
        names = [len(os.fsencode(name)) for name in text.split("/")]
    except UnicodeEncodeError as error:
        raise InputError(f"{shown} is not a valid path: it has lone surrogates") from error
    if "\0" in text:
        raise InputError(f"{shown} is not a valid path: it has a NUL character")
    if max(names) > _LONGEST_NAME or sum(names) + len(names) > _LONGEST_PATH:
        raise InputError(f"{shown} is too long: names have at most {_LONGEST_NAME} bytes, paths {_LONGEST_PATH}")
    meant = path if isinstance(path, Path) else Path(path)  # which may be an `InsidePath`
    if text.startswith("~"):
        try:
            meant = Path(text).expanduser()
        except RuntimeError as error:
            raise InputError(
                f"{shown} names no home folder; for a name that starts with ~, write ./{shown[1:-1]}"
            ) from error
    if not meant.is_absolute():
        check_current_folder()
    # A path does not keep the `./` before a `~`, and may be passed here again.
    return meant.absolute() if str(meant).startswith("~") else meant


def check_current_folder() -> None:
    """Raise `InputError` if the current folder, which relative paths start from, was removed."""
    try:
        os.getcwd()
    except OSError as error:
        raise InputError("the current folder no longer exists; change to another one and try again") from error


def open_regular(path: Path, most_bytes: int) -> BinaryIO:
    """Open an untrusted file for reading, without waiting for a pipe or reading a device.

    Raises `InputError` if it is missing, not a regular file, larger than `most_bytes`, unreadable, or reached through a
    link below the directory of an `InsidePath`.
    """
    is_inside = isinstance(path, InsidePath)
    with _read_errors(path):
        try:
            with opened_folder(path.parent) if is_inside else contextlib.nullcontext() as folder:
                handle = open_file(path, os.O_RDONLY, folder)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _missing(path) from error
    file = os.fdopen(handle, "rb")
    size = os.fstat(handle).st_size
    if size > most_bytes:
        file.close()
        raise InputError(f"{path} has {size:,} bytes, more than the {most_bytes:,} that are allowed here")
    return file


def is_file(path: str | Path) -> bool:
    """Tell whether a file of this name exists; False for what cannot be a name, such as 300 characters.

    Raises `InputError` if it is a link or a device, below the directory of an `InsidePath`.
    """
    return _is(path, stat.S_ISREG)


def is_folder(path: str | Path) -> bool:
    """Tell whether a folder of this name exists; False for what cannot be a name.

    Raises `InputError` if it is a link or a device, or cannot be read, below the directory of an `InsidePath`.
    """
    return _is(path, stat.S_ISDIR)


def _is(path: str | Path, kind: Callable[[int], bool]) -> bool:
    if isinstance(path, InsidePath):
        return kind(_mode(path))
    try:
        return kind(os.stat(user_path(path)).st_mode)
    except (InputError, OSError):
        return False


def _mode(path: InsidePath) -> int:
    """Return the mode of a file or folder, 0 if there is neither."""
    with _read_errors(path):
        try:
            if path == path.directory:
                return os.stat(path).st_mode
            with opened_folder(path.parent) as folder:
                mode = os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return 0
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError(f"{path} is {file_kind(mode)} where a file or a folder is expected; remove it")
    return mode


def entries_in(folder: InsidePath) -> dict[str, bool]:
    """Return the names in a folder, sorted, and whether each is a folder; empty if the folder does not exist.

    Raises `InputError` if it is reached through a link, not a folder, or unreadable.
    """
    with _read_errors(folder):
        try:
            with opened_folder(folder) as handle, os.scandir(handle) as entries:
                return dict(sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries))
        except FileNotFoundError:
            return {}


def numbered_files(folder: InsidePath, name: re.Pattern[str]) -> dict[int, InsidePath]:
    """Return the entries of a folder with such names by the number in the name, in order; raises as `entries_in`."""
    found = {int(match[1]): folder / each for each in entries_in(folder) if (match := name.fullmatch(each))}
    return dict(sorted(found.items()))


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """Read an untrusted file; raises as `open_regular`."""
    with open_regular(path, most_bytes) as file, _read_errors(path):
        return file.read(most_bytes)


def read_blocks(path: Path, most_bytes: int) -> Iterator[bytes]:
    """Yield the content of an untrusted file in blocks of a megabyte; raises as `open_regular`."""
    with open_regular(path, most_bytes) as file, _read_errors(path):
        size = os.fstat(file.fileno()).st_size
        for _ in range(-(-size // _BLOCK)):  # some files of /proc never end
            yield file.read(_BLOCK)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name beside `path`, flush it to the disk, and rename it.

    A reader sees the old file or the new one, never a part. Raises `RunError` if the folder or the disk refuses the
    write; the old file, if any, is untouched.
    """
    with staged(path, content):
        pass


@contextlib.contextmanager
def staged(path: Path, content: bytes) -> Iterator[Path]:
    """Write `content` as `write_atomically` does, but rename it only if the block, which may verify it, succeeds.

    Yields the file under its temporary name, on the disk. If the block raises, it is removed and `path` is unchanged;
    if the folder or the disk refuses the write, `RunError` is raised, and the old file, if any, is untouched.
    """
    with contextlib.ExitStack() as opened:
        with _write_errors(path):
            held = _check_held(path)
            folder = opened.enter_context(opened_folder(path.parent))
            if held is None:
                _remove_abandoned(folder, path.name)
            handle, temporary = _create_temporary(path.name, folder)
        opened.callback(os.close, handle)
        try:
            with _write_errors(path):
                _write(handle, content)
                os.fsync(handle)
            yield path.with_name(temporary)
            with _write_errors(path):
                _check_held(path)
                os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
                os.fsync(folder)
        finally:
            # After a success it no longer exists; a disk that refuses this too is not worth a second error.
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
    if held is not None:
        held.written[path.relative_to(held.path).as_posix()] = hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def staged_folder(path: Path, files: Mapping[str, bytes]) -> Iterator[Path]:
    """Write a folder of files under a temporary name, and rename it only if the block, which may verify it, succeeds.

    If the block raises, the temporary folder is removed. A folder that exists is never replaced, unless it is empty.

    Args:
        path: The new folder, in one of the user.
        files: Contents by relative path.

    Yields:
        The folder under its temporary name, on the disk.

    Raises:
        RunError: The folder or the disk refuses the write, or `path` exists by now.
    """
    with contextlib.ExitStack() as opened:
        with _write_errors(path):
            parent = opened.enter_context(opened_folder(path.parent))
            _remove_abandoned(parent, path.name)
            temporary = f".{path.name}.{secrets.token_hex(6)}.tmp"
            os.mkdir(temporary, dir_fd=parent)
            opened.callback(shutil.rmtree, temporary, ignore_errors=True, dir_fd=parent)
            handle = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            opened.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)  # shows that the writer is alive
        root = path.with_name(temporary)
        for name, content in files.items():
            make_folder((root / name).parent)
            with _write_errors(path), open(root / name, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for folder in {(root / name).parent for name in files}:
            sync_folder(folder)
        yield root
        with _write_errors(path):
            os.rename(temporary, path.name, src_dir_fd=parent, dst_dir_fd=parent)
            os.fsync(parent)


def append(path: Path, content: bytes) -> None:
    """Append to a file, which is created if it does not exist, and flush it to the disk.

    Raises `InputError` if it is a link, a device, or has a second hard link, and `RunError` if the disk refuses the
    write, part of which may have been written.
    """
    with _write_errors(path), contextlib.ExitStack() as opened:
        _check_held(path)
        folder = opened.enter_context(opened_folder(path.parent))
        flags, is_new = os.O_WRONLY | os.O_APPEND, False
        try:
            handle = open_file(path, flags, folder)
        except FileNotFoundError:
            handle, is_new = open_file(path, flags | os.O_CREAT | os.O_EXCL, folder), True
        opened.callback(os.close, handle)
        _write(handle, content)
        os.fsync(handle)
        if is_new:
            os.fsync(folder)


def remove(path: Path, *, empty_folder: bool = False) -> None:
    """Remove a file, a link itself or, if asked for, an empty folder, if it exists; raise `RunError` if that fails."""
    with _write_errors(path):
        _check_held(path)
        with contextlib.suppress(FileNotFoundError), opened_folder(path.parent) as folder:
            (os.rmdir if empty_folder else os.unlink)(path.name, dir_fd=folder)


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, and flush each name to the disk.

    Raises `InputError` if a link or a file has the name of one of the folders, and `RunError` if the system refuses.
    """
    with os_errors_as(RunError, f"cannot write to {path}"):
        _check_held(path)
        if is_folder(path) if isinstance(path, InsidePath) else path.is_dir():
            return
        make_folder(path.parent)
        with opened_folder(path.parent) as folder:
            with contextlib.suppress(FileExistsError):  # another process has just created it
                os.mkdir(path.name, dir_fd=folder)
            os.fsync(folder)
        with opened_folder(path):  # fails if it is a file
            pass


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, if it exists; raise `RunError` if the system refuses."""
    with _write_errors(folder), contextlib.suppress(FileNotFoundError), opened_folder(folder) as handle:
        os.fsync(handle)


def _check_held(path: Path) -> HeldDirectory | None:
    """Return the locked directory that a path lies in, if any, after checking that the lock is still held."""
    held = path.held if isinstance(path, InsidePath) else None
    if held is not None:
        held.check()
    return held


def _create_temporary(name: str, folder: int) -> tuple[int, str]:
    """Create a file with a temporary name; the lock on it shows that its writer is alive."""
    while True:
        temporary = f".{name}.{secrets.token_hex(6)}.tmp"
        # With `os.open` the system applies the umask; reading it would change it for other threads.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=folder)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)  # another process removed it as abandoned before it was locked


def _remove_abandoned(folder: int, name: str | None = None) -> None:
    """Remove what killed writers left in a folder: all temporary files, or temporary files and folders of one name."""
    for entry in os.listdir(folder):
        found = _TEMPORARY.fullmatch(entry)
        if found is None or name not in (None, found[1]):
            continue
        with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
            handle = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            opened.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if name is not None and stat.S_ISDIR(os.fstat(handle).st_mode):
                shutil.rmtree(entry, dir_fd=folder)
            else:
                os.unlink(entry, dir_fd=folder)


def _write(handle: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]


def _read_errors(path: Path) -> contextlib.AbstractContextManager[None]:
    return os_errors_as(InputError, f"{path} cannot be read")


def _write_errors(path: Path) -> contextlib.AbstractContextManager[None]:
    return os_errors_as(RunError, f"cannot write {path}")


def _missing(path: Path) -> InputError:
    return InputError(f"{path} does not exist" + ("" if path.is_absolute() else f" (relative to {Path.cwd()})"))


def sha256_of_files(paths: Iterable[Path], most_bytes: int) -> str:
    """Return the SHA-256, in hexadecimal, of files' concatenated SHA-256 digests; raises as `open_regular`."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(bytes.fromhex(sha256_of_file(path, most_bytes)))
    return digest.hexdigest()


def sha256_of_contents(files: Mapping[str, bytes]) -> str:
    """Return the SHA-256 of the contents of files, in the order of their names; of one file, that of the file."""
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(files[name])
    return total.hexdigest()


def sha256_of_file(path: Path, most_bytes: int) -> str:
    """Return the SHA-256 of an untrusted file, in hexadecimal; raises as `open_regular`."""
    digest = hashlib.sha256()
    for block in read_blocks(path, most_bytes):
        digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    text = json.dumps(value, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False)
    write_atomically(path, (text + "\n").encode())


def check_exists(path: Path) -> None:
    """Raise `InputError` if a file or folder that is read later does not exist or cannot be read."""
    with _read_errors(path):
        if not path.exists():
            raise _missing(path)


def check_writable(folder: Path) -> None:
    """Raise `InputError` unless `folder` exists, or can be created, and can be written to; leave nothing behind."""
    existing = (folder.directory if isinstance(folder, InsidePath) else folder).absolute()
    with os_errors_as(InputError, f"cannot write to {folder}", "choose another --output"):
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir():
            raise InputError(f"cannot write to {folder}: {existing} is not a folder; choose another --output")
        with tempfile.TemporaryFile(dir=existing):
            pass
        # A name that is too long or not allowed is found only by looking it up.
        folder.absolute().exists()


@contextlib.contextmanager
def probe_file(folder: Path, content: str) -> Iterator[Path]:
    """Write a file that another machine looks for, to `folder` or its nearest existing parent, until the block ends.

    Raises `InputError` if it cannot be written.
    """
    existing = folder
    with (
        os_errors_as(InputError, f"cannot write to {folder}", "choose another directory"),
        contextlib.ExitStack() as stack,
    ):
        while not existing.is_dir():
            existing = existing.parent
        file = stack.enter_context(tempfile.NamedTemporaryFile(dir=existing, prefix=".gapssg-"))
        file.write(content.encode())
        file.flush()
        os.fsync(file.fileno())
        opened = stack.pop_all()
    with opened:
        yield Path(file.name)


def check_ending(path: Path, ending: str) -> None:
    """Raise `InputError` unless the name of the file of `--output` ends so."""
    if path.suffix != ending:
        raise InputError(f"--output {path} must end with {ending}")


def check_output_file(path: Path, overwrite: bool, *, makes_folder: bool = False, inputs: Iterable[Path] = ()) -> None:
    """Check that `path` can be written as the file of `--output`, changing nothing.

    With `makes_folder`, its folder may be missing. Raises `InputError` if it is a folder, one of the `inputs` or exists
    already, or its folder is missing or cannot be written to.
    """
    with os_errors_as(InputError, f"cannot write {path}", "choose another --output"):
        for file in inputs if path.exists() else ():
            if file.exists() and path.samefile(file):
                raise InputError(f"--output {path} is also the input {file}; name another file")
        if path.is_dir():
            raise InputError(f"--output {path} is a folder; name the file to write")
        if len(os.fsencode(path.name)) > _LONGEST_NAME - len("." + 12 * "x" + ".tmp."):
            raise InputError(f"--output {path.name}: this name is too long; choose a shorter one")
        if path.exists() and not overwrite:
            raise InputError(f"--output {path} already exists; add --overwrite to replace it")
        if not makes_folder and not path.parent.is_dir():
            raise InputError(f"--output {path}: the folder {path.parent} does not exist; create it first")
    check_writable(path.parent)


def check_output_folder(path: Path) -> None:
    """Check that `path` can be created as the folder of `--output`, changing nothing.

    Raises `InputError` if it exists, or its parent is missing or cannot be written to.
    """
    if os.path.lexists(path):
        raise InputError(f"--output {path} already exists, and a folder is never replaced; remove it or name another")
    check_output_file(path, overwrite=False)


def lock(file: Path, *, wait: bool = False) -> HeldDirectory:
    """Lock the folder of a lock file; the system releases the lock when it is closed or the process ends.

    The lock file is created if it does not exist. Temporary files that killed writers left in the folder are removed.

    Raises:
        Taken: Another process holds the lock, and `wait` is not set.
        InputError: The file is not a lock file.
        RunError: The system refuses.
    """
    file = file if isinstance(file, InsidePath) else inside(file.parent) / file.name
    while True:
        with os_errors_as(RunError, f"cannot write to {file.parent}"), contextlib.ExitStack() as opened:
            folder = opened.enter_context(opened_folder(file.parent))
            handle = open_file(file, os.O_RDWR | os.O_CREAT, folder)
            opened.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
                raise Taken(file.parent, holder or "another process") from error
            if has_name(handle, file.name, folder):  # else it was replaced before it was locked
                _sign(file, handle)
                _remove_abandoned(folder)
                return HeldDirectory(file, folder, handle, opened.pop_all())


def holder_of(file: Path) -> str | None:
    """Return the process that took a lock last, alive or not; None without a lock file. Raises as `read_bounded`."""
    return read_bounded(file, _LARGEST_LOCK).decode(errors="replace").strip() if is_file(file) else None


def signature() -> str:
    """Return this process as it signs locks."""
    return f"{_HOLDER.decode()}{os.getpid()} on {platform.node()}"


def _sign(file: Path, handle: int) -> None:
    """Write this process as the holder into a lock file."""
    before = os.pread(handle, len(_HOLDER), 0).strip(b"\0")
    if not _HOLDER.startswith(before):  # an interrupted write leaves part of it
        raise InputError(f"{file} is not a lock file of this program; move it elsewhere")
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{signature()}\n".encode(), 0)
