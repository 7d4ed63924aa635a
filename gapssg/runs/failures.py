"""Why the model of a run is not usable: what the run found, and what labelled images have shown since.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gapssg.errors import InputError, shortened
from gapssg.files import LARGEST_FILE, is_file, sha256_of_file
from gapssg.models.description import METADATA_KEY
from gapssg.models.hub import local_file
from gapssg.models.model_path import FINAL_WEIGHTS
from gapssg.models.safetensors_header import read_metadata
from gapssg.runs.directory import Display
from gapssg.runs.evaluations import KeptEvaluation, read_evaluations, weights_of_run
from gapssg.runs.events import Warned
from gapssg.runs.results.common import RESULT, Scores
from gapssg.runs.results.distillation import DistillResult, load_training_result
from gapssg.runs.results.training import PretrainResult
from gapssg.safe_paths import inside
from gapssg.settings.load import SETTINGS
from gapssg.stored import MOST_SENTENCES, Sentences, Stored
from gapssg.text import percent

LEAST_SHARE = 0.1
"""A student that is right on less than this share of a class has not learned it."""
FEWEST_IMAGES_OF_A_CLASS = 10
"""With fewer images a class has no reliable recall: 5 images, each right half the time, are all wrong in 3 %."""


def failures_on_real_images(student: Scores, teacher: Scores | None) -> list[str]:
    """Return why a student is not usable by its scores on labelled images; empty if no criterion fails.

    It fails if its balanced accuracy is not better than chance, or if its recall of a class is below a tenth although
    its teacher's recall is at least a tenth for every class: a student cannot learn what its teacher does not know.
    """
    failures = []
    if not student.better_than_chance:
        is_doubtful = teacher is not None and not teacher.better_than_chance
        of_teacher = "; nor is that of its teacher, so check the labels" if is_doubtful else ""
        failures.append(
            f"the balanced accuracy on real images is {percent(student.balanced_accuracy)}, "
            f"no better than always answering with one class{of_teacher}"
        )
    lowest, teachers = student.lowest_recall, None if teacher is None else teacher.lowest_recall
    if lowest is not None and lowest < LEAST_SHARE and teachers is not None and teachers >= LEAST_SHARE:
        name = shortened(student.lowest_class)
        failures.append(
            f"the student is right on only {percent(lowest)} of the real images of class '{name}', "
            f"its teacher on at least {percent(teachers)} of every class"
        )
    return failures


def passes_on_real_images(student: Scores) -> bool:
    """Tell whether labelled images show that a student is usable, so that synthetic images do not matter.

    They do if its balanced accuracy is better than chance and its recall of every class is at least a tenth, with at
    least 10 images per class.
    """
    return (
        student.better_than_chance
        and student.fewest_images >= FEWEST_IMAGES_OF_A_CLASS
        and student.lowest_recall is not None
        and student.lowest_recall >= LEAST_SHARE
    )


class Known(NamedTuple):
    """What is known of the model of a run, by the run itself and by labelled images since."""

    failures: list[str]
    """Why it is not usable, one sentence each; empty if no criterion fails."""
    warnings: list[str]
    """Failed checks on synthetic images of a model that is usable by its scores on real images."""
    failed_since: list[str]
    """The failures that labelled images have shown since the run, the newest first."""
    usable_on: list[str]
    """The data sets that have shown it usable since."""


def weigh(result: DistillResult | PretrainResult, evaluations: Sequence[KeptEvaluation]) -> Known:
    """Weigh what a run found of its model against its evaluations on labelled images since.

    Real images outweigh synthetic ones. If the run itself read none, and its model has since been shown to be usable,
    its failures are warnings. If real images have since shown failures, its warnings are failures again.
    """
    failed_since = [
        f"{failure} (images of {each.public_data})"
        for each in reversed(evaluations)
        for failure in failures_on_real_images(each.scores, each.teacher)
    ]
    usable_on = [each.public_data for each in evaluations if passes_on_real_images(each.scores)]
    failures, warnings = (result.failures, result.warnings) if isinstance(result, DistillResult) else ((), ())
    if failed_since:
        earlier = [
            each for each in (*failures, *warnings) if not any(failure.startswith(each) for failure in failed_since)
        ]
        failures, warnings = (*failed_since, *earlier), ()
    elif usable_on and result.model.top1 is None:
        failures, warnings = (), (*failures, *warnings)
    return Known(_at_most(failures), _at_most(warnings), failed_since, usable_on)


def _at_most(sentences: Sequence[str]) -> list[str]:
    """Return as many sentences as a result holds; if there are more, the last one counts those left out."""
    left_out = len(sentences) - MOST_SENTENCES + 1
    return list(sentences) if left_out <= 1 else [*sentences[: MOST_SENTENCES - 1], f"and {left_out} more"]


def warn_of_failure(file: Path, display: Display) -> tuple[str, ...] | None:
    """Show the warnings of `doubts_of_run`, and one if its model is not usable; return why, as `known_failures`."""
    for doubt in doubts_of_run(file):
        display.event(doubt)
    failures = known_failures(file)
    if failures:
        display.event(failed(file, failures))
    return failures


def warnings_of_run(file: Path) -> Iterator[Warned]:
    """Yield the warnings of `doubts_of_run`, and one if its model is known not to be usable."""
    yield from doubts_of_run(file)
    if failures := known_failures(file):
        yield failed(file, failures)


def doubts_of_run(file: Path) -> Iterator[Warned]:
    """Yield a warning if the run of a model file is not finished, or what is known of its model cannot be read."""
    try:
        if _is_unfinished(file):
            sentence = f"{file.parent} is not finished, and {file.name} is of an earlier end; finish it with --resume"
            yield Warned(epoch=0, message=sentence)
        failures_of_run(file)
    except InputError as error:
        yield Warned(epoch=0, message=f"what the run of {file} found is not known: {error}")


def failed(file: Path, failures: Sequence[str]) -> Warned:
    """Return the warning that a file has a model that is not usable."""
    return Warned(epoch=0, message=f"FAILED: {file} is not usable: {'; '.join(failures)}")


def failures_of_run(file: Path) -> tuple[str, ...]:
    """Return why the model of a run is not usable; nothing if the file is not of a finished run.

    Of a copy outside its run, or on the Hub, only what the run itself found is known, from the file's description.
    Raises `InputError` if the result or the evaluations of the run are damaged, a link leads to them, or the file is
    not the one that the run wrote.
    """
    return _failures(file, with_evaluations=True)


def run_of_student(file: Path) -> Path | None:
    """Return the directory of the finished run whose student a file is; None if it is not in one."""
    weights = weights_of_run(file)
    return None if weights is None or weights.name != DistillResult.model_file else weights.parent


def known_failures(file: Path) -> tuple[str, ...] | None:
    """Return why the model of a run is not usable, as `failures_of_run`; None if what is known is damaged.

    If only the evaluations are damaged, the failures that the run itself found are still known, and those in the
    description of the file if the result is damaged or of another model.
    """
    with suppress(InputError):
        return failures_of_run(file)
    with suppress(InputError):
        if failures := _failures(file, with_evaluations=False):
            return failures
    with suppress(InputError):
        return _described_failures(file) or None
    return None


def _failures(file: Path, *, with_evaluations: bool) -> tuple[str, ...]:
    weights = weights_of_run(file)
    if weights is None:
        return _described_failures(file)
    result, sha256 = load_training_result(weights.parent), sha256_of_file(weights, LARGEST_FILE)
    result.model.check_is(file, sha256)
    return tuple(weigh(result, read_evaluations(weights.parent, sha256) if with_evaluations else ()).failures)


class _Description(Stored):
    """The part of a model's description that a run has added."""

    failures: Sentences = ()


def _described_failures(file: Path) -> tuple[str, ...]:
    """Return the failures in the description of a model file outside its run; none of a file of another kind."""
    path = local_file(file, fetch=False)
    text = read_metadata(path).get(METADATA_KEY) if is_file(path) else None
    return () if text is None else _Description.read(text.encode(errors="replace"), str(file)).failures


def _is_unfinished(file: Path) -> bool:
    """Tell whether a file has the final weights of a run that was resumed and did not end."""
    run = inside(file.parent)
    return file.name in FINAL_WEIGHTS and is_file(run / SETTINGS) and not is_file(run / RESULT)
