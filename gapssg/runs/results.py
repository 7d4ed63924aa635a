"""The result of each command, as `result.json` stores it and `--json` prints it. Imports no torch.

Accuracies and other shares are fractions in [0, 1], losses are cross-entropies in nats, times are in seconds. Only
`timing` may differ between two equal runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, Never, Self, TypeVar

from pydantic import Field, field_serializer, model_serializer, model_validator

from gapssg.errors import InputError
from gapssg.files import read_bounded
from gapssg.models.description import Interface, LayerProfile, ModelCard, ModelProfile, Provenance
from gapssg.safe_paths import inside
from gapssg.settings.base import Settings
from gapssg.settings.parts import PaddingMode
from gapssg.stored import MOST_COUNTED_CLASSES, Count, Counts, Many, PositiveCount, Seconds, Share, Stored, Text
from gapssg.synthesis.base import ImagePrior
from gapssg.text import percent

RESULT = "result.json"
_MOST_BYTES = 16 * 2**20

Sentences = Annotated[tuple[Text, ...], Field(max_length=20, fail_fast=True)]
Failures = Sentences | None
"""Why the run of a model file found it not usable; empty if it did not or there is no run, None if it is damaged."""
Coordinates = Annotated[tuple[float, ...], Field(max_length=2, fail_fast=True)]  # one number per axis
_Weight = Annotated[float, Field(ge=0, le=1.001)]  # with a margin for rounding
_Quadrature = Annotated[tuple[tuple[float, _Weight], ...], Field(min_length=1, max_length=200, fail_fast=True)]
Nothing = TypeVar("Nothing")
"""The value where a model was not evaluated: None, or Never if it always is."""
Value = TypeVar("Value")


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


class Measurement(Stored):
    """A number and its error; None where not finite."""

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
    architecture: Text
    best_top1: Share | None
    """Highest top-1 accuracy of all epochs, selected on the evaluation images."""
    best_epoch: PositiveCount | None

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


class TeacherFacts(ModelFile, ModelProfile):
    """The teacher of a distillation."""

    top1: Share | None


class ProbeEvidence(Stored):
    """How student and teacher compare on probe images of one kind."""

    images: PositiveCount
    disagreement: Share
    """Share of the images on which their predictions differ."""
    weighted_disagreement: Share
    """The same, each image weighted by the teacher's margin: the difference of its two highest probabilities."""
    reality_gap: Share
    """Mean of the largest difference of a class probability."""
    teacher_confidence: Share
    """Mean of the teacher's highest class probability."""
    largest_class: Share
    """Share of the teacher's most frequent prediction."""


class Interval(Stored):
    """A measured or predicted share and its interval, in [0, 1]."""

    value: Share
    low: Share
    high: Share


class QualityFacts(Stored):
    """What is expected of a student on real images, of which none was read."""

    disagreement: Interval | None
    """Predicted share of real images on which student and teacher differ; None if the predictor does not apply."""
    top1: Interval | None
    """Bounds of the top-1 accuracy that follow; None without the teacher's."""
    coverage: Share
    """Share of the students of left-out teachers and data sets whose disagreement the intervals covered."""
    calibrated_on: Text
    """The students, teachers and sources of images that the predictor was calibrated on."""
    obstacles: Sentences
    """Why the predictor does not apply; empty if it does."""
    evidence: Annotated[dict[Text, ProbeEvidence], Field(max_length=50)]

    @property
    def described(self) -> list[str]:
        """The prediction with its interval and its calibration, or why there is none."""
        share = self.disagreement
        if share is None:
            return [f"no prediction for real images: {'; '.join(self.obstacles)}"]
        lines = [
            f"predicted disagreement with the teacher on real images: {percent(share.value)} "
            f"(interval {percent(share.low)} to {percent(share.high)})"
        ]
        if self.top1 is not None:
            lines.append(f"so its top-1 accuracy is from {percent(self.top1.low)} to {percent(self.top1.high)}")
        lines.append(
            f"calibrated on {self.calibrated_on}; such intervals covered {percent(self.coverage)} of the students of "
            "left-out teachers and data sets"
        )
        return lines


class AfterTraining(Stored):
    """How student and teacher compare on synthetic images after training."""

    images: Count
    agreement: Share
    agreement_baseline: Share
    lowest_agreement: Share | None
    """Lowest agreement on the images of one class; None if no class has at least 10."""
    lowest_class: Text | None


class StudentFacts(Trained):
    """The student of a distillation."""

    agreement: Share | None
    """Agreement with the teacher on the last synthesised images, before the student trained on them."""
    agreement_baseline: Share | None
    """Agreement of a constant prediction, the teacher's most frequent class, on the same images."""
    after_training: AfterTraining | None


class DistillTiming(TrainingTiming):
    """Duration of a distillation."""

    synthesis: Seconds
    distillation: Seconds


class SettlingResult(Stored):
    """Whether a run with `until_settled` ended early."""

    most_epochs: PositiveCount
    settled_after: PositiveCount | None
    """Epochs after which the predicted disagreement no longer fell; None if it fell until the end."""
    could_tell: bool = True
    """Whether it was measured after enough epochs to tell."""

    def describe(self, epochs: int) -> str:
        """Return what happened in a run of so many epochs, as a clause."""
        if self.settled_after is None and not self.could_tell:
            return "too few epochs had the highest learning rate to tell whether the predicted disagreement still fell"
        if self.settled_after is None:
            return f"the predicted disagreement still fell after {epochs} epochs, so more may help"
        return (
            f"the predicted disagreement no longer fell after epoch {self.settled_after}, so the run ended after "
            f"{epochs} of at most {self.most_epochs} epochs"
        )


class DistillResult(TrainingResult):
    """The result of `distill`."""

    model_file = "student.safetensors"
    noun = "student"

    command: Literal["distill"] = "distill"
    method: Text
    """The data-free method that synthesised the images."""
    pool: Text | None = None
    """The run whose sample pool was reused."""
    teacher: TeacherFacts
    student: StudentFacts
    failures: Sentences = ()
    """Why the student is not usable; empty if no check failed."""
    warnings: Sentences = ()
    """Failed checks on synthetic images of a student that is usable by its scores on real images."""
    missing_classes: Annotated[tuple[Text, ...], Field(max_length=MOST_COUNTED_CLASSES, fail_fast=True)] = ()
    """Classes that the teacher almost never predicts on the synthetic images."""
    teacher_counts: Counts | None = None
    """Number of images that the teacher assigned to each class; None with more than 1,000 classes."""
    target_counts: Counts | None = None
    """Number of images with each class as the target; None with more than 1,000 classes."""
    quality: QualityFacts | None = None
    """What is expected of the student on real images; None if the run evaluated it on such images."""
    settling: SettlingResult | None = None
    """Whether the run ended early; None if it was not to."""
    images_synthesized: Count
    distillation_steps: Count
    flops: Count | None = None
    """Floating-point operations in teacher and student."""
    timing: DistillTiming

    @property
    def model(self) -> StudentFacts:
        """The model that the run made."""
        return self.student


def load_training_result(run: Path) -> DistillResult | PretrainResult:
    """Read a result of `distill` or `pretrain-teacher`; raise `InputError` if it is missing, damaged or another."""
    command = RunResult.load(run).command
    if command == "distill":
        return DistillResult.load(run)
    if command == "pretrain-teacher":
        return PretrainResult.load(run)
    raise InputError(f"{run} is not a run of distill or pretrain-teacher; name one that is")


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


class PushResult(Stored):
    """The result of `push`."""

    command: Literal["push"] = "push"
    repository: Text
    revision: Text
    """The commit."""
    reference: Text
    """How commands name the model file, with this revision."""
    sha256: Text
    """SHA-256 of the model file."""
    files: tuple[Text, ...]


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
    arguments: dict[str, Any]
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


class QualityResult(QualityFacts, RunFacts):
    """The result of `estimate`."""

    command: Literal["estimate"] = "estimate"
    teacher: ModelFile
    student: ModelFile
    pool: Text | None
    """The run whose pool was used."""
    teacher_top1: Share | None
    """Top-1 accuracy of the teacher, as given."""
    failures: Sentences
    """Why the student is not usable by the run's own checks; empty if none failed or the student is a file."""


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
    provenance: ExportProvenance


class ExportTiming(Stored):
    """Speed of the float32 and the int8 model."""

    images_per_second: BothPrecisions[float]
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
    """None without an int8 model."""


class SpectralDensity(Stored):
    """The density of the eigenvalues of the Hessian, by stochastic Lanczos quadrature."""

    parameters: PositiveCount
    """Number of eigenvalues."""
    starts: Annotated[tuple[_Quadrature, ...], Field(min_length=2, max_length=100, fail_fast=True)]
    """For each random start the nodes, which are estimates of eigenvalues, and their weights, which sum to 1."""


class Curvature(Stored):
    """The curvature of the loss at the centre of a surface."""

    samples: Count
    largest_eigenvalue: Measurement
    """Of the Hessian, with its residual as the error."""
    trace: Measurement
    """Of the Hessian, with its standard error."""
    epsilon_sharpness: float | None = None
    """Relative increase of the loss in a small box; None if not finite."""
    epsilon: float
    """Half the side of the box, relative to |weight| + 1."""
    spectral_density: SpectralDensity | None = None
    """Of the Hessian; None if it was not asked for or is not finite."""
    missing: Text | None = None
    """What could not be measured, and why; None if everything was."""


class Bf16Error(Stored):
    """Difference between some points of a bfloat16 grid and the same points in float32."""

    points: Count
    loss_relative: float | None = None
    """Largest relative difference; None if none is finite."""
    accuracy: float


class CentreFacts(Stored):
    """Measurements around the centre of a surface, besides the grid."""

    radius_of_doubling: float | None = None
    """Distance at which the loss first reaches twice that of the centre; None if not within the grid."""
    curvature: Curvature | None = None
    bf16_error: Bf16Error | None = None
    axis_eigenvalues: Annotated[tuple[Measurement, ...], Field(max_length=2, fail_fast=True)] = ()
    """Of axes along eigenvectors of the Hessian, the eigenvalues, with their residuals as errors."""


class CentreScores(Stored):
    """Loss and accuracy at a centre."""

    loss: float | None
    """None if not finite."""
    accuracy: Share | None


class LocalMinimum(Stored):
    """A local minimum of a grid."""

    coordinates: Coordinates
    loss: float
    at_edge: bool
    """Whether it is at the edge of the grid, so that the loss may be lower outside."""


class Mark(Stored):
    """A marked point."""

    label: Text
    coordinates: Coordinates
    loss: float | None
    """Loss of the marked model itself; None if not finite."""


class SurfaceFacts(CentreFacts):
    """A measured surface."""

    label: Text
    name: Text
    epoch: Count | None
    """Epoch of a snapshot."""
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
    """Share of the training route's variance along each axis, for principal components."""


class LandscapeTiming(Stored):
    """Duration of a landscape."""

    total: Seconds
    surfaces: Seconds
    points_per_second: Seconds | None


class LandscapeResult(RunResult):
    """The result of `landscape`."""

    command: Literal["landscape"] = "landscape"
    data: Text
    """The images on which the loss was measured."""
    samples: PositiveCount
    loss: Text
    """The kind of loss, in words."""
    accuracy: Text
    """The kind of accuracy, in words."""
    surfaces: Annotated[tuple[SurfaceFacts, ...], Field(min_length=1, max_length=1000, fail_fast=True)]
    shared_directions: bool
    """Whether all surfaces have the same directions, each scaled to its own weights."""
    figures: Many[Text]
    timing: LandscapeTiming


class MadeWhere(Stored):
    """Where a cluster has made a run."""

    seed: int
    host: Text
    """The host of the last attempt, as its device."""
    device: Text
    attempts: PositiveCount
    """How often the run was started or resumed."""


class TableEntry(Stored):
    """The results of a cell: mean and sample standard deviation, over seeds, of top-1 after the last epoch."""

    column: Text
    top1: float | None
    deviation: float | None
    """None for fewer than two seeds."""
    published_top1: float | None
    published_deviation: float | None
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    top1_by_seed: tuple[float | None, ...]
    seconds: float | None
    """Mean duration of a run."""
    device: Text | None
    marks: tuple[str, ...]
    """Notes on differences to the published figure, and on students that are not usable."""
    failed: tuple[int, ...]
    """Seeds of failed runs."""
    not_usable: tuple[int, ...]
    """Seeds of runs whose student is not usable."""
    where: tuple[MadeWhere, ...] = ()
    """Where the runs were made, those on a cluster."""


class TrainedEntry(TableEntry):
    """A model trained on real images: the teacher, or the student for comparison."""

    architecture: Text


class MethodEntry(TableEntry):
    """A student distilled without data."""

    method: str
    settings: str
    """Hash of the settings of the runs."""


class TableRow(Stored):
    """A row of the table for one budget and one set of changed settings."""

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
        """The budget, unless it is the full one, and the changed settings."""
        return self.changes if self.budget == "full" else (self.budget, *self.changes)


class TableSummary(Stored):
    """The content of `table.json`: the results of a table so far."""

    format: int
    rows: tuple[TableRow, ...]
    notes: dict[str, str]
    """The text of each mark."""


class TableResult(TableSummary):
    """The result of `table`."""

    command: Literal["table"] = "table"
    failed: dict[str, Text]
    """Why a run failed, by its label."""
    elsewhere: dict[str, Text]
    """The other process that makes a run, by its label."""


@dataclass(frozen=True)
class Part:
    """Steps of one kind in a run."""

    steps: int
    """Number of steps in the run."""
    seconds_per_step: float
    """Measured after the first steps; 0 if there are no steps."""
    first_seconds: float = 0.0
    """Extra time of the first steps, which allocate and compile."""

    @property
    def seconds(self) -> float:
        """Total time of the steps."""
        return self.steps * self.seconds_per_step + self.first_seconds


class EstimateResult(Stored):
    """The estimated cost of a run, as `--estimate` prints it."""

    command: str
    parts: dict[str, Part]
    """Steps by kind."""
    memory_bytes: int
    """Peak memory: of the GPU, or of the process."""
    flops: int | None = None
    device: Text
    precision: str
    compiled: bool
    described: str
    """Device, precision and compilation in words."""

    @property
    def seconds(self) -> float:
        """Total time of the run."""
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
    """The verdict of a report on a run."""

    run: Text
    verdict: Text
    evidence: Literal["real images", "probe images", "synthetic images only", "none"]
    failures: tuple[Text, ...]
    top1: float | None


class ReportResult(Stored):
    """The result of `report`."""

    command: Literal["report"] = "report"
    output: Text
    runs: tuple[ReportedRun, ...]


class LowFalsePositives(Stored):
    """The rates of a membership-inference attack at a low false-positive rate; None with too few non-members."""

    one_in: PositiveCount
    """One false positive in so many non-members is allowed; as many non-members are needed."""
    true_positives: Interval | None
    """Share of the members above the threshold."""
    false_positives: Interval | None
    """Share of the non-members above the threshold."""


Attack = Literal["loss threshold", "LiRA, offline"]
Role = Literal["teacher", "student", "model"]
Space = Literal["pixels", "teacher's features", "shadow model's features"]


class AttackResult(Stored):
    """A membership-inference attack on a model."""

    attack: Attack
    auc: Interval
    """Area under the ROC curve; 0.5 is chance."""
    at_low_false_positives: tuple[LowFalsePositives, ...]


class AuditedModel(ModelFile):
    """A model and the attacks on it."""

    role: Role
    members_top1: Share
    non_members_top1: Share
    attacks: tuple[AttackResult, ...]


class AuditedImages(Stored):
    """Images whose membership is known."""

    data: Text
    split: Text
    images: PositiveCount
    """Number of images, without those that are left out."""
    left_out: Count
    """Images of the non-members that are also members, by their SHA-256."""
    sha256: Text
    """SHA-256 of the images and labels that were used."""


class ClosestPair(Stored):
    """A synthetic image, its nearest member and its nearest non-member."""

    pool_image: Count
    """Its number in the pool, from 0."""
    member: Count
    """Its number among the images that were read, from 0."""
    non_member: Count
    """Its number among the images that were read, from 0."""
    to_member: float
    to_non_member: float


class NeighbourResult(Stored):
    """Distances of synthetic images to members and non-members."""

    space: Space
    """Root mean square difference of pixels in [0, 1], or Euclidean distance of features."""
    images: PositiveCount
    """Number of synthetic images."""
    references: PositiveCount
    """Number of members, and of non-members, among which the neighbours are counted."""
    nearest_is_member: Interval
    """Share of the synthetic images whose nearest neighbour is a member."""
    effective_images: float
    """Number of independent images to which the interval corresponds; images with a common neighbour are not."""
    median_ratio: float
    """Median of the distance to the nearest member divided by that to the nearest non-member."""
    closest: tuple[ClosestPair, ...]
    """Of all members: the pairs that are closest relative to the nearest non-member."""

    @property
    def has_chance_level(self) -> bool:
        """Whether the share is 0.5 for images that are independent of the members.

        The teacher's features are not: it has moved its own training images towards their classes.
        """
        return self.space != "teacher's features"


class ShadowFacts(Stored):
    """The shadow models."""

    models: PositiveCount
    epochs: PositiveCount
    images: PositiveCount
    """Number of training images of each."""
    inside_top1: Share
    """Mean accuracy on their training images."""
    outside_top1: Share
    """Mean accuracy on the other images."""


class AuditTiming(Stored):
    """Duration of an audit."""

    total: Seconds
    shadow_models: Seconds


class AuditResult(RunFacts):
    """The result of `audit`."""

    command: Literal["audit"] = "audit"
    audited: Text
    """The run or the model file."""
    output: Text | None
    """The page."""
    sheet: Text | None
    """The picture of the closest pairs."""
    members: AuditedImages
    non_members: AuditedImages
    models: tuple[AuditedModel, ...]
    shadow: ShadowFacts | None
    """None without shadow models."""
    neighbours: tuple[NeighbourResult, ...]
    """Empty without a pool."""
    findings: tuple[Text, ...]
    """Signs that training images can be recognised; none is no proof of the contrary."""
    notes: tuple[Text, ...]
    """What was not measured, and why."""
    timing: AuditTiming
