"""What the results of several commands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Generic, Never, Self, TypeVar

from pydantic import Field

from gapssg.errors import InputError
from gapssg.files import read_bounded
from gapssg.safe_paths import inside
from gapssg.stored import Count, Sentences, Share, Stored, Text

RESULT = "result.json"
_MOST_BYTES = 16 * 2**20

Failures = Sentences | None
"""Why the run of a model found it not usable; empty if it did not or there is no run, None if that is not known."""
Nothing = TypeVar("Nothing")
"""The value where a model was not evaluated: None, or Never if it always is."""


class ScoresOr(Stored, Generic[Nothing]):
    """The accuracies and the loss of a classifier on labelled images."""

    top1: Share | Nothing
    top5: Share | Nothing
    loss: float | Nothing
    balanced_accuracy: Share | Nothing
    """Mean recall over the classes."""
    better_than_chance: bool | Nothing
    """Whether it is significantly better than a constant prediction."""
    lowest_recall: Share | None
    """Lowest recall of a class with at least 10 images; None if no class has that many."""
    lowest_class: Text | None
    fewest_images: Count | Nothing
    """Number of images in the smallest class; 0 if a class has none."""


Scores = ScoresOr[Never]


class FileFacts(Stored):
    """A file."""

    file: Text
    sha256: Text


class ModelFile(FileFacts):
    """A model file."""

    architecture: Text


class RunFacts(Stored):
    """How a result was computed."""

    device: Text
    precision: Text
    compiled: bool
    seed: Count
    versions: Annotated[dict[Text, Text], Field(max_length=50)]
    """Versions of this program, Python and the libraries used."""
    settings_sha256: Text


class RunResult(RunFacts):
    """The content of `result.json` in a run directory."""

    command: Text

    @classmethod
    def load(cls, run: Path) -> Self:
        """Read an untrusted run's `result.json`.

        Raises `InputError` if it is damaged, of another command or, as if the run is unfinished, missing.
        """
        file = inside(run) / RESULT
        content = read_bounded(file, _MOST_BYTES)
        own = cls.model_fields["command"].default
        if isinstance(own, str) and RunResult.read(content, str(file)).command != own:
            raise InputError(f"{run} is not a run of {own}; name one that is")
        return cls.read(content, str(file))


class Interval(Stored):
    """A measured or predicted share and its interval, in [0, 1]."""

    value: Share
    low: Share
    high: Share
