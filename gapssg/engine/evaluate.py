"""`eval`: what is said of model files on labelled images, and of a student beside its teacher."""

from __future__ import annotations

import time
from typing import Any

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
from gapssg.runtime import Runtime
from gapssg.synthesis.losses import reality_gap


def evaluate(settings: EvaluateSettings, *, display: Display | None = None) -> dict[str, Any]:
    """Evaluate model files on the test split of real images.

    Returns:
        `models`: for each file its accuracies (fractions in [0, 1]), balanced accuracy and whether that is better than
        chance, lowest class accuracy and its class, loss in nats, expected calibration error, the bins of the
        reliability diagram (None: empty), per-class accuracy, confusion matrix (row: label, column: prediction), size,
        and, with a teacher, the agreement with it and the mean reality gap; under `timing` its images/s.

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
    return {
        "command": "eval",
        "data": settings.data.name,
        "images": len(images),
        "class_names": list(images.class_names),
        "teacher": None if teacher is None else {"file": str(teacher.path), "sha256": teacher.sha256},
        "models": [report for report, _ in reports],
        "timing": {"images_per_second": [rate for _, rate in reports]},
        **run_facts(runtime, settings),
    }


def _report(
    model: LoadedModel,
    images: ImageSet,
    teacher_logits: Tensor | None,
    settings: EvaluateSettings,
    runtime: Runtime,
) -> tuple[dict[str, Any], float]:
    logits, seconds = _timed_logits(model, images, settings, runtime)
    diagram = reliability(logits, images.labels)
    confusion = confusion_matrix(logits.argmax(dim=1), images.labels, images.num_classes)
    report = {
        "file": str(model.path),
        "sha256": model.sha256,
        "architecture": model.card.architecture,
        **profile_model(model.module, model.card.input_shape).to_dict(),
        **score(logits, images.labels, images.class_names).to_dict(),
        "expected_calibration_error": expected_calibration_error(diagram),
        "reliability": [each and each._asdict() for each in diagram],
        "per_class_accuracy": per_class_accuracy(confusion),
        "confusion_matrix": confusion.tolist(),
    }
    if teacher_logits is not None:
        report["agreement"] = agreement(logits, teacher_logits)
        report["reality_gap"] = reality_gap(teacher_logits, logits).item()
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
