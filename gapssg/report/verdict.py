"""What can be said of a run in plain words, and by which evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from gapssg.intervals import wilson_interval
from gapssg.report.runs import TrainingRun
from gapssg.runs.results import DistillResult, PretrainResult, ScoresOr
from gapssg.text import percent

if TYPE_CHECKING:
    from gapssg.report.evaluation import ClassRow


class Accuracies(NamedTuple):
    """Top-1 accuracies on the same real images.

    Attributes:
        data: The data set.
        images: How many there are; None where the run did not say.
        model: Of the last weights.
        teacher: Of the teacher; None where it was not evaluated, or there is none.
        balanced: Of the last weights the mean of the accuracies of the classes; None where the run did not say.
        lowest: Of the last weights the lowest accuracy of a class, and its name; None where that is not known.
        failures: What these images say against the model, one sentence each.
        speak_for_it: Whether these images show that the model is usable, whatever synthetic images say.
        lost: The class on which it is furthest below its teacher; None where that is not known, or there is none.
    """

    data: str
    images: int | None
    model: float
    teacher: float | None
    balanced: float | None = None
    lowest: tuple[float, str] | None = None
    failures: Sequence[str] = ()
    speak_for_it: bool = False
    lost: ClassRow | None = None


@dataclass(frozen=True)
class Verdict:
    """What is said at the top.

    Attributes:
        headline: The result in one sentence.
        evidence: What it rests on.
        failures: Why what the run made is not usable; the headline says so where there are any.
        sentences: What else must be known to judge it.
    """

    headline: str
    evidence: Literal["real images", "synthetic images only", "none"]
    sentences: list[str]
    failures: list[str] = field(default_factory=list)


def lowest_class(scores: ScoresOr[Any]) -> tuple[float, str] | None:
    """Return the lowest accuracy of a class and its name; None where no class has images enough."""
    share, name = scores.lowest_recall, scores.lowest_class
    return None if share is None or name is None else (share, name)


def judge(run: TrainingRun, evaluated: Accuracies | None) -> Verdict:
    """Say how good what a run made is, and how that is known.

    Args:
        run: The run.
        evaluated: What was measured for this report; it comes before what the run itself measured.
    """
    result = run.result
    accuracies = evaluated or _own_accuracies(result)
    if accuracies is not None:
        verdict = _of_accuracies(result, accuracies)
    elif isinstance(result, DistillResult):
        verdict = _of_agreement(result)
    else:
        verdict = Verdict("The model was not evaluated, so nothing is known of its accuracy.", "none", [])
    failures, warnings = _failures(result, evaluated)
    doubts = [f"Real images speak for it, synthetic ones against it: {each}." for each in warnings]
    sentences = [*doubts, *verdict.sentences, *_size(result), *_incidents(run)]
    if not failures:
        return Verdict(verdict.headline, verdict.evidence, sentences)
    headline = f"FAILED: the {result.noun} is not usable: {failures[0]}."
    others = [f"{each[0].upper()}{each[1:]}." for each in failures[1:]]
    return Verdict(headline, verdict.evidence, [*others, verdict.headline, *sentences], failures)


def _failures(result: DistillResult | PretrainResult, evaluated: Accuracies | None) -> tuple[list[str], list[str]]:
    """Return failures and warnings: what was found for this report, and what the run found.

    Where the run read no real image, its failures are of synthetic ones, and warnings if real images speak for it now.
    What was a warning is a failure again if real images now speak against it.
    """
    found = [] if evaluated is None else list(evaluated.failures)
    if not isinstance(result, DistillResult):
        return found, []
    if evaluated is not None and evaluated.speak_for_it and result.model.top1 is None:
        return found, [*result.failures, *result.warnings]
    if found:
        return [*found, *result.failures, *result.warnings], []
    return list(result.failures), list(result.warnings)


def _size(result: DistillResult | PretrainResult) -> list[str]:
    """Say by how much a student is smaller than its teacher."""
    if not isinstance(result, DistillResult):
        return []
    student, teacher = result.student, result.teacher
    share = student.parameters / max(1, teacher.parameters)
    return [
        f"It has {student.parameters:,} parameters instead of {teacher.parameters:,} "
        f"({share:.1%}), and takes {student.macs / 1e6:,.1f} million multiply-adds "
        f"an image instead of {teacher.macs / 1e6:,.1f}; how fast it is must be measured where it is to run."
    ]


def _own_accuracies(result: DistillResult | PretrainResult) -> Accuracies | None:
    if result.model.top1 is None or result.data is None:
        return None
    teacher = result.teacher.top1 if isinstance(result, DistillResult) else None
    model, data = result.model, result.data
    return Accuracies(data, None, result.model.top1, teacher, model.balanced_accuracy, lowest_class(model))


def _of_accuracies(result: DistillResult | PretrainResult, accuracies: Accuracies) -> Verdict:
    images = "test images" if accuracies.images is None else f"{accuracies.images:,} test images"
    headline = f"The {result.noun} is right on {percent(accuracies.model)} of the {images} of {accuracies.data}"
    if accuracies.teacher is None:
        headline += "."
    else:
        points = 100 * (accuracies.teacher - accuracies.model)
        distance = (
            f"{abs(points):.1f} points {'below' if points > 0 else 'above'}" if round(points, 1) else "level with"
        )
        headline += f", {distance} its teacher ({percent(accuracies.teacher)})."
    sentences = []
    if accuracies.balanced is not None:
        share, name = accuracies.lowest or (None, "")
        lowest = "" if share is None else f"; the lowest of a class is {percent(share)}, of {name}"
        sentences.append(
            f"Its balanced accuracy, the mean over the classes, is {percent(accuracies.balanced)}{lowest}."
        )
    if accuracies.images is not None:
        low, high = wilson_interval(accuracies.model, accuracies.images)
        sentences.append(
            f"With so many images, the accuracy on all such images lies between {percent(low)} and {percent(high)} "
            "(95 % confidence)."
        )
    lost = accuracies.lost
    if lost is not None and lost.model is not None and lost.teacher is not None:
        sentences.append(
            f"It is furthest below its teacher on class {lost.name}: right on {percent(lost.model)} of {lost.images:,} "
            f"images, the teacher on {percent(lost.teacher)}."
        )
    sentences.append(
        f"{_seen(result, accuracies)} The figure is of the weights after the last epoch, which no image chose."
    )
    model = result.model
    if model.best_top1 is not None and model.best_epoch is not None:
        sentences.append(
            f"The best epoch was {model.best_epoch} of {result.epochs}, with {percent(model.best_top1)}. The "
            "evaluation data chose it, so that figure flatters: compare runs by their last epochs."
        )
    return Verdict(headline, "real images", sentences)


def _seen(result: DistillResult | PretrainResult, accuracies: Accuracies) -> str:
    """Say what training had to do with the images of the evaluation."""
    if isinstance(result, DistillResult):
        return "Distillation saw no real image; if the teacher was trained on these very ones, both figures flatter."
    if accuracies.data == result.data:
        return "Training learned from the training images of the same data, not from these."
    return f"Training learned from images of {result.data}."


def _of_agreement(result: DistillResult) -> Verdict:
    agreement = result.student.agreement
    unknown = (
        "How often the student is right on real images is not known: none was read. "
        "If you have labelled images, add --data to this report."
    )
    if agreement is None:
        why = " (it had trained on every image of the pool)" if result.pool is not None else ""
        return Verdict(f"Nothing independent was measured of the student{why}.", "none", [unknown])
    return Verdict(
        f"The student gave its teacher's answer on {percent(agreement)} of the last synthetic images, "
        f"before it had trained on them{_baseline(result)}.",
        "synthetic images only",
        [
            unknown,
            "Synthetic images are made to be those on which the two differ, and are no sample of real ones: on real "
            "images the agreement may be higher or lower.",
        ],
    )


def _baseline(result: DistillResult) -> str:
    baseline = result.student.agreement_baseline
    return "" if baseline is None else f"; always giving the commonest answer would reach {percent(baseline)}"


def _incidents(run: TrainingRun) -> list[str]:
    sentences = []
    rollbacks = len(run.events.rollbacks)
    if rollbacks:
        times = "once" if rollbacks == 1 else f"{rollbacks} times"
        sentences.append(f"Training diverged and was taken back {times}, each time to go on at half the learning rate.")
    warnings = run.events.warnings
    if warnings:
        last = max(warning.epoch for warning in warnings)
        what = "is 1 warning" if len(warnings) == 1 else f"are {len(warnings)} warnings"
        sentences.append(f"There {what}, the last in epoch {last}: see below.")
    if not run.settings_are_its_own:
        sentences.append("settings.toml is not the one that this result was made with: its SHA-256 is another.")
    return sentences
