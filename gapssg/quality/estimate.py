"""`estimate`: predicts how often a student disagrees with its teacher on real images, without any."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gapssg.core.runtime import Runtime
from gapssg.evaluation.real_images import check_same_images
from gapssg.models.model_file import LoadedModel, load_model
from gapssg.quality.evidence import collect_evidence
from gapssg.quality.predictor import WITH_POOL, WITHOUT_POOL, load_predictors
from gapssg.quality.settings import QualitySettings
from gapssg.runs.directory import final_weights, has_pool, pool_shards, run_facts
from gapssg.runs.results import Interval, ModelFile, ProbeEvidence, QualityFacts, QualityResult
from gapssg.synthesis.shards import read_shard

_MOST_POOL_IMAGES = 4096


def estimate_quality(settings: QualitySettings) -> QualityResult:
    """Predict the share of real images on which a student disagrees with its teacher, with an interval.

    The evidence is their disagreement on probe images that the student's method did not optimise. The prediction and
    its interval were calibrated on students whose disagreement on real images is known. The accuracies of student and
    teacher differ by at most their disagreement, which gives an interval of the student's accuracy if the teacher's is
    known.

    Raises:
        InputError: A file cannot be used, or student and teacher do not match.
    """
    runtime = Runtime.from_settings(settings.runtime, settings.seed)
    teacher = load_model(settings.teacher, settings.model_factories)
    run = settings.student if settings.student.is_dir() else None
    student = load_model(settings.student if run is None else final_weights(run), settings.model_factories)
    check_same_images(teacher, student)
    source = settings.pool or (run if run is not None and has_pool(run) else None)
    pool = None if source is None else read_pool(source, teacher)
    teacher_module, student_module = runtime.place(teacher.module), runtime.place(student.module)
    normalization, shape = teacher.normalization(runtime.device), teacher.card.input_shape
    evidence = collect_evidence(teacher_module, student_module, normalization, shape, pool, runtime)
    facts = judge_quality(evidence, teacher.card.num_classes, shape, settings.teacher_top1)
    return QualityResult(
        teacher=_described(teacher),
        student=_described(student),
        pool=None if source is None else str(source),
        teacher_top1=settings.teacher_top1,
        **dict(facts),
        **dict(run_facts(runtime, settings)),
    )


def judge_quality(
    evidence: dict[str, ProbeEvidence],
    num_classes: int,
    input_shape: tuple[int, int, int],
    teacher_top1: float | None = None,
) -> QualityFacts:
    """Return what the fitted predictor says of evidence, and why it does not apply if it does not.

    Args:
        evidence: By kind of probe images.
        num_classes: Number of classes.
        input_shape: Channels, height and width of the images.
        teacher_top1: The teacher's accuracy on real images, in [0, 1]; None if it is not known.
    """
    predictors = load_predictors()
    predictor = predictors[WITH_POOL if "overlaid" in evidence else WITHOUT_POOL]
    obstacles = predictor.obstacles(evidence, num_classes, min(input_shape[1:]))
    found = None if obstacles else predictor.predict(evidence)
    return QualityFacts(
        disagreement=found,
        top1=None if found is None or teacher_top1 is None else _accuracy(teacher_top1, found),
        coverage=predictor.coverage,
        calibrated_on=predictor.calibrated_on,
        obstacles=tuple(obstacles),
        evidence=evidence,
    )


def _accuracy(teacher: float, disagreement: Interval) -> Interval:
    """Return bounds of the student's accuracy: it differs from the teacher's by at most the disagreement.

    Where they disagree, the student is most often wrong where the teacher is right; the value takes that it always is.
    """
    low, high = max(0.0, teacher - disagreement.high), min(1.0, teacher + disagreement.high)
    return Interval(value=max(low, teacher - disagreement.value), low=low, high=high)


def _described(model: LoadedModel) -> ModelFile:
    return ModelFile(file=str(model.path), sha256=model.sha256, architecture=model.card.architecture)


def read_pool(source: Path, teacher: LoadedModel) -> Tensor:
    """Return images of the pool, uint8: those of at most so many shards, spread evenly over the run."""
    shards = pool_shards(source)
    shape, classes = teacher.card.input_shape, teacher.card.num_classes
    first, *_ = read_shard(shards[0], shape, classes)
    wanted = min(len(shards), -(-_MOST_POOL_IMAGES // len(first)))
    chosen = [shards[index * len(shards) // wanted] for index in range(wanted)]
    return torch.cat([read_shard(shard, shape, classes)[0] for shard in chosen])
