"""Adaptive DeepInversion: Yin et al., "Dreaming to Distill", CVPR 2020."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from gapssg.synthesis.base import PoolMethodSettings, SynthesisContext, Synthesizer


class DeepInversionSettings(PoolMethodSettings):
    """Pixels optimised for their class, the statistics of the training data and disagreement; no generator."""

    summary: ClassVar[str] = "pixels that have the statistics of the training data, without a generator"
    paper: ClassVar[str] = "Yin et al., CVPR 2020"
    needs_batch_norm: ClassVar[bool] = True
    published: ClassVar[Mapping[str, float]] = {"epochs": 200, "batch_size": 256, "optimizer.learning_rate": 0.1}

    name: Literal["deepinversion"] = "deepinversion"
    """The method."""
    distillation_steps: int = Field(default=400, ge=0, le=1_000_000)
    """Fixed schedule: distillation steps of every epoch; 0 is the sample-balanced schedule."""
    pixel_steps: int = Field(default=1000, ge=1, le=100_000)
    """Steps of each synthesis."""
    pixel_learning_rate: float = Field(default=0.1, gt=0, le=10)
    """Adam's learning rate for the normalised pixels."""
    statistics_weight: float = Field(default=10.0, ge=0, le=1000)
    """Weight of the batch-norm statistics loss."""
    target_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the teacher's cross-entropy with the targets."""
    adversarial_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the Jensen-Shannon divergence, which the images are to raise."""
    adversarial_temperature: float = Field(default=3.0, gt=0, le=1000)
    """Temperature of the Jensen-Shannon divergence."""
    variation_weight: float = Field(default=1e-3, ge=0, le=1000)
    """Weight of the total variation of the normalised pixels."""
    norm_weight: float = Field(default=0.0, ge=0, le=1000)
    """Weight of the L2 norm of the normalised pixels."""

    @property
    def step_count(self) -> int:
        """Steps of one synthesis."""
        return self.pixel_steps

    def build(self, context: SynthesisContext) -> Synthesizer:
        """Make the synthesizer."""
        from gapssg.synthesis.pixel_inversion import PixelInversion
        from gapssg.synthesis.pool_synthesizer import PoolSynthesizer

        return PoolSynthesizer(self, context, PixelInversion(self, context))
