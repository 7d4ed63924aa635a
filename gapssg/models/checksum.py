"""The checksum in an exported file: the SHA-256 of the file with zeros in its place, in JSON of the file.

It detects damage; it is not a signature. Imports no torch.
"""

from __future__ import annotations

import hashlib
import re

CHECKSUM = "content_sha256"
"""Its key in the description of the file."""
BLANK = "0" * 64
"""What a file has there until its checksum is known."""
_PLACE = re.compile(rf'"{CHECKSUM}"\s*:\s*"([^"]*)"'.encode())


def with_checksum(content: bytes) -> bytes:
    """Return a file with the right checksum in place of the text under its key; unchanged if there is no key."""
    place = _PLACE.search(content)
    if place is None:
        return content
    return content[: place.start(1)] + _digest(content, *place.span(1)).encode() + content[place.end(1) :]


def has_changed(content: bytes) -> bool:
    """Tell whether a file with a checksum differs from the one that was written."""
    place = _PLACE.search(content)
    return place is not None and place[1] != _digest(content, *place.span(1)).encode()


def _digest(content: bytes, start: int, end: int) -> str:
    view = memoryview(content)  # no copy: a file may have gigabytes
    digest = hashlib.sha256(view[:start])
    digest.update(BLANK.encode())
    digest.update(view[end:])
    return digest.hexdigest()
