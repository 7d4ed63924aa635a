"""Finished runs as they are reported on: read from their directories, which may be strangers'. Imports no torch."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tomli_w
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from gapssg.engine.record import Stored
from gapssg.errors import InputError
from gapssg.files import canonical_json, sha256_of_file
from gapssg.runs.events import DistillationEpoch, Events, PretrainingEpoch, read_finished
from gapssg.settings.load import read_toml
from gapssg.stored import MOST_COUNTED_CLASSES, Number, Share, Text
from gapssg.text import printable_toml, shortest_ends

LARGEST_MODEL = 4 * 2**30

Versions = Annotated[dict[Text, Text], Field(max_length=50)]


class Sizes(Stored):
    """How large a model is."""

    architecture: Text
    """Its name."""
    parameters: PositiveInt
    """Number of weights."""
    macs: NonNegativeInt
    """Multiply-adds of one image."""


class Trained(Sizes):
    """A model that a run made."""

    top1: Share | None
    """Top-1 accuracy on real images after the last epoch."""
    top5: Share | None
    """Top-5 accuracy."""
    loss: Number | None
    """Cross-entropy, in nats."""
    best_top1: Share | None
    """The highest top-1 accuracy of all epochs, chosen by these images."""
    best_epoch: PositiveInt | None
    """The epoch that had it."""
    balanced_accuracy: Share | None = None
    """Mean of the accuracies of the classes after the last epoch."""
    lowest_recall: Share | None = None
    """Lowest accuracy of a class after the last epoch."""
    lowest_class: Text | None = None
    """The class that has it."""


class Student(Trained):
    """A student."""

    agreement: Share | None
    """With the teacher, on the last synthesised images before the student trained on them."""
    agreement_baseline: Share | None = None
    """What always giving the teacher's commonest answer would have reached on them."""


class Teacher(Sizes):
    """The teacher of a distillation."""

    file: Text
    """Where it was."""
    sha256: Text
    """Of the file."""
    top1: Share | None
    """Top-1 accuracy on real images."""


class _Result(Stored):
    """What the results of the training commands have in common."""

    model_file: ClassVar[str]
    """The file of the last weights in the run's directory."""
    noun: ClassVar[str]
    """What a run makes."""

    data: Text | None
    """The real images that it was evaluated on, or trained and evaluated."""
    epochs: PositiveInt
    """How many there were."""
    timing: Annotated[dict[Text, NonNegativeFloat], Field(max_length=50)]
    """Seconds of each part."""
    device: Text
    """What it was computed on."""
    precision: Text
    """fp32 or bf16."""
    compiled: bool
    """Whether the steps were compiled."""
    seed: NonNegativeInt
    """Of every random stream."""
    versions: Versions
    """Versions of this program and what it is built on."""
    settings_sha256: Text
    """SHA-256 of the settings' canonical JSON."""


class DistillationResult(_Result):
    """`result.json` of `distill`."""

    model_file = "student.safetensors"
    noun = "student"

    command: Literal["distill"]
    """The command."""
    method: Text
    """The data-free method that made the images."""
    pool: Text | None = None
    """The run whose images were used again."""
    teacher: Teacher
    """The teacher."""
    student: Student
    """The student."""
    images_synthesized: NonNegativeInt
    """How many images were made."""
    distillation_steps: NonNegativeInt
    """How many steps the student took."""
    failures: Annotated[tuple[Text, ...], Field(max_length=20)] = ()
    """Why the student is not usable; empty where nothing speaks against it."""
    warnings: Annotated[tuple[Text, ...], Field(max_length=20)] = ()
    """What synthetic images say against a student that real images show to be usable."""
    missing_classes: Annotated[tuple[Text, ...], Field(max_length=MOST_COUNTED_CLASSES)] = ()
    """The classes that the teacher hardly ever sees in the synthetic images."""

    @property
    def model(self) -> Student:
        """What the run made."""
        return self.student


class PretrainingResult(_Result):
    """`result.json` of `pretrain-teacher`."""

    model_file = "model.safetensors"
    noun = "model"

    command: Literal["pretrain-teacher"]
    """The command."""
    model: Trained
    """What the run made."""


class _Command(Stored):
    command: Text


@dataclass(frozen=True)
class TrainingRun:
    """A finished run of `distill` or `pretrain-teacher`.

    Attributes:
        name: The shortest end of its path that tells it from the others.
        path: Its directory.
        result: What it reached.
        events: What it recorded.
        settings: Of the run, nested.
        model_sha256: Of its last weights' file; None if that is gone.
    """

    name: str
    path: Path
    result: DistillationResult | PretrainingResult
    events: Events[DistillationEpoch] | Events[PretrainingEpoch]
    settings: dict[str, Any]
    model_sha256: str | None

    @property
    def model_file(self) -> Path:
        """The file of the last weights."""
        return self.path / self.result.model_file

    @property
    def best_file(self) -> Path:
        """The file of the weights that the evaluation chose, if there is one."""
        return self.path / "best.safetensors"

    @property
    def toml(self) -> str:
        """The settings as TOML."""
        return printable_toml(tomli_w.dumps(self.settings))

    @property
    def settings_are_its_own(self) -> bool:
        """Whether `settings.toml` is still what the result was made with."""
        return hashlib.sha256(canonical_json(self.settings).encode()).hexdigest() == self.result.settings_sha256

    @property
    def command_line(self) -> str:
        """The command that runs it again."""
        again = self.path.with_name(f"{self.path.name}-again")
        words = ["gapssg", self.result.command, "--config", str(self.path / "settings.toml"), "--output", str(again)]
        return shlex.join(words)


def command_of(path: Path) -> str:
    """Return the command that a finished run is of.

    Raises:
        InputError: It is not finished, or no run.
    """
    if path.is_dir() and not (path / "result.json").exists():
        raise InputError(f"{path} holds no finished run; name the directory of one, or finish it with --resume")
    return _Command.read_result(path).command


def read_training_run(path: Path, name: str) -> TrainingRun:
    """Read a run of `distill` or `pretrain-teacher`.

    Raises:
        InputError: It is not finished, its files are damaged, or it is of another command.
    """
    result: DistillationResult | PretrainingResult
    events: Events[DistillationEpoch] | Events[PretrainingEpoch]
    command = command_of(path)
    if command == "distill":
        result, events = DistillationResult.read_result(path), read_finished(path, DistillationEpoch)
    elif command == "pretrain-teacher":
        result, events = PretrainingResult.read_result(path), read_finished(path, PretrainingEpoch)
    else:
        raise InputError(f"{path} is no run of distill or pretrain-teacher; name one that is")
    settings = read_toml(path / "settings.toml")
    try:
        canonical_json(settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path / 'settings.toml'} is damaged: it holds what no setting is ({error})") from error
    file = path / result.model_file
    return TrainingRun(
        name, path, result, events, settings, sha256_of_file(file, LARGEST_MODEL) if file.is_file() else None
    )


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return what runs are called beside each other.

    Raises:
        InputError: One is given twice.
    """
    wholes = [path.resolve() for path in paths]
    for whole, path in zip(wholes, paths, strict=True):
        if wholes.count(whole) > 1:
            raise InputError(f"{path} is given twice; name each run once")
    return shortest_ends(wholes)
