"""Reads untrusted safetensors files; no code in them is run.

The library refuses headers that contradict themselves or the length of the file. This module also refuses large
headers, duplicate names, impossible shapes, and booleans above 1. Reading takes twice the memory of the file, and up to
30 times that of its header.
"""

from __future__ import annotations

import hashlib
import math
import shlex
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, deserialize
from torch import Tensor

from gapssg.errors import InputError, shortened
from gapssg.files import LARGEST_FILE, read_bounded
from gapssg.models.safetensors_header import metadata_in

_MOST_DIMENSIONS = 8
_LARGEST_DIMENSION = 2**40
# The first bytes of weights that PyTorch itself writes, now and before 1.6; as lengths of a header, both are refused.
PYTORCH_FILES = (b"PK\x03\x04", b"\x80\x02\x8a\n")
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
    """The content of a safetensors file."""

    tensors: dict[str, Tensor]
    """By name, on the CPU."""
    metadata: dict[str, str]
    """The strings in its header."""
    sha256: str
    """SHA-256 of the whole file, in hexadecimal."""


def read_safetensors(path: Path, remedy: str | None = None) -> SafetensorsFile:
    """Read a safetensors file.

    Raises `InputError` if it is missing, empty, damaged or too large, or a PyTorch checkpoint, for which `remedy` says
    what to do; without it, how to import a model.
    """
    try:
        content = read_bounded(path, LARGEST_FILE)
        if not content:
            raise InputError(f"{path} is empty; copy or save it again")
        if content.startswith(PYTORCH_FILES):
            imported = f"gapssg import-teacher --weights {shlex.quote(str(path))} --model NAME ..."
            remedy = remedy or f"make a model file from that of a model: {imported}"
            raise InputError(f"{path} is a PyTorch checkpoint, not a safetensors file; {remedy}")
        metadata = metadata_in(content)
        tensors = {name: _tensor(name, **view) for name, view in deserialize(content)}  # type: ignore[no-untyped-call]
    except (ValueError, SafetensorError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {shortened(error, 200)}") from error
    except MemoryError as error:
        raise InputError(f"{path} does not fit into memory") from error
    return SafetensorsFile(tensors, metadata, hashlib.sha256(content).hexdigest())


def _tensor(name: str, dtype: str, shape: list[int], data: bytearray) -> Tensor:

    if dtype not in DTYPES:
        raise ValueError(f"the tensor {shortened(name)} has the unknown dtype {dtype}")
    # 0x10^12x10^12, for example, has strides that overflow.
    if len(shape) > _MOST_DIMENSIONS or math.prod(max(size, 1) for size in shape) > _LARGEST_DIMENSION:
        raise ValueError(f"the tensor {shortened(name)} has an impossible shape")
    if dtype == "BOOL" and max(data, default=0) > 1:
        raise ValueError(f"the tensor {shortened(name)} has booleans that are neither 0 nor 1")
    values = torch.frombuffer(data, dtype=DTYPES[dtype]) if data else torch.empty(0, dtype=DTYPES[dtype])
    return values.view(shape)
