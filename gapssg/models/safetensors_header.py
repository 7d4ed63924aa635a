"""Reads the headers of untrusted safetensors files. Imports no torch."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from gapssg.files import LARGEST_FILE, read_blocks

_LENGTH_BYTES = 8
LARGEST_HEADER = 4 * 2**20  # bytes; 1,000 class names of 200 characters need a twentieth
_BLOCKS = 5  # megabytes, which hold the longest header and its length


def metadata_in(content: bytes) -> dict[str, str]:
    """Return the strings in the header of the content of a safetensors file, or of its first bytes.

    Raises `ValueError` if it has no header, or one that this program does not read.
    """
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    if content[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":
        raise ValueError("it does not start like one; convert a model of another framework, such as Keras, to ONNX")
    if length > LARGEST_HEADER:
        raise ValueError(f"its header has {length:,} bytes, more than {LARGEST_HEADER:,}")
    try:
        header = json.loads(content[_LENGTH_BYTES:][:length], object_pairs_hook=_without_duplicates)
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is not a map of strings")
    return {name: value for name, value in metadata.items() if isinstance(value, str)}


def read_metadata(path: Path) -> dict[str, str]:
    """Return the strings in the header of a safetensors file; empty if the file is of another kind.

    Raises `InputError` if there is no file or it cannot be read.
    """
    content = b"".join(islice(read_blocks(path, LARGEST_FILE), _BLOCKS))
    try:
        return metadata_in(content)
    except ValueError:
        return {}


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse duplicate names, of which other readers may take the other."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("duplicate tensor name in its header")
    return values
