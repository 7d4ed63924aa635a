"""Adaptive DeepInversion: Yin et al., "Dreaming to Distill", CVPR 2020."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from gapssg.synthesis.base import PoolMethodSettings

if TYPE_CHECKING:
    from torch import Tensor


class DeepInversionSettings(PoolMethodSettings):
    """Pixels optimised for their class, batch-norm statistics and student-teacher disagreement; no generator."""

    batch_synthesis: ClassVar[str] = "gapssg.synthesis.pixel_inversion:PixelInversion"
    summary: ClassVar[str] = "pixels optimised to match the batch-norm statistics, without a generator"
    paper: ClassVar[str] = "Yin et al., CVPR 2020"
    year: ClassVar[int | None] = 2020
    needs_batch_norm: ClassVar[bool] = True
    published: ClassVar[Mapping[str, float]] = {"epochs": 200, "batch_size": 256, "optimizer.learning_rate": 0.1}

    name: Literal["deepinversion"] = "deepinversion"
    """The method."""
    distillation_steps: int = Field(default=400, ge=0, le=1_000_000)
    pixel_steps: int = Field(default=2000, ge=1, le=100_000)
    """Pixel steps per synthesis: 2,000 in the results of the comparisons, 1,000 in their scripts."""
    pixel_learning_rate: float = Field(default=0.1, gt=0, le=10)
    """Adam's learning rate for the normalised pixels."""
    statistics_weight: float = Field(default=10.0, ge=0, le=1000)
    """Weight of the batch-norm statistics loss."""
    target_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the teacher's cross-entropy with the targets."""
    adversarial_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the Jensen-Shannon divergence, which the images maximise."""
    adversarial_temperature: float = Field(default=3.0, gt=0, le=1000)
    """Temperature of the Jensen-Shannon divergence."""
    variation_weight: float = Field(default=1e-3, ge=0, le=1000)
    """Weight of the total variation of the normalised pixels."""
    norm_weight: float = Field(default=0.0, ge=0, le=1000)
    """Weight of the L2 norm of the normalised pixels."""

    @property
    def step_count(self) -> int:
        """Steps per synthesis."""
        return self.pixel_steps

    def loss(
        self, statistics_loss: Tensor, teacher_logits: Tensor, student_logits: Tensor, targets: Tensor, pixels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `10 L_bn + CE(z_t, y) - JS(z_s, z_t) + 1e-3 TV(x) + 0 norm(x)` and its terms.

        `pixels` are the normalised x, (N, C, H, W).
        """
        import torch
        import torch.nn.functional as F

        from gapssg.synthesis.losses import jensen_shannon_divergence, total_variation

        divergence = jensen_shannon_divergence(student_logits, teacher_logits, self.adversarial_temperature)
        weighted = {
            "batch_norm_statistics_loss": (self.statistics_weight, statistics_loss),
            "target_loss": (self.target_weight, F.cross_entropy(teacher_logits, targets)),
            "jensen_shannon_divergence": (-self.adversarial_weight, divergence),
            "total_variation": (self.variation_weight, total_variation(pixels)),
            "pixel_norm": (self.norm_weight, pixels.norm()),
        }
        loss = torch.stack([weight * term for weight, term in weighted.values()]).sum()
        return loss, {name: term for name, (_, term) in weighted.items()}
