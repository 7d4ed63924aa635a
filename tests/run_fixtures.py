"""Settings of small runs, and what a run left, for comparison with another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gapssg import DistillSettings
from gapssg.runs.directory import RunDirectory, SilentDisplay
from gapssg.runs.events import DistillationEpoch
from gapssg.training.distillation import Distillation

TINY: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 8,
    "student": {"name": "wrn10_half"},
    "method": {
        "name": "gapssg",
        "synthesis_batch_size": 16,
        "generator_steps": 3,
        "generator_width": 8,
        "latent_size": 16,
    },
    "optimizer": {"learning_rate": 0.2, "weight_decay": 1e-4, "nesterov": False, "schedule": "cosine"},
    "runtime": {"device": "cpu", "precision": "fp32"},
}


def settings(teacher: Path, **changes: Any) -> DistillSettings:
    """Return the settings of a small distillation, with changes."""
    return DistillSettings.model_validate({"teacher": teacher, **TINY, **changes})


def run_epoch(distillation: Distillation, run: Path) -> DistillationEpoch:
    """Make one epoch without the loop."""
    directory = RunDirectory(run, distillation.settings, SilentDisplay())
    for phase in distillation.phases(directory):
        for _ in phase.work:
            pass
    return distillation.end_epoch(directory, None)


def files_of(run: Path) -> dict[str, Any]:
    """Return everything that a run leaves by name, without what may differ between equal runs.

    Left out are `timing`, the names of files, the lock and the checkpoint.
    """
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if name == "events.jsonl":
            found[name] = [json.dumps(without_timing(event)) for event in events(run)]  # the order of keys, too
        elif name == "result.json":
            found[name] = json.dumps(without_timing(json.loads(path.read_text())))
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


def change(file: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit a JSON file in place."""
    values = json.loads(file.read_text())
    edit(values)
    file.write_text(json.dumps(values))
