"""Untrusted safetensors files: nothing in them is run.

The library refuses headers that contradict themselves or the length of the file. This module refuses what the library
lets pass: large headers, duplicate names, impossible shapes, and booleans above 1. Reading costs twice the memory of
the file, and up to some 30 times the bytes of its header.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, deserialize
from torch import Tensor

from gapssg.errors import InputError, shortened
from gapssg.files import LARGEST_FILE, read_bounded

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
        tensors: By name, on the CPU.
        metadata: The texts in its header.
        sha256: Of the whole file, in hexadecimal.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    sha256: str


def read_safetensors(path: Path) -> SafetensorsFile:
    """Read any safetensors file.

    Raises:
        InputError: The file is missing or damaged, or larger than such files are.
    """
    try:
        content = read_bounded(path, LARGEST_FILE)
        length = int.from_bytes(content[:_LENGTH_BYTES], "little")
        if length > LARGEST_HEADER:
            _refuse_pickle(path, content)
            raise ValueError(f"its header has {length:,} bytes, more than {LARGEST_HEADER:,}")
        tensors = {name: _tensor(name, **view) for name, view in deserialize(content)}  # type: ignore[no-untyped-call]
        header = json.loads(content[_LENGTH_BYTES : _LENGTH_BYTES + length], object_pairs_hook=_without_repetition)
        metadata = header.get("__metadata__", {})
        if metadata is None:
            raise ValueError("its metadata are not texts")
    except (ValueError, SafetensorError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {shortened(error, 200)}") from error
    except MemoryError as error:
        raise InputError(f"{path} is larger than the memory that there is") from error
    return SafetensorsFile(tensors, metadata, hashlib.sha256(content).hexdigest())


def _refuse_pickle(path: Path, content: bytes) -> None:
    """Say how weights that PyTorch itself wrote become a file that can be read.

    Raises:
        InputError: The file begins as such files do.
    """
    if content.startswith(_PYTORCH_FILES):
        raise InputError(
            f"{path} is a PyTorch pickle, which can run code when it is read; "
            "where you trust it, convert its state dict:\n"
            "    import torch; from safetensors.torch import save_file\n"
            f"    weights = torch.load({str(path)!r}, map_location='cpu', weights_only=True)\n"
            "    save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, "
            f"{str(path.with_suffix('.safetensors'))!r})"
        )


def _tensor(name: str, dtype: str, shape: list[int], data: bytearray) -> Tensor:
    """Return a tensor of the bytes that the library found for it.

    Raises:
        ValueError: Its shape or dtype cannot be used, or its booleans are not 0 and 1.
    """
    if dtype not in DTYPES:
        raise ValueError(f"the tensor {shortened(name)} has the unknown dtype {dtype}")
    # Such as 0x10^12x10^12, whose strides overflow.
    if len(shape) > _MOST_DIMENSIONS or math.prod(max(size, 1) for size in shape) > _LARGEST_DIMENSION:
        raise ValueError(f"the tensor {shortened(name)} has no possible shape")
    if dtype == "BOOL" and max(data, default=0) > 1:
        raise ValueError(f"the tensor {shortened(name)} holds other bytes than 0 and 1 for its truth values")
    values = torch.frombuffer(data, dtype=DTYPES[dtype]) if data else torch.empty(0, dtype=DTYPES[dtype])
    return values.view(shape)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that stands twice, of which other readers may take the other."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name stands twice in its header")
    return values
