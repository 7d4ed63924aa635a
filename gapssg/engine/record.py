"""What a run recorded, read back from its directory, which may be a stranger's. Imports no torch."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from gapssg.errors import GapssgError, InputError, shortened
from gapssg.files import entries_in, inside, read_bounded

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST_EVENTS = 256 * 2**20  # bytes
_MOST_RESULT = 16 * 2**20
_MOST_EPOCHS = 1_000_000
_LARGEST_PICTURE = 64 * 2**20
_MOST_PIXELS = 18_000_000  # a grid of 64 images of 512 x 512 with labels
_GRID = re.compile(r"epoch-(\d{1,7})\.png")

Text = Annotated[str, Field(max_length=5000)]  # a path may have 4,096
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(ge=-1e30, le=1e30)]  # differences of two are finite, too
Numbers = Annotated[dict[Annotated[str, Field(max_length=100)], Number], Field(max_length=50)]
MOST_COUNTED_CLASSES = 1000
Counts = Annotated[list[NonNegativeInt], Field(max_length=MOST_COUNTED_CLASSES)]


class Stored(BaseModel):
    """What is read of a file that may be a stranger's; what else it holds is of no concern."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, frozen=True)

    @classmethod
    def read(cls, text: bytes, place: str) -> Self:
        """Read JSON.

        Args:
            text: The JSON.
            place: Where it stands, for messages.

        Raises:
            InputError: It is damaged.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"]))
            reason = f"{field}: {first['msg']}" if field else first["msg"]
            raise InputError(f"{place} is damaged: {shortened(reason)}") from error

    @classmethod
    def read_result(cls, run: Path) -> Self:
        """Read a run's `result.json`.

        Raises:
            InputError: It is missing, as long as the run is not finished, or damaged.
        """
        file = inside(run) / "result.json"
        return cls.read(read_bounded(file, _MOST_RESULT), str(file))


class Epoch(Stored):
    """The event of an epoch of any training."""

    activity: ClassVar[str]
    """What the epoch is of, in words."""
    command: ClassVar[str]
    """The command whose runs have such epochs."""

    epoch: PositiveInt = Field(le=_MOST_EPOCHS)
    """How many are done."""
    epochs: PositiveInt = Field(le=_MOST_EPOCHS)
    """How many there are to be."""
    top1: Share | None = None
    """Top-1 accuracy on real images."""
    loss: Number | None = None
    """Cross-entropy on real images, in nats."""
    learning_rate: Number | None = None
    """Of the last step."""
    timing: Numbers = {}
    """Seconds of each part, and images a second."""


class PretrainingEpoch(Epoch):
    """An epoch of `pretrain-teacher`."""

    activity = "training"
    command = "pretrain-teacher"

    train_loss: Number
    """Mean over the steps."""


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
    synthesis: Numbers = {}
    """The terms of the synthesis loss in its last step."""
    health: Health = Health()
    """Health of the newest images."""
    pool_size: NonNegativeInt | None = None
    """Images in the sample pool."""


class Warned(Stored):
    """A warning."""

    epoch: NonNegativeInt
    """When; 0 is before the first epoch."""
    message: Text
    """What was wrong."""


class RolledBack(Stored):
    """A rollback."""

    epoch: PositiveInt
    """The epoch that was made again."""
    part: Text = "training"
    """What diverged."""


class _Event(Stored):
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
    path = inside(run) / "events.jsonl"
    events: Events[AnyEpoch] = Events([], [], [])
    epochs = events.epochs
    for number, line in enumerate(read_bounded(path, _MOST_EVENTS).splitlines(), 1):
        place = f"line {number} of {path}"
        name = _Event.read(line, place).event
        if name == "warning":
            events.warnings.append(Warned.read(line, place))
        elif name == "rollback":
            events.rollbacks.append(RolledBack.read(line, place))
        elif name == "epoch":
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
    path = run / "events.jsonl"
    events = read_events(run, kind)
    last = events.epochs[-1]  # a continued run may have become longer
    if last.epoch != last.epochs:
        raise InputError(f"{path} ends after epoch {last.epoch} of {last.epochs}; continue the run with --resume")
    if last.top1 is None and any(epoch.top1 is not None for epoch in events.epochs):
        raise InputError(f"{path} is damaged: the model was evaluated, but not after the last epoch")
    return events


def sample_grids(run: Path) -> dict[int, Path]:
    """Return the files of a run's sample grids by epoch, the earliest first.

    Raises:
        InputError: The folder cannot be read.
    """
    folder = inside(run) / "samples"
    found = {int(match[1]): folder / name for name in entries_in(folder) if (match := _GRID.fullmatch(name))}
    return dict(sorted(found.items()))


def read_picture(path: Path) -> Image:
    """Read a PNG of a run, a sample grid or a figure, whole.

    Raises:
        InputError: It is missing, damaged, or larger than such pictures are.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(read_bounded(path, _LARGEST_PICTURE)), formats=("PNG",)) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise InputError(f"{path} has more than {_MOST_PIXELS:,} pixels, which no picture of a run has")
            picture.load()
            return picture
    except GapssgError:
        raise
    # The decoder raises nearly anything on a damaged file: OSError, SyntaxError, zlib.error, ...
    except Exception as error:
        raise InputError(f"{path} is not a PNG that can be read: {shortened(error)}") from error
