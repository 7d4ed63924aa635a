"""What a run says while it goes on: the same classes are recorded in `events.jsonl`, shown and read back.

Imports no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Generic, TypeVar

from pydantic import Field

from gapssg.errors import InputError
from gapssg.files import read_bounded
from gapssg.safe_paths import inside
from gapssg.stored import Count, Counts, Number, Numbers, PositiveCount, Share, Stored, Text

EVENTS = "events.jsonl"
_MOST_BYTES = 256 * 2**20
_EpochNumber = Annotated[int, Field(ge=1, le=1_000_000)]


class Event(Stored):
    """What a run says at some time."""

    kind: ClassVar[str]
    """What a line of `events.jsonl` calls it."""

    def line(self) -> str:
        """Return a line of `events.jsonl`; what was not given is left out."""
        return json.dumps({"event": self.kind, **self.model_dump(mode="json", exclude_unset=True)}, allow_nan=False)


class Started(Event):
    """A run begins or continues."""

    kind = "start"

    message: Text
    """What is done."""


class Note(Event):
    """Something that is worth saying, but not recording."""

    kind = "note"

    message: Text
    """What it is."""


class Warned(Event):
    """A warning."""

    kind = "warning"

    epoch: Count
    """When; 0 is before the first epoch."""
    message: Text
    """What was wrong."""


class RolledBack(Event):
    """A rollback."""

    kind = "rollback"

    epoch: PositiveCount
    """The epoch that was made again."""
    part: Text = "training"
    """What diverged."""
    learning_rate: Number
    """With which it goes on."""


class Remaining(Event):
    """How far a run has come; not recorded."""

    kind = "time_left"

    epochs_done: Count
    """Whole epochs so far."""
    epochs: PositiveCount
    """How many there are to be."""
    seconds: float | None
    """How long it will still take, if that is known."""


class CheckpointWritten(Event):
    """The run can continue from here; not recorded."""

    kind = "checkpoint"

    directory: Path
    """Of the run."""


class EpochTiming(Stored):
    """How long an epoch took."""

    images_per_second: Number
    """Of training."""
    remaining: Number | None = None
    """Seconds that the run will still take, if that is known."""


class Epoch(Event):
    """The event of an epoch of any training."""

    kind = "epoch"
    activity: ClassVar[str]
    """What the epoch is of, in words."""
    command: ClassVar[str]
    """The command whose runs have such epochs."""

    epoch: _EpochNumber
    """How many are done."""
    epochs: _EpochNumber
    """How many there are to be."""
    top1: Share | None = None
    """Top-1 accuracy on real images."""
    loss: Number | None = None
    """Cross-entropy on real images, in nats."""
    learning_rate: Number | None = None
    """Of the last step."""
    timing: EpochTiming
    """How long it took."""


class PretrainingTiming(EpochTiming):
    """How long an epoch of `pretrain-teacher` took."""

    seconds: Number
    """Training and evaluation."""


class PretrainingEpoch(Epoch):
    """An epoch of `pretrain-teacher`."""

    activity = "training"
    command = "pretrain-teacher"

    train_loss: Number
    """Mean over the steps."""
    timing: PretrainingTiming
    """How long it took."""


class Health(Stored):
    """Health of the newest images of an epoch; what was not measured is None."""

    target_agreement: Number | None = None
    """Share of the images that the teacher takes for their target."""
    class_entropy: Number | None = None
    """Entropy of the teacher's mean class probabilities over log K."""
    answer_entropy: Number | None = None
    """Entropy of the shares of the teacher's answers over log K."""
    diversity: Number | None = None
    """Mean standard deviation within a class."""
    saturation: Number | None = None
    """Share of black and white pixel values."""
    teacher_counts: Counts | None = None
    """How often the teacher answers each class; None with more than 1,000 classes."""
    target_counts: Counts | None = None
    """How often each class is the target; None with more than 1,000 classes."""

    def measures(self) -> dict[str, float]:
        """Return the measures that are single numbers, by name."""
        return {name: value for name, value in self if isinstance(value, float)}


class DistillationTiming(EpochTiming):
    """How long an epoch of `distill` took."""

    synthesis: Number
    """Seconds of synthesis."""
    distillation: Number
    """Seconds of distillation."""


class DistillationEpoch(Epoch):
    """An epoch of `distill`."""

    activity = "distillation"
    command = "distill"

    # With a margin for the rounding of probabilities.
    reality_gap_before: float = Field(ge=0, le=1.001)
    """Reality gap on the newest images before the student trained on them."""
    reality_gap_after: float = Field(ge=0, le=1.001)
    """The same after it."""
    agreement_before: Share | None = None
    """Agreement with the teacher on the newest images before the student trained on them."""
    agreement_baseline: Share | None = None
    """The agreement that always giving the teacher's commonest answer would have on the same images."""
    balanced_accuracy: Share | None = None
    """Mean of the accuracies of the classes on real images."""
    lowest_recall: Share | None = None
    """Lowest accuracy of a class on real images."""
    distillation_loss: Number | None = None
    """Mean over the steps."""
    synthesis: Numbers = Field(default_factory=dict)
    """The terms of the synthesis loss in its last step."""
    health: Health = Health()
    """Health of the newest images."""
    pool_size: Count | None = None
    """Images in the sample pool."""
    timing: DistillationTiming
    """How long it took."""


class SurfaceTiming(Stored):
    """How long surfaces took."""

    seconds: float
    """All so far."""


class SurfaceMeasured(Event):
    """A surface of `landscape` is complete."""

    kind = "surface"

    label: Text
    """Whose landscape it is."""
    points: int
    """Points of its grid."""
    timing: SurfaceTiming
    """How long it took."""


class Ended(Event):
    """A run has come to its end."""

    kind = "end"


class PretrainingEnded(Ended):
    """The end of `pretrain-teacher`; its scores are those of `result.json`."""

    top1: Share | None
    best_top1: Share | None
    best_epoch: PositiveCount | None


class DistillationEnded(Ended):
    """The end of `distill`; its scores and sentences are those of `result.json`."""

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
    """How many were measured."""


class _AnyEvent(Stored):
    event: str


AnyEpoch = TypeVar("AnyEpoch", bound=Epoch)


@dataclass(frozen=True)
class Events(Generic[AnyEpoch]):
    """What is read of `events.jsonl`.

    Attributes:
        epochs: At least one, in order, up to the last of the run.
        warnings: In order.
        rollbacks: In order.
    """

    epochs: list[AnyEpoch]
    warnings: list[Warned]
    rollbacks: list[RolledBack]


def read_events(run: Path, kind: type[AnyEpoch]) -> Events[AnyEpoch]:
    """Read the events of a run, which may still go on.

    Args:
        run: Its directory.
        kind: What its epochs are.

    Raises:
        InputError: `events.jsonl` is missing, damaged, or of another command.
    """
    path = inside(run) / EVENTS
    events: Events[AnyEpoch] = Events([], [], [])
    epochs = events.epochs
    for number, line in enumerate(read_bounded(path, _MOST_BYTES).splitlines(), 1):
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
        raise InputError(f"{path} has no epoch of a {kind.activity}; name the directory of a `{kind.command}` run")
    return events


def read_finished(run: Path, kind: type[AnyEpoch]) -> Events[AnyEpoch]:
    """Read the events of a finished run.

    Raises:
        InputError: As `read_events`, or they end before the last epoch.
    """
    path = run / EVENTS
    events = read_events(run, kind)
    last = events.epochs[-1]  # a continued run may have become longer
    if last.epoch != last.epochs:
        raise InputError(f"{path} ends after epoch {last.epoch} of {last.epochs}; continue the run with --resume")
    if last.top1 is None and any(epoch.top1 is not None for epoch in events.epochs):
        raise InputError(f"{path} is damaged: the model was evaluated, but not after the last epoch")
    return events
