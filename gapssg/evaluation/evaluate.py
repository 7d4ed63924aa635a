"""`eval`: scores model files on labelled images, and compares them with a teacher."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gapssg.core.runtime import Runtime
from gapssg.data.image_set import sha256_of_images
from gapssg.errors import InputError, blaming_given_files
from gapssg.evaluation.latency import BATCH_SIZES, SECONDS, measure_latency
from gapssg.evaluation.metrics import (
    Answers,
    answers_of,
    check_finite,
    concatenated,
    confusion_matrix,
    count_by_class,
    expected_calibration_error,
    per_class_accuracy,
    reliability,
    score_answers,
)
from gapssg.evaluation.predict import batch_size_for, naming_a_smaller_batch, predict
from gapssg.evaluation.real_images import check_same_images, read_test_images, warn_of_resizing
from gapssg.evaluation.settings import EvaluateSettings
from gapssg.models.model_file import LoadedModel, load_model
from gapssg.runs.directory import Display, SilentDisplay, run_facts, versions
from gapssg.runs.failures import failures_on_real_images
from gapssg.runs.results.common import FileFacts, Scores
from gapssg.runs.results.evaluation import EvaluatedModel, EvaluateResult, EvaluateTiming, Latency
from gapssg.settings.load import texts_by_key
from gapssg.synthesis.losses import reality_gaps

if TYPE_CHECKING:
    from gapssg.core.processes import Processes

MOST_CLASSES_IN_A_MATRIX = 1000


def evaluate(
    settings: EvaluateSettings, *, display: Display | None = None, processes: Processes | None = None
) -> EvaluateResult:
    """Evaluate model files on the test split of real images.

    Each of `processes` calls this with equal arguments, and gets the result.

    Returns:
        The scores of each file in `models`, and under `timing` their throughput, and their latency if it is wanted.

    Raises:
        InputError: A file or the data cannot be used, they do not match, or logits are not finite.
    """
    display = display or SilentDisplay()
    with nullcontext() if processes is None else processes.all_or_none():
        if settings.latency and processes is not None:
            raise InputError("--latency times the passes of one process; start it without torchrun")
        runtime = Runtime.from_settings(settings.runtime, 0, processes)  # evaluation is deterministic
        models = [load_model(path, settings.model_factories) for path in settings.models]
        teacher = load_model(settings.teacher, settings.model_factories) if settings.teacher is not None else None
        images = read_test_images(settings.data, models[0], display)
        for other in [*models[1:], *([teacher] if teacher is not None else [])]:
            check_same_images(models[0], other)
            warn_of_resizing(settings.data, models[0], other, display)
        images = images.to(runtime.device)
        evaluations = [_Evaluation(model, runtime) for model in models]
        reference = None if teacher is None else _Evaluation(teacher, runtime)
    if processes is not None:
        contents = {"the images' SHA-256": sha256_of_images(images), **runtime.identity()}
        compared = [*models, *([teacher] if teacher is not None else [])]
        contents |= {f"the SHA-256 of model {number}": model.sha256 for number, model in enumerate(compared, 1)}
        processes.check_same({**contents, **versions(), **texts_by_key(settings)})
    # Only the logits of one batch are in memory, because there may be many classes.
    batch_size = settings.batch_size or batch_size_for(images.input_shape)
    for start in range(0, len(images), batch_size):
        display.progress("evaluating", start, len(images))
        batch, labels = (each[start : start + batch_size] for each in (images.images, images.labels))
        with naming_a_smaller_batch(batch_size), blaming_given_files():
            teacher_logits = None
            if reference is not None:
                teacher_logits = reference.logits(batch, start)
                reference.add(teacher_logits, labels, None)
            for evaluation in evaluations:
                evaluation.add(evaluation.logits(batch, start), labels, teacher_logits)
    display.progress("evaluating", len(images), len(images))
    latency = tuple(evaluation.latency(display) for evaluation in evaluations) if settings.latency else None
    return EvaluateResult(
        data=settings.data.name,
        images=len(images),
        class_names=tuple(images.class_names),
        teacher=None if teacher is None else FileFacts(file=str(teacher.path), sha256=teacher.sha256),
        models=_reports(evaluations, reference, images.class_names),
        timing=EvaluateTiming(
            images_per_second=tuple(len(images) / evaluation.seconds for evaluation in evaluations),
            latency=latency,
            threads=torch.get_num_threads(),
        ),
        **dict(run_facts(runtime, settings)),
    )


class _Evaluation:
    """Evaluates a model batch by batch, and keeps only what does not grow with the number of classes."""

    def __init__(self, model: LoadedModel, runtime: Runtime) -> None:
        self.seconds = 0.0
        self.model = model
        self._runtime = runtime
        self._normalization = model.normalization(runtime.device)
        self._module = runtime.compile(runtime.place(model.module))
        self._answers: list[Answers] = []
        self._agrees: list[Tensor] = []
        self._gaps: list[Tensor] = []

    def logits(self, images: Tensor, first: int) -> Tensor:
        """Return the logits (N, K) of a batch of images (N, C, H, W) uint8, of which this is the number of the first.

        Raises `NotFinite` if they are not finite.
        """
        if not self.seconds:
            self._predict(images)  # warm-up
        self._runtime.synchronize()
        started = time.perf_counter()
        logits = self._predict(images)
        self._runtime.synchronize()
        self.seconds += time.perf_counter() - started
        check_finite(logits, str(self.model.path), first)
        return logits

    def add(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> None:
        """Evaluate the logits of a batch, and compare with those of the teacher if there is one."""
        self._answers.append(answers_of(logits, labels))
        if teacher_logits is not None:
            self._agrees.append(logits.argmax(dim=1) == teacher_logits.argmax(dim=1))
            self._gaps.append(reality_gaps(teacher_logits, logits))

    def latency(self, display: Display) -> tuple[Latency, ...]:
        """Return the latency of the model with batches of each size."""
        measured = []
        for number, size in enumerate(BATCH_SIZES):
            display.progress(f"measuring the latency of {self.model.path.name}", number, len(BATCH_SIZES))
            measured.append(measure_latency(self._module, self.model.card.input_shape, self._runtime, size, SECONDS))
        return tuple(measured)

    def scores(self, class_names: Sequence[str]) -> Scores:
        return score_answers(concatenated(self._answers), class_names)

    def report(
        self, class_names: Sequence[str], scores: Scores, judged: tuple[Scores | None, tuple[str, ...]]
    ) -> EvaluatedModel:
        model, answers, classes = self.model, concatenated(self._answers), len(class_names)
        counts = count_by_class(answers.predictions, answers.labels, classes)
        diagram = reliability(answers)
        matrix = None
        if classes <= MOST_CLASSES_IN_A_MATRIX:
            rows = confusion_matrix(answers.predictions, answers.labels, classes).tolist()
            matrix = tuple(map(tuple, rows))
        return EvaluatedModel(
            **model.facts,
            **dict(model.profile),
            **dict(scores),
            expected_calibration_error=expected_calibration_error(diagram),
            reliability=tuple(diagram),
            per_class_accuracy=tuple(per_class_accuracy(counts)),
            images_per_class=tuple(counts.totals),
            confusion_matrix=matrix,
            agreement=torch.cat(self._agrees).double().mean().item() if self._agrees else None,
            reality_gap=torch.cat(self._gaps).mean().item() if self._gaps else None,
            own_teacher=judged[0],
            failures=judged[1],
        )

    def _predict(self, images: Tensor) -> Tensor:
        return predict(self._module, images, self._normalization, self._runtime, len(images))


def _reports(
    evaluations: Sequence[_Evaluation], reference: _Evaluation | None, class_names: Sequence[str]
) -> tuple[EvaluatedModel, ...]:
    evaluated = [*evaluations, *([] if reference is None else [reference])]
    scores = {each.model.sha256: each.scores(class_names) for each in evaluated}
    teacher = None if reference is None else reference.model
    return tuple(
        each.report(class_names, scores[each.model.sha256], _judged(each.model, scores, teacher))
        for each in evaluations
    )


def _judged(
    model: LoadedModel, scores: Mapping[str, Scores], teacher: LoadedModel | None
) -> tuple[Scores | None, tuple[str, ...]]:
    """Return the scores of a student's own teacher, if it was evaluated, and why the student is not usable by them.

    A student is a model that names its teacher, or else one that is compared with a teacher.
    """
    own_teacher = model.card.provenance.teacher_sha256 or (None if teacher is None else teacher.sha256)
    if own_teacher in (None, model.sha256):
        return None, ()
    of_teacher = scores.get(own_teacher)
    return of_teacher, tuple(failures_on_real_images(scores[model.sha256], of_teacher))
