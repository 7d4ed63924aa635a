"""`estimate`: predicts how often a student disagrees with its teacher on real images, without any."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from gapssg.core.runtime import Runtime
from gapssg.errors import blaming_given_files
from gapssg.evaluation.real_images import check_same_images
from gapssg.evaluation.teachers import read_teacher
from gapssg.files import LARGEST_FILE, sha256_of_files, user_path
from gapssg.models.description import Provenance
from gapssg.models.model_file import LoadedModel, load_model
from gapssg.models.profile import batch_norm_layers
from gapssg.quality.evidence import OVERLAID, ProbeComparison, evidence_by_kind, joined
from gapssg.quality.lost_classes import Source, class_evidence, obstacles_of_classes
from gapssg.quality.predictor import WITH_POOL, WITHOUT_POOL, Predictor, is_like_a_constant, load_predictors
from gapssg.quality.settings import QualitySettings
from gapssg.runs.directory import has_pool, pool_shards, run_facts
from gapssg.runs.failures import known_failures, run_of_student
from gapssg.runs.results.common import Interval, ModelFile
from gapssg.runs.results.distillation import DistillResult
from gapssg.runs.results.quality import Prediction, ProbeEvidence, QualityFacts, QualityResult
from gapssg.synthesis.shards import read_images
from gapssg.text import percent

_MOST_POOL_IMAGES = 4096


def estimate_quality(settings: QualitySettings) -> QualityResult:
    """Predict the share of real images on which a student disagrees with its teacher, with an interval.

    The evidence is their disagreement on probe images that the student's method did not optimise. The prediction and
    its interval were calibrated on students whose disagreement on real images is known. The accuracies of student and
    teacher differ by at most their disagreement, which gives an interval of the student's accuracy if the teacher's is
    known. Raises `InputError` if a file cannot be used, student and teacher do not match, or their logits on probe
    images are not finite.
    """
    runtime = Runtime.from_settings(settings.runtime, seed=0)
    run = settings.student if settings.student.is_dir() else run_of_student(settings.student)
    result = None if run is None else DistillResult.load(run)
    recorded = None if result is None else user_path(result.teacher.file)
    student = load_model(settings.student, settings.model_factories)
    teacher = read_teacher(student, settings.teacher, recorded, settings.model_factories, "the estimate")
    check_same_images(teacher, student)
    source = settings.pool or (None if result is None or run is None else _pool_of(run, result))
    pool = None if source is None else images_of_pool(source, teacher)
    learned_from_it = source is not None and _learned_from(source, settings.student, result)
    modules = runtime.place(teacher.module), runtime.place(student.module)
    with blaming_given_files():
        facts = judge_quality(
            *modules,
            teacher,
            pool,
            runtime,
            learned_from_it,
            settings.teacher_top1,
            provenance=student.card.provenance,
        )
    return QualityResult(
        teacher=ModelFile(**teacher.facts),
        student=ModelFile(**student.facts),
        pool=None if source is None else str(source),
        teacher_top1=settings.teacher_top1,
        failures=known_failures(student.path),
        **dict(facts),
        **dict(run_facts(runtime, settings)),
    )


def judge_quality(
    teacher: nn.Module,
    student: nn.Module,
    described: LoadedModel,
    pool: Tensor | None,
    runtime: Runtime,
    learned_from_pool: bool = True,
    teacher_top1: float | None = None,
    provenance: Provenance | None = None,
) -> QualityFacts:
    """Compare a student with its teacher on probe images; return what the fitted predictor says of them.

    The probe images are drawn with seed 0, whatever that of the run. There are none if the predictor does not apply to
    the classes or images of the teacher. There is no interval without batch norm, or if the student has seen shapes or
    began with given weights. The predictor was calibrated with pools that the students had learned from; on images of
    others, good students disagree more often. So another pool only shows which classes a student has, and the
    prediction is that without one.

    Args:
        teacher: Maps normalised images to logits, on the device.
        student: Likewise.
        described: The teacher's description.
        pool: Images of the pool, (N, C, H, W) uint8; None without a pool.
        runtime: Device and precision.
        learned_from_pool: Whether the student learned from it.
        teacher_top1: The teacher's accuracy on real images, in [0, 1]; None if it is not known.
        provenance: What the student learned from; some probe images are like procedural ones.

    Raises:
        NotFinite: Logits on probe images are not finite.
    """
    card, normalization = described.card, described.normalization(runtime.device)
    source: Source = "probe images" if pool is None else "own pool" if learned_from_pool else "other pool"
    own_pool = pool if source == "own pool" else None
    predictor = load_predictors()[WITHOUT_POOL if own_pool is None else WITH_POOL]
    obstacles = predictor.obstacles_of_task(card.num_classes, card.input_shape)
    evidence, disagreement, top1 = dict[str, ProbeEvidence](), None, None
    if not obstacles:
        probes = ProbeComparison(teacher, normalization, card.input_shape, own_pool, replace(runtime, seed=0))
        answers = probes.answers(student)
        evidence = evidence_by_kind(answers)
        predicted = predictor.predict(evidence)
        obstacles = predictor.obstacles_of(evidence)
        if not obstacles:
            compared = joined(answers.values()) if pool is None else probes.answers_to_pool(student, pool)
            obstacles = obstacles_of_classes(class_evidence(*compared), card.class_names, predicted.high, source)
        if not obstacles and (others := _beyond_calibration(predictor, teacher, provenance)):
            obstacles = [f"it was calibrated only for {' and '.join(others)}"]
            disagreement = Prediction(value=predicted.value, low=None, high=None)
        elif not obstacles:
            disagreement = Prediction(**dict(predicted))
            top1 = None if teacher_top1 is None else _accuracy(teacher_top1, predicted)
    return QualityFacts(
        disagreement=disagreement,
        top1=top1,
        coverage=predictor.coverage,
        calibrated_on=predictor.calibrated_on,
        obstacles=tuple(obstacles),
        evidence=evidence,
    )


def _beyond_calibration(predictor: Predictor, teacher: nn.Module, provenance: Provenance | None) -> list[str]:
    """Return for which teachers and students alone, unlike these, the intervals of a predictor were calibrated."""
    about = provenance or Provenance(command="")
    others = {
        "teachers with batch norm": predictor.have_batch_norm and not batch_norm_layers(teacher),
        "students that have not learned from procedural images": about.procedural,
        "students that learned from images of their own teacher": about.pool_teacher_sha256,
        "students that had seen no images before the run": about.initial_weights,
    }
    return [whose for whose, is_beyond in others.items() if is_beyond]


def failures_on_probe_images(facts: QualityFacts, agreement: float | None, baseline: float | None) -> list[str]:
    """Return why a student is not usable because nothing shows that it has learned; empty if something does.

    It fails if it agrees with its teacher no more often than a constant answer on the last synthetic images, before it
    trained on them, and hardly more often on probe images with some of its pool. Neither suffices alone: some methods
    synthesise images on which the two differ, and students with a top-1 of up to 76 % agreed on such probe images as
    seldom (`benchmarks/results/estimator.csv`).

    Args:
        facts: What probe images show.
        agreement: With the teacher, on the last synthetic images, in [0, 1]; None if the student had trained on them.
        baseline: That of a constant answer.
    """
    if OVERLAID not in facts.evidence or agreement is None or baseline is None or agreement > baseline:
        return []
    if not is_like_a_constant(facts.evidence, facts.evidence):
        return []
    return [
        f"the student agrees with the teacher on {percent(agreement)} of the last synthetic images, before it trained "
        f"on them, no better than always giving the commonest answer ({percent(baseline)}), and hardly better than "
        "that on probe images"
    ]


def _pool_of(run: Path, result: DistillResult) -> Path | None:
    """Return the run whose pool a student learned from: its own, or the one that it names."""
    if has_pool(run):
        return run
    return None if result.pool is None else user_path(result.pool)


def _learned_from(source: Path, student: Path, result: DistillResult | None) -> bool:
    """Tell whether a student, or a snapshot of it, learned from the pool of `source`, as it is now."""
    shards, file = pool_shards(source), student.resolve()
    runs = (file, file.parent, file.parent.parent)  # the run itself, or that of its student or of a snapshot
    own = [shard for shard in shards if shard.resolve().parent in {run / "pool" for run in runs}]
    earlier = [shard for shard in shards if shard not in own]
    if result is None:
        return bool(own) and not earlier
    if own and len(own) != result.epochs:
        return False
    if result.pool is None:
        return bool(own) and not earlier
    return bool(earlier) and result.pool_sha256 == sha256_of_files(earlier, LARGEST_FILE)


def _accuracy(teacher: float, disagreement: Interval) -> Interval:
    """Return bounds of the student's accuracy: it differs from the teacher's by at most the disagreement.

    Where they disagree, the student is most often wrong where the teacher is right; the value takes that it always is.
    """
    low, high = max(0.0, teacher - disagreement.high), min(1.0, teacher + disagreement.high)
    return Interval(value=max(low, teacher - disagreement.value), low=low, high=high)


def images_of_pool(source: Path, teacher: LoadedModel) -> Tensor:
    """Return images of a run's pool, (N, C, H, W) uint8: about 4,096, spread evenly over the run, if it has more."""
    card = teacher.card
    return read_images(pool_shards(source), card.input_shape, card.num_classes, _MOST_POOL_IMAGES)
