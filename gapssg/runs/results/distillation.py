"""The result of `distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from gapssg.errors import InputError
from gapssg.models.description import ModelProfile
from gapssg.runs.results.common import ModelFile, RunResult
from gapssg.runs.results.quality import QualityFacts
from gapssg.runs.results.training import PretrainResult, Trained, TrainingResult, TrainingTiming
from gapssg.stored import MOST_COUNTED_CLASSES, Count, Counts, PositiveCount, Seconds, Sentences, Share, Stored, Text


class TeacherFacts(ModelFile, ModelProfile):
    """The teacher of a distillation."""

    top1: Share | None


class AfterTraining(Stored):
    """How student and teacher compare on synthetic images after training."""

    images: Count
    agreement: Share
    agreement_baseline: Share
    lowest_agreement: Share | None
    """Lowest agreement on the images of one class; None if no class has at least 10."""
    lowest_class: Text | None


class StudentFacts(Trained):
    """The student of a distillation."""

    agreement: Share | None
    """Agreement with the teacher on the last synthesised images, before the student trained on them."""
    agreement_baseline: Share | None
    """Agreement of a constant prediction, the teacher's most frequent class, on the same images."""
    after_training: AfterTraining | None


class DistillTiming(TrainingTiming):
    """Duration of a distillation."""

    synthesis: Seconds
    distillation: Seconds


class SettlingResult(Stored):
    """Whether a run with `until_settled` ended early."""

    most_epochs: PositiveCount
    settled_after: PositiveCount | None
    """Epochs after which the predicted disagreement no longer fell; None if it fell until the end."""
    could_tell: bool = True
    """Whether it was measured after enough epochs to tell."""

    def describe(self, epochs: int) -> str:
        """Return what happened in a run of so many epochs, as a clause."""
        if self.settled_after is None and not self.could_tell:
            return "too few epochs had the highest learning rate to tell whether the predicted disagreement still fell"
        if self.settled_after is None:
            return f"the predicted disagreement still fell after {epochs} epochs, so more may help"
        return (
            f"the predicted disagreement no longer fell after epoch {self.settled_after}, so the run ended after "
            f"{epochs} of at most {self.most_epochs} epochs"
        )


class DistillResult(TrainingResult):
    """The result of `distill`."""

    model_file = "student.safetensors"
    noun = "student"

    command: Literal["distill"] = "distill"
    method: Text
    """The data-free method that synthesised the images."""
    pool: Text | None = None
    """The run whose sample pool was reused."""
    pool_sha256: Text | None = None
    """The SHA-256 of the shards of that pool when the run began, as `sha256_of_files` computes it."""
    teacher: TeacherFacts
    student: StudentFacts
    failures: Sentences = ()
    """Why the student is not usable; empty if no check failed."""
    warnings: Sentences = ()
    """Failed checks on synthetic images of a student that is usable by its scores on real images."""
    missing_classes: Annotated[tuple[Text, ...], Field(max_length=MOST_COUNTED_CLASSES, fail_fast=True)] = ()
    """Classes that the teacher almost never predicts on the synthetic images."""
    teacher_counts: Counts | None = None
    """Number of images that the teacher assigned to each class; None with more than 1,000 classes."""
    target_counts: Counts | None = None
    """Number of images with each class as the target; None with more than 1,000 classes."""
    quality: QualityFacts | None = None
    """What is expected of the student on real images; None if the run evaluated it on such images."""
    settling: SettlingResult | None = None
    """Whether the run ended early; None if it was not to."""
    images_synthesized: Count
    images_procedural: Count = 0
    """Images of random shapes from which the student learned, too."""
    distillation_steps: Count
    flops: Count | None = None
    """Floating-point operations in teacher and student."""
    timing: DistillTiming

    @property
    def model(self) -> StudentFacts:
        """The model that the run made."""
        return self.student


def load_training_result(run: Path) -> DistillResult | PretrainResult:
    """Read a result of `distill` or `pretrain-teacher`; raise `InputError` if it is missing, damaged or another."""
    command = RunResult.load(run).command
    if command == "distill":
        return DistillResult.load(run)
    if command == "pretrain-teacher":
        return PretrainResult.load(run)
    raise InputError(f"{run} is not a run of distill or pretrain-teacher; name one that is")
