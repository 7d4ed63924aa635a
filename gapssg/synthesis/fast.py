"""FastDFKD: Fang et al., "Up to 100x Faster Data-Free Knowledge Distillation", AAAI 2022."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from gapssg.synthesis.base import AveragedInversionSettings


class FastSettings(AveragedInversionSettings):
    """A meta-learned generator that needs few steps per batch.

    The defaults are those published for 10 steps and a WRN teacher, as in GapSSG's Table 1. For 2 and 5 steps the
    published learning rates are 5e-3 and 3e-3 for the generator, and 0.015 and 0.01 for the latent.
    """

    batch_synthesis: ClassVar[str] = "gapssg.synthesis.meta_inversion:MetaInversion"
    summary: ClassVar[str] = "a meta-learned generator that needs few steps per batch"
    paper: ClassVar[str] = "Fang et al., AAAI 2022"
    year: ClassVar[int | None] = 2022
    needs_batch_norm: ClassVar[bool] = True
    published: ClassVar[Mapping[str, float]] = {"epochs": 220, "batch_size": 256, "optimizer.learning_rate": 0.2}
    published_for_teacher: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "resnet34": {"method.adversarial_weight": 1.33, "method.target_weight": 0.5},
        "vgg11": {"method.adversarial_weight": 1.0, "method.target_weight": 0.5},
    }
    departs: ClassVar[tuple[str, ...]] = ("the learning rate ends at 0, not at 2e-4",)

    name: Literal["fast"] = "fast"
    """The method."""
    generator_steps: int = Field(default=10, ge=1, le=100_000)
    """Generator steps per synthesis, from the meta-learned weights."""
    generator_learning_rate: float = Field(default=2e-3, gt=0, le=10)
    """Adam's learning rate for the generator; the meta-generator's is `generator_steps` times as high."""
    latent_learning_rate: float = Field(default=0.01, gt=0, le=10)
    """Adam's learning rate for the latent."""
    statistics_weight: float = Field(default=10.0, ge=0, le=1000)
    target_weight: float = Field(default=0.4, ge=0, le=1000)
    adversarial_weight: float = Field(default=1.1, ge=0, le=1000)
    """Weight of the masked divergence, which the images maximise; 0 in the warm-up."""
    warm_up: float = Field(default=1 / 11, ge=0, lt=1)
    """Share of epochs at the start that only synthesise: 20 of the published 220."""
    restart: float = Field(default=7 / 11, ge=0, le=1)
    """Share of epochs after which the meta-generator's first layers are re-initialised: 140 of 220; 1 is never."""

    def adversarial_from(self, epochs: int) -> int:
        """Return the first epoch, counted from 0, with an adversarial term: the last of the warm-up (19 of 220)."""
        return max(self.warm_up_epochs(epochs) - 1, 0)

    def restart_epoch(self, epochs: int) -> int | None:
        """Return the epoch, counted from 0, that re-initialises the meta-generator's first layers (139 of 220)."""
        epoch = round(self.restart * epochs) - 1
        return epoch if self.restart < 1 and epoch > 0 else None
