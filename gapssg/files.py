"""Durable, atomic file writing, bounded reading and canonical JSON: the only place that writes files."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from gapssg.errors import InputError, RunError, Taken, shortened

_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes
_BLOCK = 2**20  # bytes


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
    try:
        expanded = Path(text).expanduser() if text.startswith("~") else Path(path)
    except RuntimeError as error:
        raise InputError(
            f"{shown} names no home folder; for a name that begins with ~, write ./{shown[1:-1]}"
        ) from error
    if not expanded.is_absolute():
        check_current_folder()
    return expanded


def check_current_folder() -> None:
    """Check that the folder from which relative paths are seen is there.

    Raises:
        InputError: It was removed.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise InputError("the current folder is gone; change to another one and start again") from error


def open_regular(path: Path, most_bytes: int) -> BinaryIO:
    """Open a file that may be a stranger's to read it: no pipe is waited for, no device is read.

    Raises:
        InputError: It is missing, no file, larger than `most_bytes`, or cannot be read.
    """
    try:
        if not path.is_file():
            seen_from = "" if path.is_absolute() else f" (seen from {Path.cwd()})"
            raise InputError(f"{path} is not a file" if path.exists() else f"{path} does not exist{seen_from}")
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    size = os.fstat(file.fileno()).st_size
    if size > most_bytes:
        file.close()
        raise InputError(f"{path} has {size:,} bytes, more than the {most_bytes:,} that such a file may have")
    return file


def is_file(path: str | Path) -> bool:
    """Tell whether there is a file of this name; what cannot be one, such as a text of 300 characters, is none."""
    try:
        return user_path(path).is_file()
    except (InputError, OSError):
        return False


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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with _refusal_of(path):
            # Opened by hand, so that the system applies the umask; asking for it would change it for other threads.
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        yield temporary
        with _refusal_of(path):
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        # It is gone if all went well; a disk that refuses this too is not worth a second complaint.
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def _refusal_of(path: Path) -> Iterator[None]:
    """Say in one sentence that `path` cannot be written, if the system says so."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def sha256_of_files(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of files one after another, in hexadecimal.

    Raises:
        InputError: One cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def sha256_of_file(path: Path, most_bytes: int) -> str:
    """Return the SHA-256 of a file that may be a stranger's, in hexadecimal.

    Raises:
        InputError: As `open_regular`.
    """
    digest = hashlib.sha256()
    with open_regular(path, most_bytes) as file:
        try:
            while block := file.read(_BLOCK):
                digest.update(block)
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
    existing = folder.absolute()
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


def check_output_file(path: Path, overwrite: bool, *, makes_folder: bool = False) -> None:
    """Check that `path` can be written as a file that `--output` names, changing nothing.

    Args:
        path: The file.
        overwrite: Whether it may be there already.
        makes_folder: Whether its folder need not be there yet.

    Raises:
        InputError: It is a folder or there already, or its folder is missing or cannot be written to.
    """
    try:
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


def lock(file: Path, *, wait: bool = False) -> TextIO:
    """Take the lock that a file stands for; the system releases it when it is closed, or the process ends, however.

    Args:
        file: Made if it is not there.
        wait: Wait for the process that holds it.

    Raises:
        Taken: Another process holds it; said of the file's folder.
        OSError: The file cannot be made.
    """
    opened = file.open("a+", encoding="utf-8")
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        opened.seek(0)
        holder = opened.read(200).strip() or "another process"
        opened.close()
        raise Taken(file.parent, holder) from error
    opened.truncate(0)
    opened.write(f"process {os.getpid()} on {platform.node()}\n")
    opened.flush()
    return opened


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk.

    Raises:
        OSError: It refuses.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
