"""Whose landscape is measured: model files, runs and their snapshots."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from gapssg.errors import InputError
from gapssg.files import entries_in, is_file
from gapssg.models.model_file import LoadedModel, load_model
from gapssg.runs.directory import final_weights
from gapssg.safe_paths import InsidePath, inside
from gapssg.settings.load import read_toml
from gapssg.text import shortest_ends
from gapssg.training.settings import DistillSettings

_ONLY_ONE_IN_A_RUN = ("student", "model")
_SNAPSHOT = re.compile(r"epoch-(\d+)\.safetensors")


@dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
        path: The directory.
        distillation: Its settings, if it is a run of `distill`.
        snapshots: Its snapshot files by epoch, the earliest first.
    """

    path: Path
    distillation: DistillSettings | None
    snapshots: dict[int, InsidePath]


@dataclass(frozen=True)
class Subject:
    """One set of weights around which the loss is measured.

    Attributes:
        name: What it is called in figures: of a run, the directory's name.
        epoch: Of a snapshot, the epoch that it was taken after; None for last weights.
        model: The model file.
        run: The run that it belongs to, if a run was named.
    """

    name: str
    epoch: int | None
    model: LoadedModel
    run: Run | None

    @property
    def label(self) -> str:
        """The name and, of a snapshot, the epoch."""
        return self.name if self.epoch is None else f"{self.name}, epoch {self.epoch}"


def read_subjects(
    paths: tuple[Path, ...], snapshots: bool, epochs: tuple[int, ...] | None, factories: tuple[str, ...] = ()
) -> list[Subject]:
    """Read the models that `paths` name: files, or runs with their last weights.

    Args:
        paths: Model files and run directories.
        snapshots: Take each snapshot of the runs instead of their last weights.
        epochs: Of the snapshots, only those after these epochs.
        factories: Those that a model file may name.

    Raises:
        InputError: A path holds no model, or a run no snapshot that is asked for.
    """
    subjects = []
    for path, name in zip(paths, _names(paths), strict=True):
        if not path.is_dir():
            if snapshots:
                raise InputError(f"{path} is a file, which has no snapshots; name the directory of a run")
            subjects.append(Subject(name, None, load_model(path, factories), None))
            continue
        run = read_run(path)
        if snapshots:
            wanted = epochs or tuple(run.snapshots)
            missing = [str(epoch) for epoch in wanted if epoch not in run.snapshots]
            if missing or not wanted:
                have = f"it has those of epochs {', '.join(map(str, run.snapshots))}" if run.snapshots else _HOW
                raise InputError(f"{path} has no snapshot{' of epoch ' if missing else ''}{', '.join(missing)}; {have}")
            subjects += [
                Subject(name, epoch, load_model(run.snapshots[epoch], factories), run) for epoch in sorted(set(wanted))
            ]
        else:
            subjects.append(Subject(name, None, load_model(final_weights(path), factories), run))
    return subjects


_HOW = "train it with --snapshot-every 1"


def read_run(path: Path) -> Run:
    """Look at a run directory.

    Raises:
        InputError: It cannot be read.
    """
    folder = inside(path) / "snapshots"
    found = {int(match[1]): folder / name for name in entries_in(folder) if (match := _SNAPSHOT.fullmatch(name))}
    return Run(path, _distillation(inside(path) / "settings.toml"), dict(sorted(found.items())))


def _distillation(file: InsidePath) -> DistillSettings | None:
    if not is_file(file):
        return None  # a folder that merely holds a model
    try:
        return DistillSettings.model_validate(read_toml(file))
    except (InputError, ValidationError):
        return None  # a run of another command


def _names(paths: tuple[Path, ...]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart."""
    wholes = []
    for path in paths:
        whole = path.resolve()
        if whole.suffix == ".safetensors":
            whole = whole.with_suffix("")
            if whole.name in _ONLY_ONE_IN_A_RUN:
                whole = whole.parent
        wholes.append(whole)
    return shortest_ends(wholes)
