"""Finished runs for the report, read from untrusted directories. Imports no torch."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import tomli_w

from gapssg.errors import InputError
from gapssg.files import LARGEST_FILE, canonical_json, is_file, sha256_of_file
from gapssg.models.reference import MODULE
from gapssg.runs.events import DistillationEpoch, Events, PretrainingEpoch, read_finished
from gapssg.runs.results.common import RESULT, RunResult
from gapssg.runs.results.distillation import DistillResult, load_training_result
from gapssg.runs.results.training import PretrainResult
from gapssg.safe_paths import InsidePath, inside
from gapssg.settings.load import SETTINGS, read_toml
from gapssg.text import printable_toml, shortest_ends


@dataclass(frozen=True)
class TrainingRun:
    """A finished run of `distill` or `pretrain-teacher`."""

    name: str
    """The shortest end of its path that distinguishes it from the others."""
    path: InsidePath
    """Its directory."""
    result: DistillResult | PretrainResult
    """Its result."""
    events: Events[DistillationEpoch] | Events[PretrainingEpoch]
    """Its epochs, warnings and rollbacks."""
    settings: Mapping[str, object]
    """Its settings, nested."""
    model_sha256: str | None
    """SHA-256 of the file of the last weights; None if it is missing."""

    @property
    def model_file(self) -> InsidePath:
        """The file of the last weights."""
        return self.path / self.result.model_file

    @property
    def best_file(self) -> InsidePath:
        """The file of the weights selected by evaluation; it may not exist."""
        return self.path / "best.safetensors"

    @property
    def toml(self) -> str:
        """The settings as TOML."""
        return printable_toml(tomli_w.dumps(self.settings))

    @property
    def settings_are_its_own(self) -> bool:
        """Whether `settings.toml` is unchanged since the run."""
        return hashlib.sha256(canonical_json(self.settings).encode()).hexdigest() == self.result.settings_sha256

    @property
    def extended_after(self) -> list[int]:
        """Epochs after which the run got more epochs than it had planned, as `--resume --epochs` gives it."""
        epochs = self.events.epochs
        return [before.epoch for before, after in pairwise(epochs) if after.epochs > before.epochs]

    @property
    def is_of_modules(self) -> bool:
        """Whether its teacher or student was a module of a Python program, which no command has."""
        student = self.settings.get("student")
        return MODULE in (self.settings.get("teacher"), student.get("name") if isinstance(student, dict) else None)

    @property
    def command_line(self) -> str:
        """The command that repeats the run; its weights differ if the run was extended."""
        again = self.path.with_name(f"{self.path.name}-again")
        words = ["gapssg", self.result.command, "--config", str(self.path / SETTINGS), "--output", str(again)]
        return shlex.join(words)


def command_of(path: Path) -> str:
    """Return the command of a finished run; raise `InputError` if it is not finished, or no run."""
    if path.is_dir() and not is_file(inside(path) / RESULT):
        raise InputError(f"{path} holds no finished run; name the directory of one, or finish it with --resume")
    return RunResult.load(path).command


def read_training_run(path: Path, name: str) -> TrainingRun:
    """Read a run of `distill` or `pretrain-teacher`; raise `InputError` if it is not finished, damaged, or another."""
    command_of(path)
    result = load_training_result(path)
    events: Events[DistillationEpoch] | Events[PretrainingEpoch]
    if isinstance(result, DistillResult):
        events = read_finished(path, DistillationEpoch)
    else:
        events = read_finished(path, PretrainingEpoch)
    path = inside(path)
    settings = read_toml(path / SETTINGS)
    try:
        canonical_json(settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path / 'settings.toml'} is damaged: {error}") from error
    file = path / result.model_file
    sha256 = sha256_of_file(file, LARGEST_FILE) if is_file(file) else None
    if sha256 is not None:
        result.model.check_is(file, sha256)
    return TrainingRun(name, path, result, events, settings, sha256)


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return names of runs that distinguish them; raise `InputError` if a run is given twice."""
    wholes = [path.resolve() for path in paths]
    for whole, path in zip(wholes, paths, strict=True):
        if wholes.count(whole) > 1:
            raise InputError(f"{path} is given twice; name each run once")
    return shortest_ends(wholes)
