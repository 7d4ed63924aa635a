"""What each command returns: the same is in `result.json`, and printed by `--json`. Imports no torch.

Shares, accuracies among them, are fractions in [0, 1]; losses are cross-entropies in nats; times are in seconds. What
may differ between two equal runs is `timing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, Never, Self, TypeVar

from pydantic import Field, field_serializer, model_serializer, model_validator

from gapssg.errors import InputError
from gapssg.files import inside, read_bounded
from gapssg.models.description import Interface, LayerProfile, ModelCard, ModelProfile, Provenance
from gapssg.settings.base import Settings
from gapssg.settings.parts import PaddingMode
from gapssg.stored import MOST_COUNTED_CLASSES, Count, Counts, Many, PositiveCount, Seconds, Share, Stored, Text

RESULT = "result.json"
_MOST_BYTES = 16 * 2**20

Sentences = Annotated[tuple[Text, ...], Field(max_length=20, fail_fast=True)]
Coordinates = Annotated[tuple[float, ...], Field(max_length=2, fail_fast=True)]  # a number an axis
Nothing = TypeVar("Nothing")
"""What stands where a model was not evaluated: None, or Never if it always is."""
Value = TypeVar("Value")


class ScoresOr(Stored, Generic[Nothing]):
    """The accuracies and the loss of a classifier on labelled images."""

    top1: Share | Nothing
    top5: Share | Nothing
    loss: float | Nothing
    balanced_accuracy: Share | Nothing
    """Mean of the accuracies of the classes."""
    better_than_chance: bool | Nothing
    """Whether that is certainly better than always answering with one class."""
    lowest_recall: Share | None
    """The lowest accuracy of a class with at least 10 images; None where no class has so many."""
    lowest_class: Text | None
    fewest_images: Count | Nothing
    """How many images the class with the fewest has; 0 where a class has none."""


Scores = ScoresOr[Never]


class Measurement(Stored):
    """A number and how far it may be off; None where it is not finite."""

    value: float | None = None
    error: float | None = None


class FileFacts(Stored):
    """A file."""

    file: Text
    sha256: Text


class ModelFile(FileFacts):
    """A model file."""

    architecture: Text


class RunFacts(Stored):
    """How something was computed."""

    device: Text
    precision: Text
    compiled: bool
    seed: Count
    versions: Annotated[dict[Text, Text], Field(max_length=50)]
    """Versions of this program and of what it is built on."""
    settings_sha256: Text


class RunResult(RunFacts):
    """What is in the `result.json` of a run directory."""

    command: Text

    @classmethod
    def load(cls, run: Path) -> Self:
        """Read the `result.json` of a run, which may be untrusted.

        Raises:
            InputError: It is missing, as long as the run is not finished, or damaged.
        """
        file = inside(run) / RESULT
        return cls.read(read_bounded(file, _MOST_BYTES), str(file))


class AugmentationFacts(Stored):
    """How training images were varied, if they were."""

    crop_padding: Count
    """Pixels of padding for random crops, on each side."""
    flip: bool
    """Whether images were flipped left to right at random."""
    crop_padding_mode: PaddingMode = "zeros"
    """Whether the padding was 0 or the mirrored image."""


class TrainingTiming(Stored):
    """Seconds of a training."""

    total: Seconds
    evaluation: Seconds


class Trained(ModelProfile, ScoresOr[None]):
    """A model that a run made; its scores are of the last epoch, and None if it was not evaluated."""

    file: Text
    architecture: Text
    best_top1: Share | None
    """The highest top-1 accuracy of all epochs, which the evaluation images chose."""
    best_epoch: PositiveCount | None

    @model_validator(mode="before")
    @classmethod
    def _nothing_where_an_older_version_said_nothing(cls, values: Any) -> Any:
        return {**dict.fromkeys(cls.model_fields), **values} if isinstance(values, dict) else values


class TrainingResult(RunResult):
    """What the results of the training commands have in common."""

    model_file: ClassVar[str]
    noun: ClassVar[str]

    data: Text | None
    """The real images that the model was evaluated on, or trained and evaluated."""
    epochs: PositiveCount
    augmentation: AugmentationFacts | None = None
    timing: TrainingTiming


class PretrainResult(TrainingResult):
    """What `pretrain-teacher` returns."""

    model_file = "model.safetensors"
    noun = "model"
    failures: ClassVar[tuple[str, ...]] = ()

    command: Literal["pretrain-teacher"] = "pretrain-teacher"
    model: Trained


class TeacherFacts(ModelFile, ModelProfile):
    """The teacher of a distillation."""

    top1: Share | None


class AfterTraining(Stored):
    """How student and teacher compare on synthetic images after training."""

    images: Count
    agreement: Share
    agreement_baseline: Share
    lowest_agreement: Share | None
    """On the images of one class; None where no class has at least 10."""
    lowest_class: Text | None


class StudentFacts(Trained):
    """The student of a distillation."""

    agreement: Share | None
    """With the teacher, on the last synthesised images before the student trained on them."""
    agreement_baseline: Share | None
    """What always giving the teacher's commonest answer would have reached on them."""
    after_training: AfterTraining | None


class DistillTiming(TrainingTiming):
    """Seconds of a distillation."""

    synthesis: Seconds
    distillation: Seconds


class DistillResult(TrainingResult):
    """What `distill` returns."""

    model_file = "student.safetensors"
    noun = "student"

    command: Literal["distill"] = "distill"
    method: Text
    """The data-free method that made the images."""
    pool: Text | None = None
    """The run whose images were used again."""
    teacher: TeacherFacts
    student: StudentFacts
    failures: Sentences = ()
    """Why the student is not usable; empty where nothing speaks against it."""
    warnings: Sentences = ()
    """What synthetic images say against a student that real images show to be usable."""
    missing_classes: Annotated[tuple[Text, ...], Field(max_length=MOST_COUNTED_CLASSES, fail_fast=True)] = ()
    """The classes that the teacher hardly ever sees in the synthetic images."""
    teacher_counts: Counts | None = None
    """How often the teacher answered each class; None with more than 1,000 classes, as the counts of the targets."""
    target_counts: Counts | None = None
    images_synthesized: Count
    distillation_steps: Count
    flops: Count | None = None
    """Floating-point operations in teacher and student."""
    timing: DistillTiming

    @property
    def model(self) -> StudentFacts:
        """What the run made."""
        return self.student


def load_training_result(run: Path) -> DistillResult | PretrainResult:
    """Read the `result.json` of a run of `distill` or `pretrain-teacher`.

    Raises:
        InputError: It is missing, damaged, or of another command.
    """
    command = RunResult.load(run).command
    if command == "distill":
        return DistillResult.load(run)
    if command == "pretrain-teacher":
        return PretrainResult.load(run)
    raise InputError(f"{run} is no run of distill or pretrain-teacher; name one that is")


class ReliabilityBin(Stored):
    """The images whose confidence lies in one of equal-width bins, and their mean confidence."""

    samples: Count
    confidence: float
    accuracy: float


class EvaluatedModel(ModelFile, ModelProfile, Scores):
    """What is said of a model on labelled images."""

    expected_calibration_error: float
    reliability: tuple[ReliabilityBin | None, ...]
    """The bins of the reliability diagram; None where no image falls."""
    per_class_accuracy: tuple[float | None, ...]
    images_per_class: tuple[Count, ...]
    confusion_matrix: tuple[tuple[int, ...], ...] | None
    """A row a label, a column a prediction; None with more than 1,000 classes."""
    agreement: float | None
    """With the teacher, as the reality gap, which is the mean over the images; None without one."""
    reality_gap: float | None


class EvaluateTiming(Stored):
    """How fast the models were."""

    images_per_second: tuple[float, ...]


class EvaluateResult(RunFacts):
    """What `eval` returns."""

    command: Literal["eval"] = "eval"
    data: Text
    images: int
    class_names: tuple[Text, ...]
    teacher: FileFacts | None
    models: tuple[EvaluatedModel, ...]
    timing: EvaluateTiming


class ImportResult(ModelFile, ModelProfile, ScoresOr[None], RunFacts):
    """What `import-teacher` returns."""

    command: Literal["import-teacher"] = "import-teacher"
    num_classes: int
    input_shape: tuple[int, int, int]
    data: Text | None


class InspectResult(ModelProfile):
    """What `inspect` returns; file, SHA-256 and card are those of a model file."""

    command: Literal["inspect"] = "inspect"
    file: Text | None
    sha256: Text | None
    architecture: Text
    arguments: dict[str, Any]
    num_classes: int
    input_shape: tuple[int, int, int]
    layers: tuple[LayerProfile, ...]
    observed_batch_norm_layers: tuple[Text, ...]
    methods: dict[str, str | None]
    """By method what the model lacks for it, or None."""
    card: ModelCard | None

    @field_serializer("card")
    def _as_in_the_file(self, card: ModelCard | None) -> dict[str, Any] | None:
        return None if card is None else card.to_dict()


class Comparison(Stored):
    """How far logits are from those of the model."""

    images: int
    largest_difference: float
    """Of two logits, absolute."""
    relative_difference: float
    """The same, as a share of the largest absolute logit of the model."""
    agreement: float
    """Share of the images with the same prediction."""


class ExportedTop1(Stored):
    """Top-1 accuracies of a model and of what was exported of it."""

    model: float
    exported: float


class Verification(Stored):
    """How an exported model compares with the model."""

    tolerance: float
    random: Comparison
    test: Comparison | None
    """On test images, if they were given."""
    top1: ExportedTop1 | None


class BothPrecisions(Stored, Generic[Value]):
    """The same of a float32 and of an int8 model."""

    float32: Value
    int8: Value


class Int8Verification(Stored):
    """How an int8 model compares with the float32 one."""

    calibration_images: int
    min_agreement: float
    pool: Comparison
    """On images of the pool that did not calibrate."""
    test: Comparison | None
    top1: BothPrecisions[float] | None
    bytes: BothPrecisions[int]


class Int8Metadata(Settings):
    """What an int8 file says of its quantisation."""

    calibration_images: int


class ExportProvenance(Settings):
    """Where an exported file comes from."""

    model_sha256: str
    model: Provenance
    versions: dict[str, str]


class ExportMetadata(Interface):
    """What an exported file says of itself."""

    format_version: Literal[1] = 1
    normalization_folded: bool
    int8: Int8Metadata | None = None
    provenance: ExportProvenance


class ExportTiming(Stored):
    """How fast the float32 and the int8 model are."""

    images_per_second: BothPrecisions[float]
    batch_size: int


class ExportResult(FileFacts, RunFacts):
    """What `export` returns."""

    command: Literal["export"] = "export"
    model: ModelFile
    format: Text
    bytes: int
    metadata: ExportMetadata
    data: Text | None
    verification: Verification
    int8: Int8Verification | None
    timing: ExportTiming | None
    """None without an int8 model."""


class Curvature(Stored):
    """The curvature of the loss at the centre of a surface."""

    samples: Count
    largest_eigenvalue: Measurement
    """Of the Hessian, as the trace; its error is the residual, that of the trace the standard error."""
    trace: Measurement
    epsilon_sharpness: float | None = None
    """Relative rise of the loss in a small box; None where it is not finite."""
    epsilon: float
    """Half the side of the box, relative to |weight| + 1."""
    missing: Text | None = None
    """What could not be measured, and why; None if everything was."""


class Bf16Error(Stored):
    """How far some points of a grid are from the same points in float32."""

    points: Count
    loss_relative: float | None = None
    """The largest; None if none is finite."""
    accuracy: float


class CentreFacts(Stored):
    """What is measured around a centre besides the grid."""

    radius_of_doubling: float | None = None
    """The distance at which the loss first reaches twice that of the centre; None: not within the grid."""
    curvature: Curvature | None = None
    bf16_error: Bf16Error | None = None


class CentreScores(Stored):
    """What was measured at a centre."""

    loss: float | None
    """None if it is not finite."""
    accuracy: Share | None


class LocalMinimum(Stored):
    """A local minimum of a grid."""

    coordinates: Coordinates
    loss: float
    at_edge: bool
    """Whether it lies at the edge of the grid, so that the loss may fall further outside."""


class Mark(Stored):
    """A marked point."""

    label: Text
    coordinates: Coordinates
    loss: float | None
    """Of the marked model itself; None if it is not finite."""


class SurfaceFacts(CentreFacts):
    """What is said of a surface."""

    label: Text
    name: Text
    epoch: Count | None
    """Of a snapshot."""
    file: Text
    model: ModelFile
    """The model at the centre."""
    centre: CentreScores
    centre_is_global_minimum: bool
    """Whether no point of the grid is lower."""
    lowest_loss: float | None
    highest_loss: float | None
    points_not_finite: Count
    minima: Many[LocalMinimum]
    marks: Many[Mark]
    explained_variance: Coordinates
    """Of principal components: each axis's share of the route's variance."""


class LandscapeTiming(Stored):
    """Seconds of a landscape."""

    total: Seconds
    surfaces: Seconds
    points_per_second: Seconds | None


class LandscapeResult(RunResult):
    """What `landscape` returns."""

    command: Literal["landscape"] = "landscape"
    data: Text
    """What the loss was measured on."""
    samples: PositiveCount
    loss: Text
    """What the loss is, in words; the accuracy likewise."""
    accuracy: Text
    surfaces: Annotated[tuple[SurfaceFacts, ...], Field(min_length=1, max_length=1000, fail_fast=True)]
    shared_directions: bool
    """Whether all surfaces have the same directions, each scaled to its own weights."""
    figures: Many[Text]
    timing: LandscapeTiming


class TableEntry(Stored):
    """What the runs of a cell reached; accuracies after the last epoch, mean and sample deviation over the seeds."""

    column: Text
    top1: float | None
    deviation: float | None
    """None for less than two seeds."""
    published_top1: float | None
    published_deviation: float | None
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    top1_by_seed: tuple[float | None, ...]
    seconds: float | None
    """Mean of a run."""
    device: Text | None
    marks: tuple[str, ...]
    """The notes that say in what a figure is not what was published, and why a student is not usable."""
    failed: tuple[int, ...]
    """Seeds of runs that failed; `not_usable` has those of students."""
    not_usable: tuple[int, ...]


class TrainedEntry(TableEntry):
    """What learns from real images: the teacher, or the student for comparison."""

    architecture: Text


class MethodEntry(TableEntry):
    """What learns from no data."""

    method: str
    settings: str
    """Hash of the settings of its runs."""


class TableRow(Stored):
    """A row of the table with one budget and one set of changes."""

    row: Text
    recipe: str
    budget: str
    changes: tuple[str, ...]
    data: Text
    teacher: TrainedEntry
    scratch: TrainedEntry
    columns: tuple[MethodEntry, ...]

    @property
    def entries(self) -> tuple[TableEntry, ...]:
        """Teacher, scratch student and methods."""
        return (self.teacher, self.scratch, *self.columns)

    @property
    def particulars(self) -> tuple[str, ...]:
        """What tells a line from others of its row: the budget, if it is not the full one, and the changes."""
        return self.changes if self.budget == "full" else (self.budget, *self.changes)


class TableSummary(Stored):
    """What `table.json` holds: what the runs of a table have reached so far."""

    format: int
    rows: tuple[TableRow, ...]
    notes: dict[str, str]
    """By mark."""


class TableResult(TableSummary):
    """What `table` returns."""

    command: Literal["table"] = "table"
    failed: dict[str, Text]
    """By the label of a run the sentence that says why it failed."""
    elsewhere: dict[str, Text]
    """By the label of a run the process that makes it."""


@dataclass(frozen=True)
class Part:
    """Steps of one kind in a run.

    Attributes:
        steps: How many the run makes.
        seconds_per_step: Measured after the first ones; 0 if there are no steps.
        first_seconds: What the first ones, which allocate and compile, take more.
    """

    steps: int
    seconds_per_step: float
    first_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of all steps."""
        return self.steps * self.seconds_per_step + self.first_seconds


class EstimateResult(Stored):
    """What a run would take, as `--estimate` says it."""

    command: str
    parts: dict[str, Part]
    """Its steps by kind."""
    memory_bytes: int
    """At the peak: of the GPU, or on a processor of the process."""
    flops: int | None = None
    device: Text
    precision: str
    compiled: bool
    described: str
    """Device, precision and compilation in words."""

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        return sum(part.seconds for part in self.parts.values())

    @model_serializer
    def _by_kind(self) -> dict[str, Any]:
        return {
            "command": self.command,
            "steps": {kind: part.steps for kind, part in self.parts.items()},
            "timing": {
                "total": self.seconds,
                **{kind: part.seconds for kind, part in self.parts.items()},
                "seconds_per_step": {kind: part.seconds_per_step for kind, part in self.parts.items()},
            },
            "memory_bytes": self.memory_bytes,
            **({} if self.flops is None else {"flops": self.flops}),
            "device": self.device,
            "precision": self.precision,
            "compiled": self.compiled,
        }


class ReportedRun(Stored):
    """What a report says of a run first."""

    run: Text
    verdict: Text
    evidence: Literal["real images", "synthetic images only", "none"]
    failures: tuple[Text, ...]
    top1: float | None


class ReportResult(Stored):
    """What `report` returns."""

    command: Literal["report"] = "report"
    output: Text
    runs: tuple[ReportedRun, ...]
