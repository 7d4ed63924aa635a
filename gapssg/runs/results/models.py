"""The results of `models`, `import-teacher` and `inspect`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SkipValidation, field_serializer

from gapssg.models.description import LayerProfile, ModelCard, ModelProfile
from gapssg.models.reference import Argument
from gapssg.runs.results.common import Failures, ModelFile, RunFacts, ScoresOr
from gapssg.runs.results.evaluation import Latency
from gapssg.stored import Count, PositiveCount, Stored, Text
from gapssg.synthesis.base import ImagePrior


class Proposal(ModelProfile):
    """A student that could be distilled from a teacher."""

    architecture: Text
    latency: Latency
    """With one image."""


class ProposeTiming(Stored):
    """What the proposed students are compared with, and how they were measured."""

    teacher: Latency
    threads: PositiveCount
    """Number of processor threads that PyTorch used."""
    is_complete: bool
    """Whether there was time for all candidates."""
    measured: Count = 0
    """The number of smaller candidates that were measured."""
    fastest: Proposal | None = None
    """The fastest of these, whether or not it is proposed."""
    unmeasured: tuple[Text, ...] = ()
    """The smaller candidates for which there was none."""
    unsized: tuple[Text, ...] = ()
    """The candidates that were not built, so that their sizes are unknown."""


class ProposeResult(ModelProfile, RunFacts):
    """The result of `models --for`; the profile is that of the teacher. Measured times decide on the students."""

    command: Literal["models"] = "models"
    teacher: ModelFile
    num_classes: Count
    input_shape: tuple[int, int, int]
    max_latency_ms: float | None
    students: tuple[Proposal, ...]
    """The fastest first."""
    timing: ProposeTiming


class WeightNames(Stored):
    """Which weights of a file were taken, and how their names became those of the model."""

    key: Text | None
    """Dotted key of their state dict in the checkpoint; None where it is the whole file."""
    removed: tuple[Text, ...]
    """Prefixes, or parts that wrappers add, which were left out."""
    added: Text | None
    """The prefix that was added."""


class ImportResult(ModelFile, ModelProfile, ScoresOr[None], RunFacts):
    """The result of `import-teacher`."""

    command: Literal["import-teacher"] = "import-teacher"
    num_classes: int
    input_shape: tuple[int, int, int]
    data: Text | None
    weights: WeightNames | None
    """None if no file of weights was read."""


class InspectResult(ModelProfile):
    """The result of `inspect`; only a model file has a file, a SHA-256 and a card."""

    command: Literal["inspect"] = "inspect"
    file: Text | None
    sha256: Text | None
    failures: Failures = ()
    architecture: Text
    arguments: dict[str, SkipValidation[Argument]]
    num_classes: int
    input_shape: tuple[int, int, int]
    layers: tuple[LayerProfile, ...]
    observed_batch_norm_layers: tuple[Text, ...]
    image_prior: ImagePrior
    """What `gapssg` and `gapssg-fast` use as image prior."""
    methods: dict[str, str | None]
    """What the model lacks for each method, or None."""
    card: ModelCard | None

    @field_serializer("card")
    def _as_in_the_file(self, card: ModelCard | None) -> dict[str, Any] | None:
        return None if card is None else card.to_dict()
