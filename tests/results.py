"""Results as commands return them, of runs that nobody made."""

from __future__ import annotations

from typing import Any

from gapssg.models.description import ModelProfile
from gapssg.runs.results.common import FileFacts, RunFacts, Scores
from gapssg.runs.results.distillation import DistillResult, DistillTiming, StudentFacts, TeacherFacts
from gapssg.runs.results.evaluation import EvaluatedModel, EvaluateResult, EvaluateTiming
from gapssg.runs.results.training import PretrainResult, Trained, TrainingTiming

SCORES: dict[str, Any] = {
    "top1": 0.9,
    "top5": 1.0,
    "loss": 0.3,
    "balanced_accuracy": 0.9,
    "better_than_chance": True,
    "lowest_recall": 0.8,
    "lowest_class": "dog",
    "fewest_images": 20,
}
PROFILE = dict(ModelProfile(parameters=10, macs=100, batch_norm_layers=1))


def make_scores(**changes: Any) -> Scores:
    """Return the scores of a sound student, with changes."""
    return Scores(**{**SCORES, **changes})


def make_run_facts(**changes: Any) -> dict[str, Any]:
    """Return how a run was computed, by field, with changes."""
    facts = RunFacts(device="cpu", precision="fp32", compiled=False, seed=0, versions={}, settings_sha256="5")
    return {**dict(facts), **changes}


def make_distill_result(
    student_top1: float | None = 0.9,
    teacher_top1: float | None = 0.95,
    *,
    seconds: float = 4.0,
    architecture: str = "wrn16_1",
    teacher_sha256: str = "t",
    **facts: Any,
) -> DistillResult:
    """Return what `distill` would."""
    return DistillResult(
        method="gapssg",
        teacher=TeacherFacts(
            file="t.safetensors", sha256=teacher_sha256, architecture="wrn40_2", **PROFILE, top1=teacher_top1
        ),
        student=StudentFacts(
            file="student.safetensors",
            architecture=architecture,
            **PROFILE,
            **{**SCORES, "top1": student_top1},
            best_top1=1.0,
            best_epoch=1,
            agreement=0.9,
            agreement_baseline=0.1,
            after_training=None,
        ),
        data="digits",
        epochs=2,
        images_synthesized=0,
        distillation_steps=0,
        augmentation=None,
        timing=DistillTiming(total=seconds, evaluation=0.0, synthesis=0.0, distillation=0.0),
        **make_run_facts(**facts),
    )


def make_pretrain_result(top1: float = 0.9, *, seconds: float = 4.0, **facts: Any) -> PretrainResult:
    """Return what `pretrain-teacher` would."""
    model = {"file": "model.safetensors", "architecture": "wrn40_2", **PROFILE, **SCORES, "top1": top1}
    return PretrainResult(
        model=Trained(**model, best_top1=1.0, best_epoch=1),
        data="digits",
        epochs=2,
        augmentation=None,
        timing=TrainingTiming(total=seconds, evaluation=0.0),
        **make_run_facts(**facts),
    )


def make_evaluation(architecture: str, file: str, teacher: str, class_names: tuple[str, ...]) -> EvaluateResult:
    """Return what `eval` would say of a model beside its teacher."""
    model = EvaluatedModel(
        file=file,
        sha256="5",
        architecture=architecture,
        **PROFILE,
        **{**SCORES, "lowest_class": architecture},
        expected_calibration_error=0.1,
        reliability=(),
        per_class_accuracy=(),
        images_per_class=(),
        confusion_matrix=(),
        agreement=0.5,
        reality_gap=0.1,
    )
    return EvaluateResult(
        data=architecture,
        images=1,
        class_names=class_names,
        teacher=FileFacts(file=teacher, sha256="5"),
        models=(model,),
        timing=EvaluateTiming(images_per_second=(1.0,), threads=1, latency=None),
        **make_run_facts(),
    )
