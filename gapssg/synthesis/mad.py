"""MAD: Do et al., "Momentum Adversarial Distillation", NeurIPS 2022."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from gapssg.synthesis.base import GeneratorMethodSettings, Responses

if TYPE_CHECKING:
    from torch import Tensor


class MADSettings(GeneratorMethodSettings):
    """Adversarial images, half of them from a moving average of the generator, which remembers earlier images.

    Only the momentum is the published one. The loss weights are those of DFQ; the discrepancy is the distillation
    divergence.
    """

    summary: ClassVar[str] = "adversarial images, half of them from a moving average of the generator"
    paper: ClassVar[str] = "Do et al., NeurIPS 2022"
    year: ClassVar[int | None] = 2022
    needs_batch_norm: ClassVar[bool] = True
    departs: ClassVar[tuple[str, ...]] = (
        *GeneratorMethodSettings.departs,
        "the loss weights are those of dfq",
        "the generator is not class-conditional",
    )

    name: Literal["mad"] = "mad"
    """The method."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Momentum of the moving average of the generator's weights."""
    statistics_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the batch-norm statistics loss."""
    confidence_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the cross-entropy with the teacher's own prediction."""
    adversarial_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the divergence, which the images maximise."""

    @property
    def average_momentum(self) -> float | None:
        """Momentum of the moving average of the generator."""
        return self.momentum

    def loss(self, responses: Responses) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `-KL_T(z_s, z_t) + L_bn + CE(z_t, argmax z_t)` and its terms."""
        from gapssg.synthesis.losses import confidence_loss, distillation_divergence

        confidence = confidence_loss(responses.teacher_logits)
        divergence = distillation_divergence(responses.student_logits, responses.teacher_logits, self.temperature)
        loss = (
            self.statistics_weight * responses.statistics_loss
            + self.confidence_weight * confidence
            - self.adversarial_weight * divergence
        )
        return loss, {
            "batch_norm_statistics_loss": responses.statistics_loss,
            "confidence_loss": confidence,
            "divergence": divergence,
        }
