"""The checksum in an exported file: the SHA-256 of the file with zeros in its place, in JSON of the file.

It detects damage; it is not a signature. Imports no torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

CHECKSUM = "content_sha256"
"""Its key in the description of the file."""
BLANK = "0" * 64
"""What a file has there until its checksum is known."""
_PLACE = re.compile(rf'"{CHECKSUM}"\s{{0,9}}:\s{{0,9}}"([^"]{{0,99}})"'.encode())
_LONGEST_PLACE = 150  # bytes


def with_checksum(content: bytes) -> bytes:
    """Return a file with the right checksum in place of the text under its key; unchanged if there is no key."""
    place = _PLACE.search(content)
    if place is None:
        return content
    start, end = place.span(1)
    digest = hashlib.sha256(memoryview(content)[:start])  # no copy: a file may have gigabytes
    digest.update(BLANK.encode())
    digest.update(memoryview(content)[end:])
    return content[:start] + digest.hexdigest().encode() + content[end:]


def has_changed(blocks: Iterable[bytes]) -> bool:
    """Tell whether a file with a checksum, given in blocks, differs from the one that was written."""
    digest, window, written = hashlib.sha256(), b"", None
    for block in blocks:
        window += block
        if written is None and (place := _PLACE.search(window)):
            written = place[1]
            digest.update(window[: place.start(1)] + BLANK.encode())
            window = window[place.end(1) :]
        done = max(0, len(window) - _LONGEST_PLACE)  # the rest may hold the start of the place
        digest.update(window[:done])
        window = window[done:]
    digest.update(window)
    return written is not None and written != digest.hexdigest().encode()
