"""The model files that paths stand for: a run directory for its final weights, a reference for a file of the Hub."""

from __future__ import annotations

from pathlib import Path

from gapssg.errors import InputError
from gapssg.files import is_file, is_folder
from gapssg.models.hub import local_file
from gapssg.safe_paths import inside

FINAL_WEIGHTS = ("student.safetensors", "model.safetensors")
"""The final weights of a run, in its directory."""


def model_file(path: Path, *, fetch: bool = True) -> Path:
    """Return the model file that a path stands for: of a run directory its final weights, else that of `local_file`.

    Raises as `local_file`, and `InputError` if a directory has no model file.
    """
    return final_weights(path) if is_folder(path) else local_file(path, fetch=fetch)


def final_weights(path: Path) -> Path:
    """Return the model file of a run's final weights; raise `InputError` if there is none."""
    for name in FINAL_WEIGHTS:
        if is_file(inside(path) / name):
            return inside(path) / name
    raise InputError(f"{path} holds neither {' nor '.join(FINAL_WEIGHTS)}; name a finished run, or a model file")
