"""The counters of a distillation that a checkpoint stores."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from gapssg.errors import InputError
from gapssg.runs.checkpoint import NOT_OF_THIS_RUN, Facts
from gapssg.settings.parts import MOST_ROLLBACKS
from gapssg.synthesis.synthesizer import EpochPlan


class EpochFacts(Facts):
    """The state of the current epoch."""

    round: NonNegativeInt = 0
    synthesised: bool = False
    terms: dict[str, float] = Field(default_factory=dict)
    reality_gap_before: float = 0.0
    agreement_before: float | None = None
    agreement_baseline: float | None = None
    synthesis_seconds: NonNegativeFloat = 0.0
    distillation_seconds: NonNegativeFloat = 0.0


class Progress(Facts):
    """The state of a distillation, besides tensors and the student's optimizer."""

    epochs_done: NonNegativeInt = 0
    learning_epochs: NonNegativeInt = 0
    """Epochs that the learning-rate schedule has counted."""
    agreement: float | None = None
    """Agreement with the teacher on the newest images of the last epoch, before the student trained on them."""
    agreement_baseline: float | None = None
    """Agreement of a constant prediction, the teacher's most frequent class, on the same images."""
    lacks_classes: bool = False
    """Whether the images of the last epoch lacked classes."""
    images_synthesized: NonNegativeInt = 0
    step_count: NonNegativeInt = 0
    """Distillation steps."""
    labelled_images: NonNegativeInt = 0
    """Images, from the first of the pool on, of whose labelled views the run has written the logits."""
    synthesis_seconds: NonNegativeFloat = 0.0
    distillation_seconds: NonNegativeFloat = 0.0
    synthesis_rollbacks: NonNegativeInt = 0
    epoch: EpochFacts = Field(default_factory=EpochFacts)

    def check(self, epochs: int, plan: Callable[[int], EpochPlan]) -> None:
        """Raise `InputError` if a run with these plans cannot have these counters: a checkpoint may be untrusted."""
        unfinished = self.epochs_done < epochs
        if not (
            self.epochs_done <= epochs
            and self.learning_epochs <= self.epochs_done
            and self.synthesis_rollbacks <= MOST_ROLLBACKS
            and self.epoch.round < (plan(self.epochs_done).rounds if unfinished else 1)
            and (unfinished or not self.epoch.synthesised)
        ):
            raise InputError(NOT_OF_THIS_RUN)
