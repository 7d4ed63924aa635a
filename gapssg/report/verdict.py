"""The verdict on a run in plain words, and its evidence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from gapssg.data import public_name, whole_name
from gapssg.intervals import wilson_interval
from gapssg.report.runs import TrainingRun
from gapssg.runs.failures import Known
from gapssg.runs.results.common import ScoresOr
from gapssg.runs.results.distillation import DistillResult
from gapssg.runs.results.training import PretrainResult
from gapssg.text import percent

if TYPE_CHECKING:
    from gapssg.report.evaluation import ClassRow


class Accuracies(NamedTuple):
    """Accuracies on the same real images; what is not known is None."""

    data: str
    """The data set."""
    images: int | None
    """The number of images."""
    scores: ScoresOr[Any]
    """The scores of the last weights, evaluated at least for top-1."""
    teacher: float | None
    """Top-1 accuracy of the teacher, in [0, 1]."""
    lost: ClassRow | None = None
    """The class on which the model is furthest below its teacher."""


@dataclass(frozen=True)
class Verdict:
    """The result of a run in one sentence, its evidence, further sentences, and why the model is not usable."""

    headline: str
    evidence: Literal["real images", "probe images", "synthetic images only", "none"]
    sentences: list[str]
    failures: list[str] = field(default_factory=list)


def judge(run: TrainingRun, evaluated: Accuracies | None, known: Known) -> Verdict:
    """Judge the model of a run by what is known of it; accuracies `evaluated` since replace those of the run."""
    result = run.result
    accuracies = evaluated or _own_accuracies(result)
    if accuracies is not None:
        verdict = _of_accuracies(result, accuracies)
    elif isinstance(result, DistillResult):
        verdict = _of_agreement(result)
    else:
        verdict = Verdict("The model was not evaluated, so nothing is known of its accuracy.", "none", [])
    failures = known.failures
    doubts = [
        f"It is usable on real images, in spite of what synthetic images showed: {each}." for each in known.warnings
    ]
    sentences = [*doubts, *verdict.sentences, *_size(result), *_settling(result), *_incidents(run)]
    if not failures:
        return Verdict(verdict.headline, verdict.evidence, sentences)
    headline = f"FAILED: the {result.noun} is not usable: {failures[0]}."
    others = [f"{each[0].upper()}{each[1:]}." for each in failures[1:]]
    return Verdict(headline, verdict.evidence, [*others, verdict.headline, *sentences], failures)


def _size(result: DistillResult | PretrainResult) -> list[str]:
    if not isinstance(result, DistillResult):
        return []
    student, teacher = result.student, result.teacher
    share = student.parameters / max(1, teacher.parameters)
    return [
        f"It has {student.parameters:,} parameters instead of {teacher.parameters:,} "
        f"({percent(share)}), and takes {student.macs / 1e6:,.1f} million multiply-adds "
        f"an image instead of {teacher.macs / 1e6:,.1f}; measure its speed on the target hardware."
    ]


def _own_accuracies(result: DistillResult | PretrainResult) -> Accuracies | None:
    if result.model.top1 is None or result.data is None:
        return None
    teacher = result.teacher.top1 if isinstance(result, DistillResult) else None
    return Accuracies(result.data, None, result.model, teacher)


def _of_accuracies(result: DistillResult | PretrainResult, accuracies: Accuracies) -> Verdict:
    scores = accuracies.scores
    images = "test images" if accuracies.images is None else f"{accuracies.images:,} test images"
    headline = f"The {result.noun} is right on {percent(scores.top1)} of the {images} of {public_name(accuracies.data)}"
    if accuracies.teacher is None:
        headline += "."
    else:
        points = 100 * (accuracies.teacher - scores.top1)
        distance = (
            f"{abs(points):.1f} points {'below' if points > 0 else 'above'}" if round(points, 1) else "level with"
        )
        headline += f", {distance} its teacher ({percent(accuracies.teacher)})."
    sentences = []
    if scores.balanced_accuracy is not None:
        lowest = f"; the lowest of a class is {percent(scores.lowest_recall)}, of {scores.lowest_class}"
        balanced = f"{percent(scores.balanced_accuracy)}{'' if scores.lowest_recall is None else lowest}"
        sentences.append(f"Its balanced accuracy, the mean over the classes, is {balanced}.")
    if accuracies.images is not None:
        low, high = wilson_interval(scores.top1, accuracies.images)
        sentences.append(
            f"The 95 % confidence interval of the accuracy on such images is {percent(low)} to {percent(high)}."
        )
    lost = accuracies.lost
    if lost is not None and lost.model is not None and lost.teacher is not None:
        sentences.append(
            f"It is furthest below its teacher on class {lost.name}: right on {percent(lost.model)} of {lost.images:,} "
            f"images, the teacher on {percent(lost.teacher)}."
        )
    sentences.append(
        f"{_seen(result, accuracies)} The figure is of the weights after the last epoch, not selected on any image."
    )
    model = result.model
    if model.best_top1 is not None and model.best_epoch is not None:
        sentences.append(
            f"The best epoch was {model.best_epoch} of {result.epochs}, with {percent(model.best_top1)}. It was "
            "selected on the evaluation data, so that figure is optimistic: compare runs by their last epochs."
        )
    return Verdict(headline, "real images", sentences)


def _seen(result: DistillResult | PretrainResult, accuracies: Accuracies) -> str:
    """Return whether training used the images of the evaluation."""
    if isinstance(result, DistillResult):
        return "Distillation used no real image; if the teacher was trained on these, both figures are optimistic."
    if result.data is not None and whole_name(accuracies.data) == whole_name(result.data):
        return "Training used the training images of the same data, not these."
    return f"Training used images of {result.data}."


def _of_agreement(result: DistillResult) -> Verdict:
    agreement, quality = result.student.agreement, result.quality
    unknown = (
        "The accuracy on real images is not known: none was read. "
        "If you have labelled images, add --data to this report."
    )
    if quality is not None and quality.disagreement is not None:
        headline, *others = (f"{line[0].upper()}{line[1:]}." for line in quality.described)
        return Verdict(headline, "probe images", [*others, unknown])
    if agreement is None:
        why = " (it had trained on every image of the pool)" if result.pool is not None else ""
        return Verdict(f"No independent measurement of the student exists{why}.", "none", [unknown])
    return Verdict(
        f"The student gave its teacher's answer on {percent(agreement)} of the last synthetic images, "
        f"before it had trained on them{_baseline(result)}.",
        "synthetic images only",
        [
            unknown,
            "Synthetic images are not a sample of real ones, and many methods choose those on which the two differ: "
            "on real images the agreement may be higher or lower.",
        ],
    )


def _baseline(result: DistillResult) -> str:
    baseline = result.student.agreement_baseline
    return "" if baseline is None else f"; always giving the commonest answer would reach {percent(baseline)}"


def _settling(result: DistillResult | PretrainResult) -> list[str]:
    if not isinstance(result, DistillResult) or result.settling is None:
        return []
    clause = result.settling.describe(result.epochs)
    return [f"{clause[0].upper()}{clause[1:]}."]


def _incidents(run: TrainingRun) -> list[str]:
    sentences = []
    rollbacks = len(run.events.rollbacks)
    if rollbacks:
        times = "once" if rollbacks == 1 else f"{rollbacks} times"
        sentences.append(f"Training diverged and was rolled back {times}, each time to half the learning rate.")
    warnings = run.events.warnings
    if warnings:
        last = max(warning.epoch for warning in warnings)
        what = "is 1 warning" if len(warnings) == 1 else f"are {len(warnings)} warnings"
        sentences.append(f"There {what}, the last in epoch {last}: see below.")
    if not run.settings_are_its_own:
        sentences.append("settings.toml was changed after the run: its SHA-256 differs.")
    return sentences
