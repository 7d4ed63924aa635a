"""What a run left, for comparison with another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def files_of(run: Path) -> dict[str, Any]:
    """Return everything that a run leaves by name, without what may differ between equal runs.

    Left out are `timing`, the names of files, the lock and the checkpoint.
    """
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if name == "events.jsonl":
            found[name] = [without_timing(event) for event in events(run)]
        elif name == "result.json":
            found[name] = without_timing(json.loads(path.read_text()))
        elif path.is_file() and not name.startswith(("checkpoint/", ".lock")):
            found[name] = path.read_bytes()
    return found


def events(run: Path) -> list[dict[str, Any]]:
    """Return the lines of `events.jsonl`."""
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def without_timing(value: Any) -> Any:
    """Return a JSON object without what stands under `timing` and `file`, at any depth."""
    if isinstance(value, dict):
        return {key: without_timing(inner) for key, inner in value.items() if key not in ("timing", "file")}
    return value
