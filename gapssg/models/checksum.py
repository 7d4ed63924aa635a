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
_KEY = f'"{CHECKSUM}":"'.encode()
_PLACE = re.compile(re.escape(_KEY) + b'[^"]*')


def with_checksum(content: bytes) -> bytes:
    """Return a file with the right checksum, which replaces the text under its key; unchanged if there is no key."""
    blank = _PLACE.sub(_KEY + BLANK.encode(), content)
    return _PLACE.sub(_KEY + hashlib.sha256(blank).hexdigest().encode(), blank)


def has_changed(content: bytes) -> bool:
    """Tell whether a file with a checksum differs from the one that was written."""
    return content != with_checksum(content)
