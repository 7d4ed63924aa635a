"""The evaluation of a run's models on real images, beside their teacher."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gapssg.data.settings import DataSettings
from gapssg.errors import InputError
from gapssg.evaluation.evaluate import evaluate
from gapssg.evaluation.settings import EvaluateSettings
from gapssg.files import LARGEST_FILE, is_file, sha256_of_file
from gapssg.models.model_path import model_file
from gapssg.models.reference import MODULE
from gapssg.report.charts import Chart, Line, draw
from gapssg.report.runs import TrainingRun
from gapssg.report.settings import ReportSettings
from gapssg.runs.directory import Display
from gapssg.runs.evaluations import KeptEvaluation, keep_evaluations, to_keep
from gapssg.runs.events import Note
from gapssg.runs.results.distillation import DistillResult
from gapssg.runs.results.evaluation import EvaluatedModel
from gapssg.text import has_top5

_MOST_CLASSES = 100
_MOST_CLASSES_IN_A_MATRIX = 20
_MOST_CONFUSIONS = 20
_FAINTEST, _STRONGEST = 12, 55  # percent: visible, and legible


class ClassRow(NamedTuple):
    """The accuracy of the model and of its teacher on the images of a class; None if not known."""

    name: str
    images: int
    model: float | None
    teacher: float | None


class Confusion(NamedTuple):
    """How often the model and its teacher take one class for another."""

    label: str
    prediction: str
    model: int
    teacher: int | None


class Cell(NamedTuple):
    """A cell of a confusion matrix; the tint in percent grows with the share of the class's images."""

    images: int
    is_right: bool
    tint: int


class Matrix(NamedTuple):
    """The confusion matrix of a model: a row for each class, a cell for each prediction."""

    label: str
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Evaluation:
    """The models of a run on real images, as `gapssg.evaluate` measures them."""

    data: str
    """The data set."""
    images: int
    """The number of images."""
    class_names: Sequence[str]
    """The names of the classes."""
    noun: str
    """What the run made: student or model."""
    last: EvaluatedModel
    """The weights after the last epoch."""
    best: EvaluatedModel | None
    """The weights of the epoch selected by evaluation, if there are any."""
    teacher: EvaluatedModel | None
    """The teacher, if it was found."""
    teacher_missing: str
    """Why a student has no teacher beside it; else empty."""

    @property
    def kept(self) -> KeptEvaluation:
        """What is kept of the last weights and the teacher."""
        return to_keep(self.last, self.data, self.images)

    @property
    def pair(self) -> list[tuple[str, EvaluatedModel]]:
        """The last weights and, if it was found, the teacher."""
        return [(self.noun, self.last), *([("teacher", self.teacher)] if self.teacher else [])]

    @property
    def models(self) -> list[tuple[str, EvaluatedModel]]:
        """All evaluated models."""
        return [self.pair[0], *([(f"{self.noun}, best epoch", self.best)] if self.best else []), *self.pair[1:]]

    def classes(self) -> list[ClassRow]:
        """Return the classes in order; of many, those on which the model is worst, the worst first."""
        rows = self._all_classes()
        if len(rows) <= _MOST_CLASSES:
            return rows
        return sorted(rows, key=lambda row: 2.0 if row.model is None else row.model)[:_MOST_CLASSES]

    def lost(self) -> ClassRow | None:
        """Return the class on which the model is furthest below its teacher, if there is one."""
        below = [
            (row.teacher - row.model, -number, row)
            for number, row in enumerate(self._all_classes())
            if row.model is not None and row.teacher is not None and row.model < row.teacher
        ]
        return max(below)[2] if below else None

    def _all_classes(self) -> list[ClassRow]:
        teacher = self.teacher
        return [
            ClassRow(
                name,
                self.last.images_per_class[number],
                self.last.per_class_accuracy[number],
                None if teacher is None else teacher.per_class_accuracy[number],
            )
            for number, name in enumerate(self.class_names)
        ]

    def matrices(self) -> list[Matrix]:
        """Return the confusion matrices of the model and its teacher; none if there are too many classes."""
        if len(self.class_names) > _MOST_CLASSES_IN_A_MATRIX:
            return []
        return [
            Matrix(label, [_cells(number, row) for number, row in enumerate(facts.confusion_matrix or ())])
            for label, facts in self.pair
        ]

    def confusions(self) -> list[Confusion]:
        """Return the most frequent confusions of the model, the most frequent first."""
        matrix = self.last.confusion_matrix or ()
        teacher = None if self.teacher is None else self.teacher.confusion_matrix
        wrong = [
            (count, row, column)
            for row, counts in enumerate(matrix)
            for column, count in enumerate(counts)
            if count and row != column
        ]
        wrong.sort(key=lambda each: (-each[0], each[1:]))
        names = self.class_names
        return [
            Confusion(names[row], names[column], count, None if teacher is None else teacher[row][column])
            for count, row, column in wrong[:_MOST_CONFUSIONS]
        ]

    @property
    def has_top5(self) -> bool:
        """Whether a top-5 accuracy says anything."""
        return has_top5(len(self.class_names))

    def reliability(self) -> Chart | None:
        """Draw accuracy by confidence, of the model and its teacher."""
        lines = [Line("perfectly calibrated", {0.0: 0.0, 100.0: 1.0}, 5, is_dashed=True)]
        for number, (label, facts) in enumerate(self.pair):
            bins = [each for each in facts.reliability if each is not None]
            accuracies = {100 * each.confidence: each.accuracy for each in bins}
            weights = {100 * each.confidence: each.samples / self.images for each in bins}
            lines.append(Line(label, accuracies, number, weights=weights))
        return draw("Accuracy by confidence", lines, across="confidence, %", percent=True, from_zero=True)


def evaluate_run(run: TrainingRun, data: DataSettings, settings: ReportSettings, display: Display) -> Evaluation:
    """Evaluate a run's models, and its teacher if it is found; raise `InputError` if a file or the data do not fit."""
    best = run.best_file if is_file(run.best_file) else None
    teacher, missing = _find_teacher(run, settings.teacher)
    files = [file for file in (run.model_file, best, teacher) if file is not None]
    evaluated = evaluate(
        EvaluateSettings(
            models=tuple(files),
            data=data,
            teacher=teacher,
            model_factories=settings.model_factories,
            batch_size=settings.batch_size,
            runtime=settings.runtime,
        ),
        display=display,
    )
    for message in keep_evaluations(evaluated):
        display.event(Note(message=message))
    found = dict(zip(files, evaluated.models, strict=True))
    return Evaluation(
        data=evaluated.data,
        images=evaluated.images,
        class_names=evaluated.class_names,
        noun=run.result.noun,
        last=found[run.model_file],
        best=None if best is None else found[best],
        teacher=None if teacher is None else found[teacher],
        teacher_missing=missing,
    )


def _cells(label: int, counts: Sequence[int]) -> list[Cell]:
    images = max(1, sum(counts))
    tints = [_FAINTEST + round((_STRONGEST - _FAINTEST) * count / images) for count in counts]
    return [Cell(count, column == label, tints[column]) for column, count in enumerate(counts)]


def check_teacher(runs: Sequence[TrainingRun], teacher: Path) -> None:
    """Raise `InputError` unless the file can be read and is the teacher of one of the runs."""
    sha256 = sha256_of_file(model_file(teacher), LARGEST_FILE)
    results = [run.result for run in runs]
    if not any(isinstance(result, DistillResult) and result.teacher.sha256 == sha256 for result in results):
        raise InputError(f"--teacher {teacher} is not the teacher of any of these runs (its SHA-256 differs)")


def _find_teacher(run: TrainingRun, given: Path | None) -> tuple[Path | None, str]:
    """Return the file of a run's teacher, or why it is missing."""
    if not isinstance(run.result, DistillResult):
        return None, ""
    recorded = Path(run.result.teacher.file)
    if recorded == Path(MODULE):
        return None, "the teacher was a module of a Python program, without a file"
    for file in (given, recorded):
        with suppress(InputError):  # the result may be untrusted, and name anything
            found = None if file is None else model_file(file, fetch=file is given)
            if found is not None and sha256_of_file(found, LARGEST_FILE) == run.result.teacher.sha256:
                return found, ""
    seen_from = "" if recorded.is_absolute() else f" (seen from {Path.cwd()})"
    return None, f"the teacher's file is not at {recorded}{seen_from}; name it with --teacher"
