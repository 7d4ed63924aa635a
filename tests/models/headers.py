"""Model files whose descriptions do not match their weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], str]) -> None:
    """Change the description in a model file's header, keeping the weights."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    description = json.loads(header["__metadata__"]["gapssg"])
    header["__metadata__"]["gapssg"] = change(description)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
