"""What the models of a run do with real images, beside their teacher."""

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
from gapssg.files import is_file, sha256_of_file
from gapssg.report.charts import Chart, Line, draw
from gapssg.report.runs import LARGEST_MODEL, TrainingRun
from gapssg.report.settings import ReportSettings
from gapssg.runs.directory import Display
from gapssg.runs.evaluations import keep_evaluations
from gapssg.runs.events import Note
from gapssg.runs.results import DistillResult, EvaluatedModel

_MOST_CLASSES = 100
_MOST_CLASSES_IN_A_MATRIX = 20
_MOST_CONFUSIONS = 20
_FAINTEST, _STRONGEST = 12, 55  # percent: to be seen, and to be read through


class ClassRow(NamedTuple):
    """A class on the real images.

    Attributes:
        name: Its name.
        images: How many there are.
        model: The share of them that the model has right; None without images.
        teacher: The same of the teacher; None without one.
    """

    name: str
    images: int
    model: float | None
    teacher: float | None


class Confusion(NamedTuple):
    """One class taken for another.

    Attributes:
        label: The class.
        prediction: What it was taken for.
        model: How often, by the model.
        teacher: How often, by the teacher; None without one.
    """

    label: str
    prediction: str
    model: int
    teacher: int | None


class Cell(NamedTuple):
    """How often the images of a class were taken for a class.

    Attributes:
        images: How often.
        is_right: Whether it is the same class.
        tint: How strong its colour is, in percent: it grows with the share of the class's images.
    """

    images: int
    is_right: bool
    tint: int


class Matrix(NamedTuple):
    """A confusion matrix.

    Attributes:
        label: Whose.
        rows: A row a class, a cell a prediction.
    """

    label: str
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Evaluation:
    """What the models of a run do with real images; of each model what `gapssg.evaluate` says.

    Attributes:
        data: The data set.
        images: How many images there are.
        class_names: Of the classes.
        noun: What the run made, a student or a model.
        last: Its weights after the last epoch.
        best: Those of the epoch that evaluation chose, if there are any.
        teacher: Its teacher, if that was found.
        teacher_missing: Why there is no teacher beside a student; empty if there is one, or none is wanted.
    """

    data: str
    images: int
    class_names: Sequence[str]
    noun: str
    last: EvaluatedModel
    best: EvaluatedModel | None
    teacher: EvaluatedModel | None
    teacher_missing: str

    @property
    def pair(self) -> list[tuple[str, EvaluatedModel]]:
        """What the run made and, if it was found, the teacher."""
        return [(self.noun, self.last), *([("teacher", self.teacher)] if self.teacher else [])]

    @property
    def models(self) -> list[tuple[str, EvaluatedModel]]:
        """All that were evaluated."""
        return [self.pair[0], *([(f"{self.noun}, best epoch", self.best)] if self.best else []), *self.pair[1:]]

    def classes(self) -> list[ClassRow]:
        """Return the classes in their order; of many, those on which the model is worst, the worst first."""
        rows = self._all_classes()
        if len(rows) <= _MOST_CLASSES:
            return rows
        return sorted(rows, key=lambda row: 2.0 if row.model is None else row.model)[:_MOST_CLASSES]

    def lost(self) -> ClassRow | None:
        """Return the class on which the model is furthest below its teacher; None if it is below on none."""
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
        """Return the confusion matrices of the model and its teacher; none if there are too many classes to show."""
        if len(self.class_names) > _MOST_CLASSES_IN_A_MATRIX:
            return []
        return [
            Matrix(label, [_cells(number, row) for number, row in enumerate(facts.confusion_matrix or ())])
            for label, facts in self.pair
        ]

    def confusions(self) -> list[Confusion]:
        """Return the most frequent confusions of the model, the most frequent first; none of very many classes."""
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
    """Evaluate the models of a run, and its teacher if that is still to be found.

    Raises:
        InputError: A model file or the data cannot be used, or they do not fit each other.
    """
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
    if reason := keep_evaluations(evaluated):
        display.event(Note(message=reason))
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
    """Check that a teacher's file is that of a run.

    Raises:
        InputError: It is not, or cannot be read.
    """
    sha256 = sha256_of_file(teacher, LARGEST_MODEL)
    results = [run.result for run in runs]
    if not any(isinstance(result, DistillResult) and result.teacher.sha256 == sha256 for result in results):
        raise InputError(f"--teacher {teacher} is not the file that taught any of these runs (its SHA-256 is another)")


def _find_teacher(run: TrainingRun, given: Path | None) -> tuple[Path | None, str]:
    """Return the file of a run's teacher, or why there is none."""
    if not isinstance(run.result, DistillResult):
        return None, ""
    recorded = Path(run.result.teacher.file)
    for file in (given, recorded):
        with suppress(InputError):  # the result may be untrusted, and name anything
            if file is not None and sha256_of_file(file, LARGEST_MODEL) == run.result.teacher.sha256:
                return file, ""
    seen_from = "" if recorded.is_absolute() else f" (seen from {Path.cwd()})"
    return None, f"the teacher's file is not, or no longer, at {recorded}{seen_from}; name it with --teacher"
