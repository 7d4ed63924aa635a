"""A baseline for honesty: images of noise with the teacher's per-channel mean and deviation."""

from __future__ import annotations

from typing import ClassVar, Literal

from gapssg.synthesis.base import PoolMethodSettings, SynthesisContext, Synthesizer


class NoiseSettings(PoolMethodSettings):
    """Distillation on Gaussian noise: what a student learns when the images carry nothing."""

    summary: ClassVar[str] = "baseline: Gaussian noise with the mean and deviation of the teacher's input"
    paper: ClassVar[str] = "-"
    needs_batch_norm: ClassVar[bool] = False
    makes_class_images: ClassVar[bool] = False

    name: Literal["noise"] = "noise"
    """The method."""

    def build(self, context: SynthesisContext) -> Synthesizer:
        """Make the synthesizer."""
        from gapssg.synthesis.pool import NoisePool

        return NoisePool(self, context)
