"""The result of `export`."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from gapssg.models.description import Interface, Provenance
from gapssg.runs.results.common import Failures, FileFacts, ModelFile, RunFacts
from gapssg.settings.base import Settings
from gapssg.stored import Count, Stored, Text

Value = TypeVar("Value")


class LogitsComparison(Stored):
    """Comparison of logits with those of the model."""

    images: int
    largest_difference: float
    """Largest absolute difference of two logits."""
    relative_difference: float
    """The same, divided by the largest absolute logit of the model."""
    agreement: float
    """Share of the images with the same prediction."""
    saturated: Count = 0
    """Of a model that returns sigmoids: images whose probabilities are all below 0.01 or above 0.99. Differences of
    logits beyond these do not count, because rounding of the probabilities explains them."""


class ExportedTop1(Stored):
    """Top-1 accuracies of a model and its exported form."""

    model: float
    exported: float


class Verification(Stored):
    """Comparison of an exported model with the original."""

    tolerance: float
    random: LogitsComparison
    test: LogitsComparison | None
    """On test images, if they were given."""
    top1: ExportedTop1 | None


class BothPrecisions(Stored, Generic[Value]):
    """A value for the float32 and for the int8 model."""

    float32: Value
    int8: Value


class Int8Verification(Stored):
    """Comparison of an int8 model with the float32 one."""

    calibration_images: int
    min_agreement: float
    float_layers: tuple[Text, ...]
    """Operators that compute in float32, so that the drop is at most `max_drop_points`; those that lose most first."""
    corrected_biases: int | None = None
    """Number of layers whose biases were corrected; None if the quantiser does not say."""
    pool: LogitsComparison
    """On images of the pool that were not used for calibration."""
    test: LogitsComparison | None
    top1: BothPrecisions[float] | None
    bytes: BothPrecisions[int]


class Int8Metadata(Settings):
    """The quantisation of an int8 file."""

    calibration_images: int
    float_layers: tuple[str, ...] = ()


class ExportProvenance(Settings):
    """Provenance of an exported file."""

    model_sha256: str
    model: Provenance
    versions: dict[str, str]


class ExportMetadata(Interface):
    """The metadata of an exported file."""

    format_version: Literal[1] = 1
    normalization_folded: bool
    int8: Int8Metadata | None = None
    failures: Failures = None
    provenance: ExportProvenance


class ImagesPerSecond(Stored):
    """Throughput on the CPU."""

    float32: float
    int8: float | None = None
    """None without `--int8`."""


class ExportTiming(Stored):
    """Speed of the exported models."""

    images_per_second: ImagesPerSecond
    batch_size: int


class ExportResult(FileFacts, RunFacts):
    """The result of `export`."""

    command: Literal["export"] = "export"
    model: ModelFile
    format: Text
    bytes: int
    metadata: ExportMetadata
    data: Text | None
    verification: Verification | None
    """None if the output is no model, or nothing here can run it."""
    int8: Int8Verification | None
    timing: ExportTiming | None
    """None if the output is no model, or nothing here can run it."""
