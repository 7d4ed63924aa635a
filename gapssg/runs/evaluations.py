"""Scores of a run's model on real images after the run, as `eval` and `report` save them.

Imports no torch.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

from pydantic import Field

from gapssg.data import public_name, whole_name
from gapssg.errors import InputError, RunError
from gapssg.files import is_file, read_bounded, write_json
from gapssg.models.model_path import FINAL_WEIGHTS
from gapssg.runs.directory import CARD
from gapssg.runs.results.common import RESULT, Scores
from gapssg.runs.results.distillation import load_training_result
from gapssg.runs.results.evaluation import EvaluatedModel, EvaluateResult
from gapssg.safe_paths import inside
from gapssg.stored import Count, Stored, Text

_FILE = "evaluations.json"
_MOST = 500
_MOST_BYTES = 4 * 2**20


class KeptEvaluation(Stored):
    """The scores of a model on a data set."""

    sha256: Text
    """SHA-256 of the model file."""
    data: Text
    images: Count
    scores: Scores
    teacher: Scores | None = None
    """Scores of the teacher on the same images, if it was evaluated then or earlier."""

    @property
    def public_data(self) -> str:
        """The data set; of a folder only the last part of its path, because the path is private."""
        return public_name(self.data)

    def is_on_same_images(self, other: KeptEvaluation) -> bool:
        """Tell whether another evaluation of the model was on the same images, and not on others under their name.

        Its loss differs on other labels, even if it answers with one class; on other hardware it may differ, too.
        """
        return (whole_name(self.data), self.images, self.scores) == (whole_name(other.data), other.images, other.scores)


class _Evaluations(Stored):
    evaluations: Annotated[tuple[KeptEvaluation, ...], Field(max_length=_MOST)] = ()


def read_evaluations(run: Path, sha256: str) -> list[KeptEvaluation]:
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


def weights_of_run(file: Path) -> Path | None:
    """Return the final weights of a finished run that a path leads to, perhaps by a link; None for any other file.

    A link beside the result of a run is not followed: the directory may be untrusted.
    """
    if not os.path.lexists(file.parent / RESULT):
        file = file.resolve()
    return file if file.name in FINAL_WEIGHTS and os.path.lexists(file.parent / RESULT) else None


def keep_evaluations(result: EvaluateResult) -> list[str]:
    """Save the scores of models that are the final weights of a run in the directory of the run.

    Returns which scores could not be saved and why, and which model cards do not have them yet.
    """
    messages = []
    for model in result.models:
        weights = weights_of_run(Path(model.file))
        if weights is None:
            continue
        run = inside(weights.parent)
        try:
            load_training_result(run).model.check_is(weights, model.sha256)
        except InputError as error:
            messages.append(f"the scores were not saved in the run: {error}")
            continue
        try:
            kept = read_evaluations(run, model.sha256)
        except InputError:  # a damaged file is replaced: its scores can be measured again
            kept = []
        found = to_keep(model, result.data, result.images)
        earlier = next((each for each in kept if each.is_on_same_images(found)), None)
        if found.teacher is None and earlier is not None:
            found = found.model_copy(update={"teacher": earlier.teacher})
        is_new = found not in kept
        kept = [*(each for each in kept if whole_name(each.data) != found.data), found][-_MOST:]
        try:
            write_json(run / _FILE, _Evaluations(evaluations=tuple(kept)).model_dump(mode="json"))
        except RunError as error:
            messages.append(f"the scores were not saved in the run: {error}")
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


def to_keep(model: EvaluatedModel, data: str, images: int) -> KeptEvaluation:
    """Return what is kept of a model that was evaluated on so many images of a data set.

    A folder is named by its whole path, because another one may have the same name in another working directory.
    """
    scores = Scores(**{name: getattr(model, name) for name in Scores.model_fields})
    return KeptEvaluation(
        sha256=model.sha256, data=whole_name(data), images=images, scores=scores, teacher=model.own_teacher
    )
