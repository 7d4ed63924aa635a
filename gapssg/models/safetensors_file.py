"""Safetensors files of strangers: all is checked before anything is allocated, and nothing in them is run.

Reading costs the memory of the file once, and up to some 30 times the bytes of its header, which are bounded.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from gapssg.errors import InputError, shortened
from gapssg.files import open_regular

LARGEST_FILE = 4 * 2**30
LARGEST_HEADER = 4 * 2**20  # bytes; that of 1,000 classes with names of 200 characters is a twentieth
_MOST_DIMENSIONS = 8
_LARGEST_DIMENSION = 2**40
_LENGTH_BYTES = 8
# How the weights that PyTorch itself writes begin, now and before 1.6. As the length of a header, neither is allowed.
_PYTORCH_FILES = (b"PK\x03\x04", b"\x80\x02\x8a\n")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class SafetensorsFile(NamedTuple):
    """What stands in a safetensors file.

    Attributes:
        tensors: By name, on the CPU; they share the memory of the file.
        metadata: The texts in its header.
        sha256: Of the whole file, in hexadecimal.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    sha256: str


class _Entry(NamedTuple):
    """Where a tensor stands among the bytes after the header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def read_safetensors(path: Path) -> SafetensorsFile:
    """Read any safetensors file.

    Raises:
        InputError: The file is missing or damaged, or larger than such files are.
    """
    with open_regular(path, LARGEST_FILE) as file:
        try:
            header, entries, metadata = _read_header(file)
            content = torch.empty(entries[-1].end if entries else 0, dtype=torch.uint8)
            if file.readinto(content.numpy().data) != len(content):  # type: ignore[attr-defined]
                raise ValueError("it ends within its tensors")
            tensors = {entry.name: _tensor(content, entry) for entry in entries}
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            _refuse_pickle(path, file)
            raise InputError(f"{path} is not a readable safetensors file: {error}") from error
        except (RuntimeError, MemoryError) as error:
            raise InputError(f"{path} is larger than the memory that there is") from error
    digest = hashlib.sha256(header)
    digest.update(content.numpy().data)
    return SafetensorsFile(tensors, metadata, digest.hexdigest())


def _refuse_pickle(path: Path, file: BinaryIO) -> None:
    """Say how weights that PyTorch itself wrote become a file that can be read.

    Raises:
        InputError: The file begins as such files do.
    """
    file.seek(0)
    if file.read(4) in _PYTORCH_FILES:
        raise InputError(
            f"{path} is a PyTorch pickle, which can run code when it is read; "
            "where you trust it, convert its state dict:\n"
            "    import torch; from safetensors.torch import save_file\n"
            f"    weights = torch.load({str(path)!r}, map_location='cpu', weights_only=True)\n"
            "    save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, "
            f"{str(path.with_suffix('.safetensors'))!r})"
        )


def _read_header(file: BinaryIO) -> tuple[bytes, list[_Entry], dict[str, str]]:
    """Return the bytes before the tensors, the tensors in the order of their bytes, and the texts.

    Raises:
        ValueError: The header contradicts itself or the length of the file.
    """
    file_bytes = file.seek(0, 2)
    file.seek(0)
    start = file.read(_LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    if len(start) < _LENGTH_BYTES or _LENGTH_BYTES + length > file_bytes:
        raise ValueError("it ends within its header")
    if length > LARGEST_HEADER:
        raise ValueError(f"its header has {length:,} bytes, more than {LARGEST_HEADER:,}")
    text = file.read(length)
    header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repetition)
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not texts")
    entries = sorted((_entry(name, value) for name, value in header.items()), key=lambda e: (e.start, e.end))
    end = 0
    for entry in entries:
        if entry.start != end:
            raise ValueError(f"there is a gap or an overlap before the tensor {shortened(entry.name)}")
        end = entry.end
    if _LENGTH_BYTES + length + end != file_bytes:
        raise ValueError(
            f"its tensors have {end:,} bytes, but {file_bytes - length - _LENGTH_BYTES:,} follow its header"
        )
    return start + text, entries, metadata


def _entry(name: str, value: Any) -> _Entry:
    """Check what the header says of one tensor."""
    what = f"the tensor {shortened(name)}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{what} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{what} has the unknown dtype {shortened(repr(dtype))}")
    if not _are_counts(shape) or len(shape) > _MOST_DIMENSIONS or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{what} has no possible shape or place")
    start, end = offsets
    if math.prod(max(size, 1) for size in shape) > _LARGEST_DIMENSION:
        raise ValueError(f"{what} has no possible shape")  # such as 0x10^12x10^12, whose strides overflow
    if end - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{what} has another length than its shape")
    return _Entry(name, DTYPES[dtype], tuple(shape), start, end)


def _are_counts(values: Any) -> bool:
    """Whether this is a list of integers from 0 to beyond what a file can hold."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= _LARGEST_DIMENSION for value in values)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that stands twice, of which other readers may take the other."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name stands twice in its header")
    return values


def _tensor(content: Tensor, entry: _Entry) -> Tensor:
    if entry.start == entry.end:
        return torch.empty(entry.shape, dtype=entry.dtype)
    piece = content[entry.start : entry.end]
    if entry.dtype == torch.bool and piece.max() > 1:
        raise ValueError(f"the tensor {shortened(entry.name)} holds other bytes than 0 and 1 for its truth values")
    if entry.start % entry.dtype.itemsize:
        piece = piece.clone()  # other writers than ours do not align tensors
    return piece.view(entry.dtype).view(entry.shape)
