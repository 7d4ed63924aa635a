"""`distill`: training a student with its teacher and without data."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, NonNegativeInt
from torch import nn

from gapssg.core.runtime import Runtime
from gapssg.data.image_set import ImageSet, sha256_of_images
from gapssg.errors import InputError, NotFinite
from gapssg.evaluation.judgement import judge_on_synthetic_images
from gapssg.evaluation.predict import score_on
from gapssg.evaluation.real_images import read_test_images
from gapssg.files import LARGEST_FILE, sha256_of_file, sha256_of_files, user_path
from gapssg.models.model_file import LoadedModel
from gapssg.models.profile import profile_model
from gapssg.models.reference import MODULE
from gapssg.quality.estimate import failures_on_probe_images, judge_quality
from gapssg.runs.checkpoint import Facts, State
from gapssg.runs.directory import Display, RunDirectory, SilentDisplay, pool_shards, run_facts
from gapssg.runs.events import DistillationEnded, DistillationEpoch, Event, Note, Started, Warned
from gapssg.runs.failures import failures_on_real_images, passes_on_real_images, warnings_of_run
from gapssg.runs.requests import Requests
from gapssg.runs.results.common import Scores
from gapssg.runs.results.cost import EstimateResult, Part
from gapssg.runs.results.distillation import DistillResult, DistillTiming, SettlingResult, StudentFacts, TeacherFacts
from gapssg.runs.results.quality import QualityFacts
from gapssg.runs.results.training import AugmentationFacts
from gapssg.runs.time_left import EVALUATION
from gapssg.stored import MOST_COUNTED_CLASSES
from gapssg.synthesis.base import PoolMethodSettings
from gapssg.training.distillation import Distillation
from gapssg.training.distillation_setup import (
    make_student,
    planned_flops,
    read_teacher,
    sha256_of_layout,
    sha256_of_tensors,
    step_memory,
    with_modules,
)
from gapssg.training.estimate import (
    estimated,
    peak_memory,
    time_distillation,
    time_evaluation,
    unused_memory,
)
from gapssg.training.image_monitor import listed_counts
from gapssg.training.loop import Job, Launch, Phase
from gapssg.training.memory import StepMemory, check_memory
from gapssg.training.settings import DistillSettings

if TYPE_CHECKING:
    from gapssg.core.processes import Processes

_POOL_SHA256 = "the pool's SHA-256"
# The checkpoint compares the SHA-256 of the teacher, the pool, the images and the method's files, which may move, too,
# and has the weights of the student.
_MAY_MOVE = ("teacher", "pool", "eval_data.root", "eval_data.name", "student.weights")


class EvaluationFacts(Facts):
    """The evaluations so far, in a checkpoint."""

    teacher: Scores | None = None
    student: Scores | None = None
    best: tuple[float, NonNegativeInt] | None = None
    """Highest top-1 accuracy so far, and its epoch."""
    seconds: NonNegativeFloat = 0.0
    images: str | None = None
    """SHA-256 of the evaluation images."""


def distill(
    settings: DistillSettings,
    output: Path,
    *,
    teacher: LoadedModel | None = None,
    student: nn.Module | None = None,
    overwrite: bool = False,
    resume: bool = False,
    display: Display | None = None,
    requests: Requests | None = None,
    processes: Processes | None = None,
) -> DistillResult:
    """Distil a student without real data and write a run directory with `student.safetensors`.

    With `resume` the run in `output` resumes from its last checkpoint and ends with the files of an uninterrupted run;
    the teacher, the pool and the evaluation data may have moved. `requests` may be set from another thread or a signal
    handler. Evaluation data, if given, is used only for evaluation: the student's weights are the same without it. Each
    of `processes` calls this with equal arguments; rank 0 writes the directory.

    Instead of a teacher's file and a student's name in the settings, a program may pass a `teacher` as
    `model_from_module` returns it and a `student`, whose weights are the initial ones; if its batch norms have seen
    images, the prediction of its quality has no interval. Both are copied and left unchanged. To resume, pass the same
    teacher, and a student of the same class and tensors; its weights do not matter.
    `load_model(output / "student.safetensors", module=student)` returns the trained student.

    Returns:
        The content of `result.json`. `top1` is of the last epoch, `best_top1` is selected on the evaluation data; both
        are None without it. `agreement` is with the teacher, on the last synthesised images before the student trained
        on them, and `agreement_baseline` that of a constant prediction, the teacher's most frequent class. `failures`
        says why the student is not usable, and is empty if no check failed; such a run ends like any other. `warnings`
        are failed checks on synthetic images of a student that is usable by its scores on real images.

    Raises:
        InputError: The teacher, the pool, the weights, the evaluation data or the output directory cannot
            be used, or a step does not fit in the memory; nothing has been written.
        RunError: The synthesis or the student diverged, or the disk refused a write.
        Stopped: Requested by `requests`.
    """
    with nullcontext() if processes is None else processes.all_or_none():
        output = user_path(output)
        settings = with_modules(settings, teacher, student)
    display, requests = display or SilentDisplay(), requests or Requests()
    launch = Launch(settings, output, overwrite, resume, display, requests, processes)
    with launch.preparing():
        job = _prepare(settings, launch, teacher, student)
    return launch.carry_out(job)


def _prepare(settings: DistillSettings, launch: Launch, teacher: LoadedModel | None, student: nn.Module | None) -> _Job:
    """Check everything and create the job."""
    method_files = {f"method.{name}": value for name, value in settings.method if isinstance(value, Path)}
    file = None if settings.teacher == Path(MODULE) else settings.teacher
    launch.check([file, settings.pool, settings.student.weights, *method_files.values()], (*_MAY_MOVE, *method_files))
    launch.check_still_there({"--teacher": file, "--pool": settings.pool})
    launch.check_still_there({f"--set {name}=FILE": path for name, path in method_files.items()})
    runtime = Runtime.from_settings(settings.runtime, settings.seed, launch.processes)
    runtime.check_shares({"batch_size": settings.batch_size, **settings.method.shared_batches(settings.batch_size)})
    teacher = read_teacher(settings, teacher)
    identity = {"the teacher's SHA-256": teacher.sha256, **runtime.identity()}
    if student is not None:
        identity["the layout of the student"] = sha256_of_layout(student)
    if settings.pool is not None:
        of_pool = identity[_POOL_SHA256] = sha256_of_files(pool_shards(settings.pool), LARGEST_FILE)
        if settings.grow_pool:  # with the random numbers of its own run it would get the same images again
            runtime = replace(runtime, seed=runtime.derive_seed(of_pool))
    for name, file in method_files.items():
        identity[f"the SHA-256 of {name}"] = sha256_of_file(file, LARGEST_FILE)
    state = launch.read_checkpoint(identity)
    student = make_student(settings, runtime, teacher, student, state is not None)
    flops = planned_flops(settings, teacher, student, profile_model(student, teacher.card.input_shape).macs)
    runtime = launch.decide_compilation(runtime, settings.runtime.compile, flops)
    if launch.processes is not None and state is None:  # those of a resumed run are in its checkpoint
        launch.shared["the initial weights of the student"] = sha256_of_tensors(student)
    distillation = Distillation(settings, runtime, teacher, student)
    evaluator = _Evaluator(settings, runtime, teacher, launch.display)
    if evaluator.facts.images is not None:
        launch.shared["the evaluation images"] = evaluator.facts.images
    if state is not None:
        distillation.restore(state.component("distillation"), launch.output, launch.written)
        if distillation.labelled is not None:
            launch.shared["the labelled images"] = str(distillation.labelled.finished)
        evaluator.restore(EvaluationFacts.read(state.facts.get("evaluation")))
    return _Job(distillation, evaluator, _checked_memory(distillation), identity.get(_POOL_SHA256))


def _checked_memory(distillation: Distillation) -> dict[str, StepMemory]:
    """Return the memory of each kind of step; raise `InputError` if one does not fit."""
    settings, runtime, teacher = distillation.settings, distillation.runtime, distillation.teacher_file
    memory = step_memory(settings, runtime, teacher, distillation.student, distillation.synthesizer)
    check_memory(memory, runtime, *unused_memory(distillation))
    return memory


class _Job(Job[DistillResult]):
    """A distillation and its evaluations."""

    def __init__(
        self,
        distillation: Distillation,
        evaluator: _Evaluator,
        memory: Mapping[str, StepMemory],
        pool_sha256: str | None,
    ) -> None:
        self._distillation, self._evaluator, self._pool_sha256 = distillation, evaluator, pool_sha256
        self._settings = settings = distillation.settings
        self.runtime = distillation.runtime
        self.epochs = distillation.epochs
        self.checkpoints_every = (settings.checkpoint_every, settings.checkpoint_minutes)
        self.memory = memory
        self.time_left = distillation.time_left
        self.time_left.plan(EVALUATION, evaluator.count_after(self.epochs_done, self.epochs))

    @property
    def epochs_done(self) -> int:
        return self._distillation.progress.epochs_done

    def begin(self) -> Iterator[Event]:
        settings, distillation = self._settings, self._distillation
        teacher = distillation.teacher_file
        source = f"no data ({settings.method.name})"
        if settings.pool:
            source = f"the pool of {settings.pool}" + (f" and {settings.method.name}" if settings.grow_pool else "")
        own_name, named = teacher.card.architecture, settings.teacher
        if teacher.path != named:  # a run, of which this is the file
            own_name += f" ({teacher.path})"
        pair = f"{own_name} into {distillation.card.architecture}"
        views = distillation.augmentation.describe()
        if not distillation.synthesizer.augments:
            views = "no crops, no flips (method.augment=true turns them on)"
        yield Started(message=f"distilling {pair} with {source}, {views}, {self.runtime.describe()}")
        yield from warnings_of_run(teacher.path)
        own, of_teacher = distillation.student_profile, teacher.profile
        larger = [
            f"{ours:,} {what} (its teacher has {theirs:,})"
            for what, ours, theirs in (
                ("parameters", own.parameters, of_teacher.parameters),
                ("multiply-adds per image", own.macs, of_teacher.macs),
            )
            if ours > theirs
        ]
        if larger:
            sentence = f"the student is larger than its teacher: {' and '.join(larger)}"
            yield Warned(epoch=0, message=f"{sentence}; `gapssg models --for TEACHER` proposes smaller ones")
        method, is_fixed = settings.method, settings.pool is not None and not settings.grow_pool
        if is_fixed and isinstance(method, PoolMethodSettings) and method.procedural_share:
            yield Warned(epoch=0, message="method.procedural_share has no effect on a pool that does not grow")
        if distillation.origin.teacher_sha256 != teacher.sha256:
            yield Warned(epoch=0, message=f"the pool of {settings.pool} was made for another teacher")

    def state(self) -> State | None:
        if not self._distillation.can_resume:
            return None
        inner = self._distillation.state()
        facts = {"distillation": inner.facts, "evaluation": self._evaluator.facts.model_dump()}
        return State(facts, inner.prefixed("distillation."))

    def phases(self, run: RunDirectory) -> Iterator[Phase]:
        return self._distillation.phases(run)

    def end_epoch(self, run: RunDirectory) -> DistillationEpoch:
        done, every = self.epochs_done + 1, self._settings.snapshot_every
        scores = self._evaluator.after_epoch(done, self.epochs, self._distillation, run)
        if every and done % every == 0:
            self._distillation.write_student(run, f"snapshots/epoch-{done:04d}.safetensors")
        event = self._distillation.end_epoch(run, scores)
        if self._distillation.epochs < self.epochs:
            self._end_early(run)
        return event

    def _end_early(self, run: RunDirectory) -> None:
        """Plan the epochs that are left once the disagreement has settled."""
        self.epochs = self._distillation.epochs
        left = {
            **self._distillation.steps_left(),
            EVALUATION: self._evaluator.count_after(self.epochs_done, self.epochs),
        }
        for kind, steps in left.items():
            self._distillation.time_left.shorten(kind, steps)
        run.show(Note(message=f"the predicted disagreement no longer falls, so the run ends after epoch {self.epochs}"))

    def finish(self, run: RunDirectory, seconds: float) -> tuple[DistillResult, DistillationEnded]:
        result = _write_student_and_result(self._distillation, self._evaluator.facts, run, seconds)
        # A run that grows a pool computes with another seed than its own.
        result = result.model_copy(update={"seed": self._settings.seed, "pool_sha256": self._pool_sha256})
        return result, DistillationEnded(**dict(result.student), failures=result.failures, warnings=result.warnings)


def estimate_distillation(
    settings: DistillSettings,
    display: Display | None = None,
    *,
    teacher: LoadedModel | None = None,
    student: nn.Module | None = None,
) -> EstimateResult:
    """Estimate the cost of a distillation by timing its first steps.

    Nothing is written. `display` shows the progress of reading the evaluation data; `teacher` and `student` are as for
    `distill`. Raises `InputError` if the teacher, the pool, the weights or the evaluation data cannot be used, or a
    step does not fit in the memory.
    """
    settings = with_modules(settings, teacher, student)
    runtime = Runtime.from_settings(settings.runtime, settings.seed)
    teacher = read_teacher(settings, teacher)
    student = make_student(settings, runtime, teacher, student)
    flops = planned_flops(settings, teacher, student, profile_model(student, teacher.card.input_shape).macs)
    runtime, _ = runtime.decide_compilation(settings.runtime.compile, flops)
    distillation = Distillation(settings, runtime, teacher, student)
    _checked_memory(distillation)
    evaluator = _Evaluator(settings, runtime, teacher, display or SilentDisplay())
    with runtime.configured(), runtime.seeded_globals("estimate"):
        parts = {**time_distillation(distillation), EVALUATION: evaluator.time_evaluations(distillation)}
    peak = peak_memory(runtime) + sum(unused_memory(distillation))
    return estimated("distill", parts, peak, runtime, distillation.flops)


class _Evaluator:
    """Evaluates the student on real images, if given, without any effect on the training."""

    def __init__(self, settings: DistillSettings, runtime: Runtime, teacher: LoadedModel, display: Display) -> None:
        self.settings = settings
        self.runtime = runtime
        self.images: ImageSet | None = None
        self.facts = EvaluationFacts()
        if settings.eval_data is not None:
            images = read_test_images(settings.eval_data, teacher, display)
            self.facts.images = sha256_of_images(images)
            self.images = images.to(runtime.device)

    def restore(self, facts: EvaluationFacts) -> None:
        """Restore the state of a checkpoint, which must be of the same evaluation images."""
        if facts.images != self.facts.images:
            raise InputError("the evaluation images are not those that the run started with; use the same ones")
        self.facts = facts

    def count_after(self, epochs_done: int, epochs: int) -> int:
        """Return the number of evaluations that are left after so many of the epochs."""
        if self.images is None or epochs_done == epochs:
            return 0
        return -(-epochs // self.settings.evaluate_every) - epochs_done // self.settings.evaluate_every

    def time_evaluations(self, distillation: Distillation) -> Part:
        """Time teacher and student on a few images; a run evaluates the teacher once."""
        if self.images is None:
            return Part(0, 0.0)
        teacher, student = (
            time_evaluation(partial(distillation.predict, module), self.images.images, self.runtime)
            for module in (distillation.teacher, distillation.student)
        )
        return Part(self.count_after(0, self.settings.epochs), student, teacher)

    def after_epoch(
        self, epochs_done: int, epochs: int, distillation: Distillation, run: RunDirectory
    ) -> Scores | None:
        """Evaluate if it is due after so many of the epochs; return the student's scores."""
        due = epochs_done % self.settings.evaluate_every == 0 or epochs_done == epochs
        if self.images is None or not due:
            return None
        started = time.perf_counter()
        facts = self.facts
        if facts.teacher is None:
            facts.teacher = self._score(distillation.teacher, distillation, "the teacher")
        with distillation.time_left.phase(EVALUATION, 1) as timed:
            advice = "lower optimizer.learning_rate, or try --precision fp32"
            facts.student = self._score(distillation.student, distillation, "the student", advice)
            facts.seconds += time.perf_counter() - started
            if facts.best is None or facts.student.top1 > facts.best[0]:
                facts.best = (facts.student.top1, epochs_done)
                distillation.write_student(run, "best.safetensors")
            timed.step(1)
        return facts.student

    def _score(self, module: nn.Module, distillation: Distillation, name: str, advice: str = "") -> Scores:
        assert self.images is not None
        return score_on(self.images, module, distillation.normalization, self.runtime, name, advice)


def _write_student_and_result(
    distillation: Distillation, evaluation: EvaluationFacts, run: RunDirectory, total_seconds: float
) -> DistillResult:
    settings, teacher, progress = distillation.settings, distillation.teacher_file, distillation.progress
    scores, teacher_scores, settling = evaluation.student, evaluation.teacher, distillation.settling
    best_top1, best_epoch = evaluation.best or (None, None)
    counts = distillation.monitor.teacher_counts
    judgement = judge_on_synthetic_images(counts.tolist(), distillation.compare(), teacher.card.class_names)
    on_real_images = failures_on_real_images(scores, teacher_scores) if scores else []
    is_shown_usable = scores is not None and passes_on_real_images(scores)
    quality, doubts = _expected_quality(distillation) if scores is None else (None, [])
    unlearned = failures_on_probe_images(quality, progress.agreement, progress.agreement_baseline) if quality else []
    failures = () if is_shown_usable else (*doubts, *on_real_images, *judgement.failures, *unlearned)
    distillation.write_student(run, DistillResult.model_file, failures)
    return DistillResult(
        quality=quality,
        method=distillation.origin.method,
        pool=str(settings.pool) if settings.pool else None,
        teacher=TeacherFacts(
            **teacher.facts,
            **dict(teacher.profile),
            top1=teacher_scores.top1 if teacher_scores else None,
        ),
        student=StudentFacts(
            file=str(run.path / DistillResult.model_file),
            sha256=run.sha256_of(DistillResult.model_file),
            architecture=distillation.card.architecture,
            **dict(distillation.student_profile),
            **(dict(scores) if scores else dict.fromkeys(Scores.model_fields)),
            best_top1=best_top1,
            best_epoch=best_epoch,
            agreement=progress.agreement,
            agreement_baseline=progress.agreement_baseline,
            after_training=judgement.comparison,
        ),
        failures=failures,
        warnings=tuple(judgement.failures) if is_shown_usable else (),
        missing_classes=tuple(judgement.missing_classes[:MOST_COUNTED_CLASSES]),
        teacher_counts=listed_counts(counts),
        target_counts=listed_counts(distillation.monitor.target_counts),
        data=settings.eval_data.name if settings.eval_data else None,
        epochs=distillation.epochs,
        settling=None
        if settling is None
        else SettlingResult(
            most_epochs=settings.epochs, settled_after=settling.settled_after, could_tell=settling.could_tell
        ),
        images_synthesized=progress.images_synthesized,
        images_procedural=distillation.images_procedural,
        distillation_steps=progress.step_count,
        flops=distillation.flops,
        augmentation=_augmentation_facts(distillation),
        timing=DistillTiming(
            total=total_seconds,
            evaluation=evaluation.seconds,
            synthesis=progress.synthesis_seconds,
            distillation=progress.distillation_seconds,
        ),
        **dict(run_facts(distillation.runtime, settings)),
    )


def _augmentation_facts(distillation: Distillation) -> AugmentationFacts | None:
    if not distillation.synthesizer.augments:
        return None
    drawn = distillation.augmentation
    return AugmentationFacts(crop_padding=drawn.padding, crop_padding_mode=drawn.padding_mode, flip=drawn.flip)


def _expected_quality(distillation: Distillation) -> tuple[QualityFacts | None, list[str]]:
    """Return what is expected of the student on real images, or why that cannot be known."""
    pool = distillation.synthesizer.pool
    images = None if pool is None else pool.images[pool.synthesised] if pool.procedural else pool.images
    modules = distillation.teacher, distillation.student
    try:
        return judge_quality(
            *modules, distillation.teacher_file, images, distillation.runtime, provenance=distillation.card.provenance
        ), []
    except NotFinite as error:
        return None, [str(error)]
