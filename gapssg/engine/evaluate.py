"""`eval`: what is said of model files on labelled images, and of a student beside its teacher."""

from __future__ import annotations

import time

from torch import Tensor

from gapssg.augment import Normalization
from gapssg.data.image_set import ImageSet
from gapssg.engine.inference import predict
from gapssg.engine.metrics import (
    agreement,
    confusion_matrix,
    expected_calibration_error,
    per_class_accuracy,
    reliability,
    score,
)
from gapssg.engine.real_images import check_same_images, read_test_images
from gapssg.engine.run_directory import Display, SilentDisplay, run_facts
from gapssg.engine.settings import EvaluateSettings
from gapssg.models.model_file import LoadedModel, load_model
from gapssg.models.profile import profile_model
from gapssg.runs.results import EvaluatedModel, EvaluateResult, EvaluateTiming, FileFacts
from gapssg.runtime import Runtime
from gapssg.synthesis.losses import reality_gap


def evaluate(settings: EvaluateSettings, *, display: Display | None = None) -> EvaluateResult:
    """Evaluate model files on the test split of real images.

    Returns:
        What is said of each file, in `models`, and how fast it was, under `timing`.

    Raises:
        InputError: A file or the data cannot be used, or they do not fit each other.
    """
    display = display or SilentDisplay()
    runtime = Runtime.from_settings(settings.runtime, seed=0)  # evaluation draws nothing
    models = [load_model(path, settings.model_factories) for path in settings.models]
    teacher = load_model(settings.teacher, settings.model_factories) if settings.teacher is not None else None
    images = read_test_images(settings.data, models[0], display)
    for other in [*models[1:], *([teacher] if teacher is not None else [])]:
        check_same_images(models[0], other)
    images = images.to(runtime.device)
    teacher_logits = _timed_logits(teacher, images, settings, runtime)[0] if teacher is not None else None
    reports = []
    for done, model in enumerate(models):
        display.progress("evaluating", done, len(models))
        reports.append(_report(model, images, teacher_logits, settings, runtime))
    display.progress("evaluating", len(models), len(models))
    return EvaluateResult(
        data=settings.data.name,
        images=len(images),
        class_names=tuple(images.class_names),
        teacher=None if teacher is None else FileFacts(file=str(teacher.path), sha256=teacher.sha256),
        models=tuple(report for report, _ in reports),
        timing=EvaluateTiming(images_per_second=tuple(rate for _, rate in reports)),
        **dict(run_facts(runtime, settings)),
    )


def _report(
    model: LoadedModel,
    images: ImageSet,
    teacher_logits: Tensor | None,
    settings: EvaluateSettings,
    runtime: Runtime,
) -> tuple[EvaluatedModel, float]:
    logits, seconds = _timed_logits(model, images, settings, runtime)
    diagram = reliability(logits, images.labels)
    confusion = confusion_matrix(logits.argmax(dim=1), images.labels, images.num_classes)
    report = EvaluatedModel(
        file=str(model.path),
        sha256=model.sha256,
        architecture=model.card.architecture,
        **dict(profile_model(model.module, model.card.input_shape)),
        **dict(score(logits, images.labels, images.class_names)),
        expected_calibration_error=expected_calibration_error(diagram),
        reliability=tuple(diagram),
        per_class_accuracy=tuple(per_class_accuracy(confusion)),
        confusion_matrix=tuple(map(tuple, confusion.tolist())),
        agreement=None if teacher_logits is None else agreement(logits, teacher_logits),
        reality_gap=None if teacher_logits is None else reality_gap(teacher_logits, logits).item(),
    )
    return report, len(images) / seconds


def _timed_logits(
    model: LoadedModel, images: ImageSet, settings: EvaluateSettings, runtime: Runtime
) -> tuple[Tensor, float]:
    card = model.card
    normalization = Normalization.from_statistics(card.mean, card.deviation, runtime.device)
    module = runtime.compile(runtime.place(model.module))
    first = images.images[: settings.batch_size]
    predict(module, first, normalization, runtime, settings.batch_size)  # the first batch pays for the set-up
    runtime.synchronize()
    started = time.perf_counter()
    logits = predict(module, images.images, normalization, runtime, settings.batch_size)
    runtime.synchronize()
    return logits, time.perf_counter() - started
