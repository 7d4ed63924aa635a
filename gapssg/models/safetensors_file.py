"""Safetensors files of strangers: read once, checked before anything is allocated, nothing in them is run."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from gapssg.errors import InputError


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
        InputError: The file is missing or damaged.
    """
    try:
        if not path.is_file():
            seen_from = "" if path.is_absolute() else f" (seen from {Path.cwd()})"
            raise InputError(f"{path} is not a file" if path.exists() else f"{path} does not exist{seen_from}")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        tensors = load(content)
        (length,) = struct.unpack("<Q", content[:8])
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError, struct.error, RecursionError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error
    return SafetensorsFile(tensors, metadata, hashlib.sha256(content).hexdigest())
