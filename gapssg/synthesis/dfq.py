"""DFQ: Choi et al., "Data-Free Network Quantization with Adversarial Knowledge Distillation", CVPRW 2020."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from gapssg.synthesis.base import GeneratorMethodSettings, Responses

if TYPE_CHECKING:
    from torch import Tensor


class DFQSettings(GeneratorMethodSettings):
    """Adversarial images with the teacher's batch-norm statistics, confident predictions and balanced classes.

    The published scripts of the comparison pass temperature 20 and augmentation, but their code uses temperature 1
    without augmentation, in synthesis and distillation. The defaults follow the code.
    """

    summary: ClassVar[str] = "adversarial images that match the batch-norm statistics"
    paper: ClassVar[str] = "Choi et al., CVPRW 2020"
    year: ClassVar[int | None] = 2020
    needs_batch_norm: ClassVar[bool] = True
    published: ClassVar[Mapping[str, float]] = {"epochs": 200, "batch_size": 256, "optimizer.learning_rate": 0.1}
    published_for_teacher: ClassVar[Mapping[str, Mapping[str, float]]] = {"resnet34": {"optimizer.learning_rate": 0.05}}

    name: Literal["dfq"] = "dfq"
    """The method."""
    statistics_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the batch-norm statistics loss."""
    confidence_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the cross-entropy with the teacher's own prediction."""
    adversarial_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the divergence, which the images maximise."""
    balance_weight: float = Field(default=20.0, ge=0, le=1000)
    """Weight of the class balance loss."""
    rounds: int = Field(default=40, ge=1, le=100_000)
    distillation_steps: int = Field(default=10, ge=1, le=100_000)

    def loss(self, responses: Responses) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `L_bn + CE(z_t, argmax z_t) - KL_T(z_s, z_t) + 20 sum(q log q)` and its terms."""
        from gapssg.synthesis.losses import class_balance_loss, confidence_loss, distillation_divergence

        teacher_logits = responses.teacher_logits
        confidence, balance = confidence_loss(teacher_logits), class_balance_loss(teacher_logits)
        divergence = distillation_divergence(responses.student_logits, teacher_logits, self.temperature)
        loss = (
            self.statistics_weight * responses.statistics_loss
            + self.confidence_weight * confidence
            - self.adversarial_weight * divergence
            + self.balance_weight * balance
        )
        return loss, {
            "batch_norm_statistics_loss": responses.statistics_loss,
            "confidence_loss": confidence,
            "divergence": divergence,
            "class_balance_loss": balance,
        }
