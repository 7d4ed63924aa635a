"""NAYER (Noisy Layer Data Generation): Tran et al., CVPR 2024."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from gapssg.settings.base import UserPath
from gapssg.synthesis.base import LINEAR_OR_EMBEDDINGS, AveragedInversionSettings


class NAYERSettings(AveragedInversionSettings):
    """A persistent generator that gets label embeddings through a linear layer redrawn for each batch.

    A published epoch has 10 batches in the warm-up, and 2 batches and 400 distillation steps after it. Here an epoch
    has one batch and 200 steps, so that 120 published epochs correspond to 400, half of them warm-up.
    """

    batch_synthesis: ClassVar[str] = "gapssg.synthesis.noisy_inversion:NoisyInversion"
    summary: ClassVar[str] = "a persistent generator fed with label embeddings through a new random layer per batch"
    paper: ClassVar[str] = "Tran et al., CVPR 2024"
    year: ClassVar[int | None] = 2024
    needs_batch_norm: ClassVar[bool] = True
    balances_targets: ClassVar[bool] = True
    keeps_generator: ClassVar[bool] = True
    published: ClassVar[Mapping[str, float]] = {"epochs": 400, "batch_size": 512, "optimizer.learning_rate": 0.2}
    departs: ClassVar[tuple[str, ...]] = (
        "label embeddings are the rows of the teacher's last layer unless a file of text embeddings is given",
        "distillation follows each batch, not every two batches",
        "the number of generator steps does not depend on the classes; for 100, 40 are published",
        "the learning rate ends at 0, not at 2e-4",
    )

    name: Literal["nayer"] = "nayer"
    """The method."""
    label_embeddings: UserPath | None = None
    """A safetensors file with one tensor (classes, size), such as text embeddings of the class names; without it, the
    rows of the teacher's last linear layer."""
    synthesis_batch_size: int = Field(default=400, ge=2, le=65_536)
    distillation_steps: int = Field(default=200, ge=0, le=1_000_000)
    generator_steps: int = Field(default=30, ge=1, le=100_000)
    """Generator steps per synthesis; 40 are published for 100 classes."""
    generator_learning_rate: float = Field(default=4e-3, gt=0, le=10)
    """Adam's learning rate for the generator and the noisy layers."""
    latent_size: int = Field(default=1000, ge=1, le=16_384)
    """Output dimensions of a noisy layer."""
    generator_life: int = Field(default=20, ge=1, le=1_000_000)
    """Batches after which the generator is re-initialised; five times as many in the warm-up, whose published epochs
    have 10 batches instead of 2."""
    statistics_weight: float = Field(default=10.0, ge=0, le=1000)
    target_weight: float = Field(default=0.5, ge=0, le=1000)
    adversarial_weight: float = Field(default=1.33, ge=0, le=1000)
    """Weight of the masked divergence, which the images maximise; 0 in the warm-up."""
    warm_up: float = Field(default=0.5, ge=0, lt=1)
    """Share of epochs at the start that only synthesise: 200 of the published 400 batches."""

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        """Return what the method requires of a teacher."""
        return (*super().needs(), LINEAR_OR_EMBEDDINGS)

    def restarts_generator(self, epoch: int, epochs: int) -> bool:
        """Return whether the synthesis of an epoch, counted from 0, re-initialises the generator."""
        warm_up = self.warm_up_epochs(epochs)
        life = 5 * self.generator_life if epoch < warm_up else self.generator_life
        return (epoch if epoch < warm_up else epoch - warm_up) % life == 0
