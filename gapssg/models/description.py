"""The description of a model: its interface, provenance and size. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from gapssg.models.graphs.description import check_graph, graph_name, is_graph
from gapssg.models.names import LONGEST_NAME, MOST_CHANNELS, MOST_CLASSES
from gapssg.models.settings import OmitsDefaults, WithArguments
from gapssg.settings.base import as_validator
from gapssg.settings.parts import Interpolation, PaddingMode, Resize, ResizeOptions
from gapssg.stored import Count, Sentences, Stored

METADATA_KEY = "gapssg"
"""Under which model files and exported files hold their description."""
Outputs = Literal["logits", "probabilities", "log-probabilities", "sigmoids", "logit", "sigmoid"]
InputLayout = Literal["NCHW", "NHWC"]
OutputPart = Annotated[str, Field(min_length=1, max_length=100)]


@dataclass(frozen=True)
class Signature:
    """What an architecture takes and returns, where it differs from images (N, C, H, W) and logits (N, K)."""

    outputs: Outputs = "logits"
    """(N, K) `logits`, `probabilities`, `log-probabilities` or `sigmoids` (probabilities that need not sum to 1), or
    (N,) or (N, 1) the `logit` of the second of two classes or its probability, `sigmoid`."""
    output_part: str | None = None
    """Key, field or index of the outputs in a container; None if it returns a tensor."""
    input_layout: InputLayout = "NCHW"
    """Order of the dimensions of images."""


PLAIN = Signature()


class Provenance(OmitsDefaults):
    """Where a model's weights come from."""

    omitted_defaults: ClassVar[tuple[str, ...]] = ("pool_teacher_sha256", "procedural", "initial_weights")

    command: str
    """The subcommand that made them."""
    method: str | None = None
    """The data-free method, for students."""
    teacher_sha256: str | None = None
    """The SHA-256 of the teacher's file, for students."""
    pool_teacher_sha256: str | None = None
    """The SHA-256 of the teacher's file whose images a student learned from; None if of its own."""
    procedural: bool | None = None
    """Whether a student learned from procedural images, too; None if not."""
    initial_weights: bool | None = None
    """Whether a student began with given weights, or with batch norms that had seen images; None if not."""
    seed: int = 0
    """The run's seed."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of this program and of torch."""


class Interface(WithArguments):
    """What is needed to build a model and to apply it to images."""

    architecture: str = Field(max_length=LONGEST_NAME)
    """The model's name, as `create_model` takes it."""
    num_classes: int = Field(ge=2, le=MOST_CLASSES)
    """Number of classes, K."""
    input_shape: tuple[
        Annotated[int, Field(ge=1, le=MOST_CHANNELS)],
        Annotated[int, Field(ge=1, le=1024)],
        Annotated[int, Field(ge=1, le=1024)],
    ]
    """Channels, height and width of an input image."""
    mean: tuple[Annotated[float, Field(ge=-1e6, le=1e6)], ...]
    """Per-channel mean that is subtracted from images in [0, 1]."""
    deviation: tuple[Annotated[float, Field(ge=1e-6, le=1e6)], ...]
    """Per-channel standard deviation that they are divided by."""
    class_names: tuple[Annotated[str, Field(max_length=255)], ...]
    """Names of the classes in the order of the logits."""
    resize: Resize = "crop"
    """How images are brought to the input size: as `crop`, by a shorter side of so many pixels, or as `stretch`."""
    interpolation: Interpolation = "bilinear"
    """Filter of the resizing, as Pillow and torchvision name it, with antialiasing."""

    @model_validator(mode="after")
    def _sizes_agree(self) -> Interface:
        if len(self.class_names) != self.num_classes:
            raise ValueError("class_names and num_classes differ")
        if not len(self.mean) == len(self.deviation) == self.input_shape[0]:
            raise ValueError("mean, deviation and input_shape differ in their channels")
        if not covers(self.resize, self.input_shape):
            raise ValueError("resize is smaller than both sides of input_shape")
        return self

    @property
    def resize_options(self) -> ResizeOptions:
        """How images are resized, as `load_split` takes it."""
        return {"resize": self.resize, "interpolation": self.interpolation}

    @property
    def resizing(self) -> str:
        """What is done to real images to resize them, in words."""
        if self.resize == "stretch":
            return f"stretched to the input size, {self.interpolation}"
        size = "to cover the input size" if self.resize == "crop" else f"to {self.resize} pixels on the shorter side"
        return f"scaled {size}, {self.interpolation}, centre crop"


def covers(resize: Resize, input_shape: Sequence[int]) -> bool:
    """Tell whether resized images are at least as large as inputs (C, H, W) on one side."""
    return not isinstance(resize, int) or resize >= min(input_shape[1:])


class ModelCard(Interface):
    """What is needed besides the weights to use a model or to distil from it."""

    omitted_defaults: ClassVar[tuple[str, ...]] = (
        *("arguments", "outputs", "output_part", "input_layout", "crop_padding_mode", "graph"),
        *("resize", "interpolation", "failures"),
    )

    format_version: Literal[1] = 1
    """Version of this description."""
    crop_padding: int = Field(ge=0, le=256)
    """Pixels of padding for random crops."""
    crop_padding_mode: PaddingMode | None = None
    """How random crops were padded when the model was trained; None if unknown."""
    flip: bool
    """Whether a mirrored image still belongs to its class."""
    outputs: Outputs = "logits"
    """What the architecture returns; `load_model` converts it to logits."""
    output_part: OutputPart | None = None
    """Key, field or index of the outputs in what the architecture returns; None if it returns a tensor."""
    input_layout: InputLayout = "NCHW"
    """Order of the dimensions of the images that the architecture takes; `load_model` permutes those it is given."""
    provenance: Provenance
    """Where the weights come from."""
    failures: Sentences = ()
    """Why its run found the model not usable, one sentence each."""
    graph: Annotated[dict[str, object], AfterValidator(as_validator(check_graph))] | None = None
    """For a model that was imported as a graph: its operators, see `gapssg/models/graphs/description.py`."""

    @model_validator(mode="after")
    def _has_its_graph(self) -> ModelCard:
        name = graph_name(self.graph) if self.graph is not None else None
        if name != (self.architecture if is_graph(self.architecture) else None):
            raise ValueError("architecture and graph differ")
        return self

    @property
    def signature(self) -> Signature:
        """What the architecture takes and returns."""
        return Signature(self.outputs, self.output_part, self.input_layout)


class ModelProfile(Stored):
    """The size of a model and its cost for one image."""

    parameters: Count
    """Number of parameters."""
    macs: Count
    """Multiply-adds of convolutions and linear layers for one image."""
    batch_norm_layers: Count
    """Number of batch-norm layers."""


@dataclass(frozen=True)
class LayerProfile:
    """One layer of a model."""

    name: str
    """Qualified name in the model."""
    type: str
    """Class name."""
    output_shape: tuple[int, ...] | None
    """For one image, without the batch dimension; None if it returns no tensor or is never called."""
    parameters: int
    """Number of its own parameters that no earlier layer shares."""
    macs: int
    """Multiply-adds for one image, without those of its sub-modules."""
    observed: bool
    """Whether its batch-norm statistics are observed."""
