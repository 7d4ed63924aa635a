"""The events of a run: the same classes are recorded in `events.jsonl`, shown and read back. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Generic, TypeVar

from pydantic import Field, field_serializer

from gapssg.errors import InputError
from gapssg.files import read_bounded
from gapssg.safe_paths import inside
from gapssg.stored import Count, Counts, Number, Numbers, PositiveCount, Share, Stored, Text

EVENTS = "events.jsonl"
LARGEST_EVENTS = 256 * 2**20  # bytes
_EpochNumber = Annotated[int, Field(ge=1, le=1_000_000)]


class Event(Stored):
    """Something that happened in a run."""

    kind: ClassVar[str]
    """Its name in `events.jsonl`."""

    def line(self) -> str:
        """Return its line of `events.jsonl`, without fields that were not set."""
        return json.dumps({"event": self.kind, **self.model_dump(mode="json", exclude_unset=True)}, allow_nan=False)


class Started(Event):
    """A run starts or resumes."""

    kind = "start"

    message: Text


class Prepared(Event):
    """All inputs of a run are checked, its directory is locked and otherwise unchanged; not recorded."""

    kind = "prepared"

    resumes: bool


class Note(Event):
    """Something to show, but not to record."""

    kind = "note"

    message: Text


class Warned(Event):
    """A warning."""

    kind = "warning"

    epoch: Count
    """0 is before the first epoch."""
    message: Text


class RolledBack(Event):
    """A rollback."""

    kind = "rollback"

    epoch: PositiveCount
    """The epoch that is repeated."""
    part: Text = "training"
    """What diverged."""
    learning_rate: Number
    """The reduced rate."""


class Remaining(Event):
    """Progress and remaining time of a run; not recorded."""

    kind = "time_left"

    epochs_done: Count
    """Completed epochs."""
    epochs: PositiveCount
    """Epochs of the whole run."""
    seconds: float | None
    """Remaining time, if known."""


class RunProgress(Stored):
    """Progress and remaining time of one of several runs."""

    label: Text
    """The run."""
    host: Text
    """Where it is made."""
    epochs_done: Count
    epochs: PositiveCount
    seconds: float | None
    """Remaining time, if known."""


class ProgressOfRuns(Event):
    """The runs that are being made at the same time; not recorded."""

    kind = "progress_of_runs"

    runs: tuple[RunProgress, ...]


class CheckpointWritten(Event):
    """A checkpoint is on the disk; not recorded."""

    kind = "checkpoint"

    directory: Path
    """Directory of the run."""


class EpochTiming(Stored):
    """Duration of an epoch."""

    images_per_second: Number
    """Training throughput."""
    remaining: Number | None = None
    """Remaining seconds of the run, if known."""


class Epoch(Event):
    """An epoch of any training."""

    kind = "epoch"
    activity: ClassVar[str]
    """The kind of training, in words."""
    command: ClassVar[str]
    """The command whose runs have such epochs."""

    epoch: _EpochNumber
    """Its number, counted from 1."""
    epochs: _EpochNumber
    """Epochs of the whole run."""
    top1: Share | None = None
    """Top-1 accuracy on real images."""
    loss: Number | None = None
    """Cross-entropy on real images, in nats."""
    learning_rate: Number | None = None
    """Learning rate of the last step."""
    timing: EpochTiming


class PretrainingTiming(EpochTiming):
    """Duration of an epoch of `pretrain-teacher`."""

    seconds: Number
    """Seconds of training and evaluation."""


class PretrainingEpoch(Epoch):
    """An epoch of `pretrain-teacher`."""

    activity = "training"
    command = "pretrain-teacher"

    train_loss: Number
    """Mean over the steps."""
    timing: PretrainingTiming


class Health(Stored):
    """Health of the newest images of an epoch; None if not measured."""

    target_agreement: Number | None = None
    """Share of the images that the teacher classifies as their target."""
    class_entropy: Number | None = None
    """Entropy of the teacher's mean class probabilities, divided by log K."""
    answer_entropy: Number | None = None
    """Entropy of the distribution of the teacher's predictions, divided by log K."""
    diversity: Number | None = None
    """Mean standard deviation within a class."""
    saturation: Number | None = None
    """Share of black and white pixel values."""
    teacher_counts: Counts | None = None
    """Number of images that the teacher assigns to each class; None with more than 1,000 classes."""
    target_counts: Counts | None = None
    """Number of images with each class as the target; None with more than 1,000 classes."""

    def measures(self) -> dict[str, float]:
        """Return the scalar measures by name."""
        return {name: value for name, value in self if isinstance(value, float)}


class DistillationTiming(EpochTiming):
    """Duration of an epoch of `distill`."""

    synthesis: Number
    """Seconds of synthesis."""
    distillation: Number
    """Seconds of distillation."""


class DistillationEpoch(Epoch):
    """An epoch of `distill`."""

    activity = "distillation"
    command = "distill"

    # The bound has a margin for the rounding of probabilities.
    reality_gap_before: float = Field(ge=0, le=1.001)
    """Reality gap on the newest images before the student trained on them."""
    reality_gap_after: float = Field(ge=0, le=1.001)
    """Reality gap on the same images afterwards."""
    inherent_gap_bound: Number | None = None
    """`E[|p_t - p_t*| |log(1/p_s)|]` on the same images afterwards, in nats; the student stands for the ideal T*."""
    derived_gap_bound: Number | None = None
    """`E[|p_t* - y| |log(1/p_s)|]` likewise; y are the targets of the images."""
    agreement_before: Share | None = None
    """Agreement with the teacher on the newest images before the student trained on them."""
    agreement_baseline: Share | None = None
    """Agreement of a constant prediction, the teacher's most frequent class, on the same images."""
    probe_disagreement: Share | None = None
    """With `until_settled` at the highest learning rate: the disagreement with the teacher on probe images."""
    balanced_accuracy: Share | None = None
    """Mean recall over the classes on real images."""
    lowest_recall: Share | None = None
    """Lowest recall of a class on real images."""
    distillation_loss: Number | None = None
    """Mean over the steps."""
    synthesis: Numbers = Field(default_factory=dict)
    """Terms of the synthesis loss in its last step, written in the order of their names, as a checkpoint has them."""
    health: Health = Health()
    pool_size: Count | None = None
    """Images in the sample pool, procedural ones included."""
    timing: DistillationTiming

    @field_serializer("synthesis")
    def _by_name(self, terms: Numbers) -> Numbers:
        return dict(sorted(terms.items()))


class SurfaceTiming(Stored):
    """Duration of the surfaces so far."""

    seconds: float


class SurfaceMeasured(Event):
    """A surface of `landscape` is complete."""

    kind = "surface"

    label: Text
    """The model."""
    points: int
    """Points of its grid."""
    timing: SurfaceTiming


class Ended(Event):
    """A run has finished."""

    kind = "end"


class PretrainingEnded(Ended):
    """The end of `pretrain-teacher`, with the scores of `result.json`."""

    top1: Share | None
    best_top1: Share | None
    best_epoch: PositiveCount | None


class DistillationEnded(Ended):
    """The end of `distill`, with the scores and messages of `result.json`."""

    top1: Share | None
    balanced_accuracy: Share | None
    best_top1: Share | None
    best_epoch: PositiveCount | None
    agreement: Share | None
    agreement_baseline: Share | None
    failures: tuple[Text, ...]
    warnings: tuple[Text, ...]


class LandscapeEnded(Ended):
    """The end of `landscape`."""

    surfaces: int
    """Number of measured surfaces."""


class _AnyEvent(Stored):
    event: str


AnyEpoch = TypeVar("AnyEpoch", bound=Epoch)


@dataclass(frozen=True)
class Events(Generic[AnyEpoch]):
    """The events of a run that are read back, in order; at least one epoch."""

    epochs: list[AnyEpoch]
    warnings: list[Warned]
    rollbacks: list[RolledBack]


def read_events(run: Path, kind: type[AnyEpoch]) -> Events[AnyEpoch]:
    """Read the events of a run, finished or not.

    Raises `InputError` if `events.jsonl` is missing, damaged, or of another command, whose epochs are not of this kind.
    """
    path = inside(run) / EVENTS
    events: Events[AnyEpoch] = Events([], [], [])
    epochs = events.epochs
    for number, line in enumerate(read_bounded(path, LARGEST_EVENTS).splitlines(), 1):
        place = f"line {number} of {path}"
        name = _AnyEvent.read(line, place).event
        if name == Warned.kind:
            events.warnings.append(Warned.read(line, place))
        elif name == RolledBack.kind:
            events.rollbacks.append(RolledBack.read(line, place))
        elif name == Epoch.kind:
            epoch = kind.read(line, place)
            if epochs and epoch.epoch <= epochs[-1].epoch:
                raise InputError(f"{place} is damaged: epoch {epoch.epoch} comes after epoch {epochs[-1].epoch}")
            epochs.append(epoch)
    if not epochs:
        raise InputError(f"{path} has no {kind.activity} epoch; name the directory of a `{kind.command}` run")
    return events


def read_finished(run: Path, kind: type[AnyEpoch]) -> Events[AnyEpoch]:
    """Read the events of a finished run; raises as `read_events`, and if they end before the last epoch."""
    path = run / EVENTS
    events = read_events(run, kind)
    last = events.epochs[-1]  # only the last is sure of `epochs`, which may increase when a run resumes
    if last.epoch != last.epochs:
        raise InputError(f"{path} ends after epoch {last.epoch} of {last.epochs}; finish the run with --resume")
    if last.top1 is None and any(epoch.top1 is not None for epoch in events.epochs):
        raise InputError(f"{path} is damaged: the model was evaluated, but not after the last epoch")
    return events
