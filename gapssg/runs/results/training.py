"""The result of `pretrain-teacher`, and what it has in common with that of `distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from gapssg.errors import InputError
from gapssg.models.description import ModelProfile
from gapssg.runs.results.common import RESULT, RunResult, ScoresOr
from gapssg.settings.parts import PaddingMode
from gapssg.stored import Count, PositiveCount, Seconds, Share, Stored, Text


class AugmentationFacts(Stored):
    """The augmentation of the training images."""

    crop_padding: Count
    """Pixels of padding for random crops, on each side."""
    flip: bool
    """Whether images were flipped horizontally at random."""
    crop_padding_mode: PaddingMode = "zeros"
    """Whether the padding was 0 or the mirrored image."""


class TrainingTiming(Stored):
    """Duration of a training."""

    total: Seconds
    evaluation: Seconds


class Trained(ModelProfile, ScoresOr[None]):
    """The model of a run, with scores of the last epoch, None if it was not evaluated."""

    file: Text
    sha256: Text | None
    architecture: Text
    best_top1: Share | None
    """Highest top-1 accuracy of all epochs, selected on the evaluation images."""
    best_epoch: PositiveCount | None

    def check_is(self, file: Path, sha256: str) -> None:
        """Raise `InputError` if a file with this SHA-256 is another model."""
        if self.sha256 not in (None, sha256):
            raise InputError(
                f"{file} is not the model of its run: its SHA-256 differs from that in {RESULT}; "
                "put the run's own model back, or move this file elsewhere"
            )

    @model_validator(mode="before")
    @classmethod
    def _none_for_fields_that_older_versions_lack(cls, values: Any) -> Any:
        return {**dict.fromkeys(cls.model_fields), **values} if isinstance(values, dict) else values


class TrainingResult(RunResult):
    """The common part of the results of the training commands."""

    model_file: ClassVar[str]
    noun: ClassVar[str]

    data: Text | None
    """The real images for evaluation, in `pretrain-teacher` also for training."""
    epochs: PositiveCount
    augmentation: AugmentationFacts | None = None
    timing: TrainingTiming


class PretrainResult(TrainingResult):
    """The result of `pretrain-teacher`."""

    model_file = "model.safetensors"
    noun = "model"
    failures: ClassVar[tuple[str, ...]] = ()

    command: Literal["pretrain-teacher"] = "pretrain-teacher"
    model: Trained
