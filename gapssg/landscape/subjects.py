"""The subjects of a landscape: model files, runs and their snapshots."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gapssg.errors import InputError
from gapssg.files import numbered_files
from gapssg.models.model_file import LoadedModel, load_model
from gapssg.runs.events import DistillationEpoch, PretrainingEpoch, read_events
from gapssg.safe_paths import InsidePath, inside
from gapssg.text import shortest_ends
from gapssg.training.settings import DistillSettings, distillation_of

_ONLY_ONE_IN_A_RUN = ("student", "model")
_RUN_OF_A_TABLE = re.compile(r"seed-[0-9]+-[0-9a-f]+")
_SNAPSHOT = re.compile(r"epoch-(\d+)\.safetensors")


@dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
        path: The directory.
        distillation: Its settings, if it is a `distill` run.
        snapshots: Its snapshot files by epoch, in ascending order.
    """

    path: Path
    distillation: DistillSettings | None
    snapshots: dict[int, InsidePath]


@dataclass(frozen=True)
class Subject:
    """Weights around which the loss is measured.

    Attributes:
        name: Its name in figures; of a run, that of the directory.
        epoch: The epoch of a snapshot; None for final weights.
        model: The model file.
        run: Its run, if a run was named.
    """

    name: str
    epoch: int | None
    model: LoadedModel
    run: Run | None

    @property
    def label(self) -> str:
        """The name and, for a snapshot, the epoch."""
        return self.name if self.epoch is None else f"{self.name}, epoch {self.epoch}"


def read_subjects(
    paths: tuple[Path, ...], snapshots: bool, epochs: tuple[int, ...] | None, factories: tuple[str, ...] = ()
) -> list[Subject]:
    """Read the models that `paths` name.

    Args:
        paths: Model files, and run directories for their final weights.
        snapshots: Read each snapshot of the runs instead of their final weights.
        epochs: Only snapshots of these epochs.
        factories: Factories that a model file may name.

    Raises:
        InputError: A path has no model, or a run lacks a requested snapshot.
    """
    subjects = []
    for path, name in zip(paths, _names(paths), strict=True):
        if not path.is_dir():
            if snapshots:
                raise InputError(f"{path} is a file without snapshots; name the directory of a run")
            subjects.append(Subject(name, None, load_model(path, factories), None))
            continue
        run = _read_run(path)
        if snapshots:
            wanted = epochs or tuple(run.snapshots)
            missing = [str(epoch) for epoch in wanted if epoch not in run.snapshots]
            if missing or not wanted:
                have = (
                    f"it has those of epochs {', '.join(map(str, run.snapshots))}"
                    if run.snapshots
                    else "train it with --snapshot-every 1"
                )
                raise InputError(f"{path} has no snapshot{' of epoch ' if missing else ''}{', '.join(missing)}; {have}")
            subjects += [
                Subject(name, epoch, load_model(run.snapshots[epoch], factories), run) for epoch in sorted(set(wanted))
            ]
        else:
            subjects.append(Subject(name, None, load_model(path, factories), run))
    return subjects


def accuracy_by_epoch(run: Run) -> dict[int, float]:
    """Return the student's or model's accuracy in [0, 1] by epoch, empty if the run did not record it."""
    kind = PretrainingEpoch if run.distillation is None else DistillationEpoch
    try:
        return {event.epoch: event.top1 for event in read_events(run.path, kind).epochs if event.top1 is not None}
    except InputError:
        return {}


def _read_run(path: Path) -> Run:
    return Run(path, distillation_of(path), numbered_files(inside(path) / "snapshots", _SNAPSHOT))


def _names(paths: tuple[Path, ...]) -> list[str]:
    """Return the shortest distinct ends of the paths; of the runs of a table, the methods, if they are distinct."""
    methods = [path.resolve().parent.name for path in paths if _RUN_OF_A_TABLE.fullmatch(path.resolve().name)]
    if len(set(methods)) == len(paths):
        return methods
    named = []
    for path in paths:
        path = path.resolve()
        if path.suffix == ".safetensors":
            path = path.parent if path.stem in _ONLY_ONE_IN_A_RUN else path.with_suffix("")
        named.append(path)
    return shortest_ends(named)
