"""`distill`: a student that learns from its teacher and from no data."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import NonNegativeFloat, NonNegativeInt
from torch import nn

from gapssg.data.image_set import ImageSet, sha256_of_images
from gapssg.engine.checkpoint import Checkpoints, Facts, State, read_checkpoint
from gapssg.engine.distillation import Distillation, listed_counts
from gapssg.engine.estimate import EVALUATED_IMAGES, Estimate, Part, peak_memory, time_steps
from gapssg.engine.inference import score_on
from gapssg.engine.judgement import failures_on_real_images, judge_on_synthetic_images, real_images_speak_for
from gapssg.engine.metrics import Scores
from gapssg.engine.real_images import read_test_images
from gapssg.engine.requests import Requests
from gapssg.engine.run_directory import (
    Display,
    RunDirectory,
    SilentDisplay,
    check_output,
    check_same_settings,
    pool_shards,
    run_facts,
)
from gapssg.engine.settings import DistillSettings
from gapssg.engine.time_left import EVALUATION
from gapssg.errors import InputError
from gapssg.files import sha256_of_files
from gapssg.models.model_file import LoadedModel, load_model
from gapssg.models.profile import profile_model
from gapssg.runs.events import CheckpointWritten, DistillationEnded, Started, Warned
from gapssg.runtime import Runtime
from gapssg.stored import MOST_COUNTED_CLASSES

# The checkpoint knows the SHA-256 of the teacher and of the images.
_MAY_MOVE = ("teacher", "eval_data.root", "eval_data.name")
_SHOWN_SCORES = ("top1", "loss", "balanced_accuracy", "lowest_recall")


class EvaluationFacts(Facts):
    """What a checkpoint keeps of the evaluations so far."""

    teacher: Scores | None
    student: Scores | None
    best: tuple[float, NonNegativeInt] | None
    seconds: NonNegativeFloat
    images: str | None = None
    """SHA-256 of the evaluation images, which older checkpoints lack."""


class RunFacts(Facts):
    """What a checkpoint keeps of the run as a whole."""

    compiled: bool
    evaluation: EvaluationFacts
    total_seconds: NonNegativeFloat


def distill(
    settings: DistillSettings,
    output: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    display: Display | None = None,
    requests: Requests | None = None,
) -> dict[str, Any]:
    """Distil a student without real data and write a run directory with `student.safetensors`.

    With `resume` the run in `output` continues after its last checkpoint, and ends with the files that it would
    have had without the interruption; the teacher and the evaluation data may have been moved since then. `requests`
    may be set from another thread or a signal handler. Evaluation data, if given, is read only to evaluate: the
    student's weights are the same without it.

    Returns:
        What `result.json` holds. `top1` is of the last epoch; `best_top1` was chosen by the evaluation data;
        both are None without it. `agreement` is that with the teacher on the last freshly synthesised samples
        before the student had trained on them; always giving the teacher's commonest answer would reach
        `agreement_baseline` on them. `failures` says in sentences why the student is not usable, and is empty where
        nothing speaks against it; such a run ends like any other. `warnings` has what only synthetic images say
        against a student that real images show to be usable.

    Raises:
        InputError: The teacher, the pool, the weights, the evaluation data or the output directory cannot
            be used; nothing has been written.
        RunError: The synthesis or the student diverged, or the disk refused a write.
        Stopped: `requests` asked for it.
    """
    display = display or SilentDisplay()
    if resume:
        check_same_settings(output, settings, _MAY_MOVE)
    else:
        check_output(output, overwrite, [settings.teacher, settings.pool, settings.student.weights])
    started = time.perf_counter()
    runtime = Runtime.from_settings(settings.runtime, settings.seed)
    teacher = load_model(settings.teacher, (*settings.model_factories, settings.student.name))
    identity = {"the teacher's SHA-256": teacher.sha256, **runtime.identity()}
    if settings.pool is not None:
        identity["the pool's SHA-256"] = sha256_of_files(pool_shards(settings.pool))
    checkpoint = read_checkpoint(output, identity) if resume else None
    facts = RunFacts.read(checkpoint.state.facts.get("run")) if checkpoint else None
    distillation = Distillation(settings, runtime, teacher, compiled=facts.compiled if facts else None)
    runtime = distillation.runtime
    evaluator = _Evaluator(settings, runtime, teacher, display)
    if checkpoint and facts:
        distillation.restore(checkpoint.state.component("distillation"), output)
        evaluator.restore(facts.evaluation)
        started -= facts.total_seconds
        run = RunDirectory.reopen(output, settings, display, checkpoint.events_length)
        run.show(CheckpointWritten(directory=output))
        after = f"after epoch {distillation.epochs_done} of {settings.epochs}"
        run.show(Started(message=f"continuing {output} {after}, {runtime.describe()}"))
    else:
        run = RunDirectory(output, settings, display, overwrite)
        _record_start(run, distillation)

    def state() -> State:
        total = time.perf_counter() - started
        own = RunFacts(compiled=runtime.compiled, evaluation=evaluator.facts, total_seconds=total)
        inner = distillation.state()
        return State({"run": own.model_dump(), "distillation": inner.facts}, inner.prefixed("distillation."))

    distillation.time_left.plan(EVALUATION, evaluator.count_after(distillation.epochs_done))
    every = (settings.checkpoint_every, settings.checkpoint_minutes)
    keep = state if distillation.can_continue else None
    with runtime.configured(), run, Checkpoints(run, identity, keep, requests or Requests(), *every) as checkpoints:
        run.show_notes(runtime)
        while distillation.epochs_done < settings.epochs:
            event = distillation.run_epoch(run, checkpoints.after_step)
            done = distillation.epochs_done
            scores, left = evaluator.after_epoch(done, distillation, run), distillation.time_left.seconds
            shown = {name: getattr(scores, name, None) for name in _SHOWN_SCORES}
            timing = event.timing if left is None else event.timing.model_copy(update={"remaining": left})
            run.show_time_left(distillation.time_left, done, settings.epochs)
            run.record(event.model_copy(update={**shown, "timing": timing}))
            run.show_notes(runtime)
            if settings.snapshot_every and done % settings.snapshot_every == 0:
                distillation.save_student(run.folder("snapshots") / f"epoch-{done:04d}.safetensors")
            checkpoints.after_epoch(done, is_last=done == settings.epochs)
        student_file = output / "student.safetensors"
        distillation.save_student(student_file)
        result = _result(settings, runtime, distillation, evaluator, student_file, time.perf_counter() - started)
        run.write_result(result)
        student = result["student"]
        run.record(
            DistillationEnded(
                top1=student["top1"],
                balanced_accuracy=student["balanced_accuracy"],
                best_top1=student["best_top1"],
                best_epoch=student["best_epoch"],
                agreement=student["agreement"],
                agreement_baseline=student["agreement_baseline"],
                failures=tuple(result["failures"]),
                warnings=tuple(result["warnings"]),
            )
        )
    return result


def estimate_distillation(settings: DistillSettings, display: Display | None = None) -> Estimate:
    """Time a few steps of a distillation, from its beginning, and return what all of it would take.

    Nothing is written. `display` shows how far the evaluation data is read.

    Raises:
        InputError: The teacher, the pool, the weights or the evaluation data cannot be used.
    """
    runtime = Runtime.from_settings(settings.runtime, settings.seed)
    teacher = load_model(settings.teacher, (*settings.model_factories, settings.student.name))
    distillation = Distillation(settings, runtime, teacher)
    runtime = distillation.runtime
    evaluator = _Evaluator(settings, runtime, teacher, display or SilentDisplay())
    with runtime.configured(), runtime.seeded_globals("estimate"):
        parts = {**distillation.time_steps(), EVALUATION: evaluator.time_evaluations(distillation)}
    memory = peak_memory(runtime) + distillation.unused_memory
    return Estimate("distill", parts, memory, runtime, distillation.flops)


def _record_start(run: RunDirectory, distillation: Distillation) -> None:
    settings, teacher = distillation.settings, distillation.teacher_file
    source = f"the pool of {settings.pool}" if settings.pool else f"no data ({settings.method.name})"
    pair = f"{teacher.card.architecture} into {settings.student.name}"
    views = distillation.augmentation.describe()
    if not distillation.synthesizer.augments:
        views = "no crops, no flips (method.augment=true turns them on)"
    message = f"distilling {pair} with {source}, {views}, {distillation.runtime.describe()}"
    run.record(Started(message=message))
    if distillation.origin.teacher_sha256 != teacher.sha256:
        run.record(Warned(epoch=0, message=f"the pool of {settings.pool} was made for another teacher"))


class _Evaluator:
    """Evaluates the student on real images, if there are any; nothing that it does reaches the training."""

    def __init__(self, settings: DistillSettings, runtime: Runtime, teacher: LoadedModel, display: Display) -> None:
        self.settings = settings
        self.runtime = runtime
        self.images: ImageSet | None = None
        self.teacher_scores: Scores | None = None
        self.scores: Scores | None = None
        self.best: tuple[float, int] | None = None
        self.seconds = 0.0
        self.sha256: str | None = None
        if settings.eval_data is not None:
            images = read_test_images(settings.eval_data, teacher, display)
            self.sha256 = sha256_of_images(images)
            self.images = images.to(runtime.device)

    @property
    def facts(self) -> EvaluationFacts:
        """What a checkpoint keeps."""
        return EvaluationFacts(
            teacher=self.teacher_scores, student=self.scores, best=self.best, seconds=self.seconds, images=self.sha256
        )

    def restore(self, facts: EvaluationFacts) -> None:
        """Go back to where a checkpoint was written.

        Raises:
            InputError: The evaluation images are others than then.
        """
        if facts.images not in (None, self.sha256):
            raise InputError("the evaluation images are not those that the run began with; name the same ones again")
        self.teacher_scores, self.scores = facts.teacher, facts.student
        self.best, self.seconds = facts.best, facts.seconds

    def count_after(self, epochs_done: int) -> int:
        """Return how many evaluations are left after so many epochs."""
        if self.images is None or epochs_done == self.settings.epochs:
            return 0
        return -(-self.settings.epochs // self.settings.evaluate_every) - epochs_done // self.settings.evaluate_every

    def time_evaluations(self, distillation: Distillation) -> Part:
        """Time teacher and student on a few images; the teacher is evaluated once."""
        count = self.count_after(0)
        if self.images is None:
            return Part(0, 0.0)
        images = self.images.images[:EVALUATED_IMAGES]
        times = len(self.images) / len(images)
        teacher, student = (
            time_steps(partial(distillation.predict, module, images), self.runtime, 6, 1).seconds_per_step * times
            for module in (distillation.teacher, distillation.student)
        )
        return Part(count, student, teacher)

    def after_epoch(self, epochs_done: int, distillation: Distillation, run: RunDirectory) -> Scores | None:
        """Evaluate, if that is due after so many epochs; return the student's scores."""
        due = epochs_done % self.settings.evaluate_every == 0 or epochs_done == self.settings.epochs
        if self.images is None or not due:
            return None
        started = time.perf_counter()
        if self.teacher_scores is None:
            self.teacher_scores = self._score(distillation, distillation.teacher, self.images)
        with distillation.time_left.phase(EVALUATION, 1) as timed:
            self.scores = self._score(distillation, distillation.student, self.images)
            self.seconds += time.perf_counter() - started
            if self.best is None or self.scores.top1 > self.best[0]:
                self.best = (self.scores.top1, epochs_done)
                distillation.save_student(run.path / "best.safetensors")
            timed.step(1)
        return self.scores

    @staticmethod
    def _score(distillation: Distillation, module: nn.Module, images: ImageSet) -> Scores:
        return score_on(images, module, distillation.normalization, distillation.runtime)


def _result(
    settings: DistillSettings,
    runtime: Runtime,
    distillation: Distillation,
    evaluator: _Evaluator,
    student_file: Path,
    total_seconds: float,
) -> dict[str, Any]:
    teacher = distillation.teacher_file
    scores = evaluator.scores.to_dict() if evaluator.scores else dict.fromkeys(Scores._fields)
    best_top1, best_epoch = evaluator.best or (None, None)
    teacher_scores = evaluator.teacher_scores.to_dict() if evaluator.teacher_scores else None
    compared = distillation.compare()
    judgement = judge_on_synthetic_images(distillation.teacher_counts.tolist(), compared, teacher.card.class_names)
    on_real_images = failures_on_real_images(scores, teacher_scores) if evaluator.scores else []
    is_shown_usable = evaluator.scores is not None and real_images_speak_for(scores)
    seconds = {**distillation.seconds, "evaluation": evaluator.seconds}
    return {
        "command": "distill",
        "method": distillation.origin.method,
        "pool": str(settings.pool) if settings.pool else None,
        "teacher": {
            "file": str(teacher.path),
            "sha256": teacher.sha256,
            "architecture": teacher.card.architecture,
            **profile_model(distillation.teacher, teacher.card.input_shape).to_dict(),
            "top1": teacher_scores["top1"] if teacher_scores else None,
        },
        "student": {
            "file": str(student_file),
            "architecture": settings.student.name,
            **profile_model(distillation.student, teacher.card.input_shape).to_dict(),
            **scores,
            "best_top1": best_top1,
            "best_epoch": best_epoch,
            "agreement": distillation.agreement,
            "agreement_baseline": distillation.agreement_baseline,
            "after_training": judgement.comparison,
        },
        "failures": [] if is_shown_usable else [*on_real_images, *judgement.failures],
        "warnings": judgement.failures if is_shown_usable else [],
        "missing_classes": judgement.missing_classes[:MOST_COUNTED_CLASSES],
        "teacher_counts": listed_counts(distillation.teacher_counts),
        "target_counts": listed_counts(distillation.target_counts),
        "data": settings.eval_data.name if settings.eval_data else None,
        "epochs": settings.epochs,
        "images_synthesized": distillation.images_synthesized,
        "distillation_steps": distillation.step_count,
        "flops": distillation.flops,
        "augmentation": distillation.augmentation.to_dict() if distillation.synthesizer.augments else None,
        "timing": {"total": total_seconds, **seconds},
        **run_facts(runtime, settings),
    }
