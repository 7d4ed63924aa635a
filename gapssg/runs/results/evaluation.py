"""The results of `eval` and `predict`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gapssg.models.description import ModelProfile
from gapssg.runs.results.common import Failures, FileFacts, ModelFile, RunFacts, Scores
from gapssg.stored import Count, Many, PositiveCount, Sentences, Share, Stored, Text


class ReliabilityBin(Stored):
    """One of the equal-width confidence bins of a reliability diagram."""

    samples: Count
    confidence: float
    accuracy: float


class EvaluatedModel(ModelFile, ModelProfile, Scores):
    """A model evaluated on labelled images."""

    expected_calibration_error: float
    reliability: tuple[ReliabilityBin | None, ...]
    """The bins of the reliability diagram; None for an empty bin."""
    per_class_accuracy: tuple[float | None, ...]
    images_per_class: tuple[Count, ...]
    confusion_matrix: tuple[tuple[int, ...], ...] | None
    """Rows are labels, columns predictions; None with more than 1,000 classes."""
    agreement: float | None
    """Agreement with the teacher; None without a teacher."""
    reality_gap: float | None
    """Mean reality gap to the teacher over the images; None without a teacher."""
    own_teacher: Scores | None = None
    """Scores of a student's own teacher on the same images, if it was evaluated too."""
    failures: Sentences = ()
    """Why a student is not usable by these scores, one sentence each."""


class Latency(Stored):
    """Times of a forward pass of a batch, in milliseconds."""

    batch_size: PositiveCount
    passes: PositiveCount
    """Number of timed passes, after a warm-up."""
    median_ms: float
    p95_ms: float
    """95th percentile."""


class EvaluateTiming(Stored):
    """Speed of the models."""

    images_per_second: tuple[float, ...]
    threads: PositiveCount
    """Number of processor threads that PyTorch used."""
    latency: tuple[tuple[Latency, ...], ...] | None
    """Of each model with batches of 1 and of 64 images; None if not measured."""


class EvaluateResult(RunFacts):
    """The result of `eval`."""

    command: Literal["eval"] = "eval"
    data: Text
    images: int
    class_names: tuple[Text, ...]
    teacher: FileFacts | None
    models: tuple[EvaluatedModel, ...]
    timing: EvaluateTiming


class ClassProbability(Stored):
    """A class and its probability for an image."""

    name: Text
    probability: Share


class PredictedImage(Stored):
    """The most probable classes of an image file, the most probable first."""

    file: Text
    classes: Annotated[tuple[ClassProbability, ...], Field(min_length=1, max_length=1000, fail_fast=True)]


class PredictTiming(Stored):
    """Speed of a classification, with reading the images."""

    images_per_second: float


class PredictResult(RunFacts):
    """The result of `predict`."""

    command: Literal["predict"] = "predict"
    model: ModelFile
    failures: Failures = ()
    images: Many[PredictedImage]
    timing: PredictTiming
