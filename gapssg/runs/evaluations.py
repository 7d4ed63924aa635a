"""Scores of a run's model on real images after the run: `eval` and `report` save them for the model card.

Imports no torch.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from gapssg.errors import InputError, RunError
from gapssg.files import is_file, read_bounded, write_json
from gapssg.models.model_path import FINAL_WEIGHTS
from gapssg.runs.directory import CARD, Display
from gapssg.runs.events import Warned
from gapssg.runs.results.common import RESULT, Scores
from gapssg.runs.results.distillation import DistillResult
from gapssg.runs.results.evaluation import EvaluatedModel, EvaluateResult
from gapssg.runs.results.training import PretrainResult
from gapssg.safe_paths import inside
from gapssg.settings.load import SETTINGS
from gapssg.stored import Count, Stored, Text

_FILE = "evaluations.json"
_MOST = 20
_MOST_BYTES = 2**20


class Evaluation(Stored):
    """The scores of a model on a data set."""

    sha256: Text
    """SHA-256 of the model file."""
    data: Text
    images: Count
    scores: Scores
    teacher: Scores | None = None
    """Scores of the teacher on the same images, if it was evaluated too."""


class _Evaluations(Stored):
    evaluations: Annotated[tuple[Evaluation, ...], Field(max_length=_MOST)] = ()


def read_evaluations(run: Path, sha256: str) -> list[Evaluation]:
    """Return the last evaluation on each data set, oldest first, of the model file of a run with this hash.

    Raises `InputError` if the file of the run, which may be untrusted, is damaged, or a link leads to it.
    """
    file = inside(run) / _FILE
    if not is_file(file):
        return []
    try:
        kept = _Evaluations.read(read_bounded(file, _MOST_BYTES), str(file))
    except InputError as error:
        raise InputError(f"{error}; gapssg eval replaces it") from error
    return [each for each in kept.evaluations if each.sha256 == sha256]


def warn_of_failure(file: Path, display: Display) -> None:
    """Show the warnings of `warnings_of_run`."""
    for warning in warnings_of_run(file):
        display.event(warning)


def warnings_of_run(file: Path) -> Iterator[Warned]:
    """Yield a warning if the run of a model file is not finished, found a student not usable, or cannot be read."""
    try:
        if _is_unfinished(file):
            sentence = f"{file.parent} is not finished, and {file.name} is of an earlier end; finish it with --resume"
            yield Warned(epoch=0, message=sentence)
        if failures := failures_of_run(file):
            yield failed(file, failures)
    except InputError as error:
        yield Warned(epoch=0, message=f"what its run found of {file} is not known: {error}")


def failed(file: Path, failures: Sequence[str]) -> Warned:
    """Return the warning that a file has a student that its run found not usable."""
    return Warned(epoch=0, message=f"FAILED: {file} is not usable: {'; '.join(failures)}")


def failures_of_run(file: Path) -> tuple[str, ...]:
    """Return the failures that the run of a student found; nothing if the file is not that of a finished run.

    Raises `InputError` if the result of the run is damaged, or a link leads to it.
    """
    run = run_of_student(file)
    return () if run is None else DistillResult.load(run).failures


def run_of_student(file: Path) -> Path | None:
    """Return the directory of the finished run whose student a file is; None if it is not in one."""
    is_of_run = file.name == DistillResult.model_file and os.path.lexists(file.parent / RESULT)
    return file.parent if is_of_run else None


def known_failures(file: Path) -> tuple[str, ...] | None:
    """Return the failures that the run of a student found, as `failures_of_run`; None if its result is damaged."""
    try:
        return failures_of_run(file)
    except InputError:
        return None


def _is_unfinished(file: Path) -> bool:
    """Tell whether a file has the final weights of a run that was resumed and did not end."""
    run = inside(file.parent)
    return file.name in FINAL_WEIGHTS and is_file(run / SETTINGS) and not is_file(run / RESULT)


def keep_evaluations(result: EvaluateResult) -> list[str]:
    """Save the scores of models that are the final weights of a run in the directory of the run.

    Returns which scores could not be saved and why, and which model cards do not have them yet.
    """
    messages = []
    teacher_sha256 = None if result.teacher is None else result.teacher.sha256
    teacher = next((_scores(model) for model in result.models if model.sha256 == teacher_sha256), None)
    for model in result.models:
        file = Path(model.file)
        run = inside(file.parent)
        if file.name not in (DistillResult.model_file, PretrainResult.model_file) or not (run / RESULT).is_file():
            continue
        try:
            kept = read_evaluations(run, model.sha256)
        except InputError:  # a damaged file is replaced: its scores can be measured again
            kept = []
        found = Evaluation(
            sha256=model.sha256,
            data=result.data,
            images=result.images,
            scores=_scores(model),
            teacher=None if model.sha256 == teacher_sha256 else teacher,
        )
        is_new = found not in kept
        kept = [*(each for each in kept if each.data != result.data), found][-_MOST:]
        try:
            write_json(run / _FILE, _Evaluations(evaluations=tuple(kept)).model_dump(mode="json"))
        except RunError as error:
            messages.append(f"the scores were not saved for the model card: {error}")
        else:
            if is_new and _has_card(run):
                again = f"gapssg card {shlex.quote(str(run))} --overwrite"
                messages.append(f"the model card in {run} does not have these scores yet; rewrite it with: {again}")
    return messages


def _has_card(run: Path) -> bool:
    try:
        return is_file(run / CARD)
    except InputError:  # a link or a device, which is no card that this program wrote
        return False


def _scores(model: EvaluatedModel) -> Scores:
    return Scores(**{name: getattr(model, name) for name in Scores.model_fields})
