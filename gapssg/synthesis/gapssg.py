"""GapSSG: Wang, Qian, Liu, Rui, Wang, "Unpacking the Gap Box Against Data-Free Knowledge Distillation".

IEEE Transactions on Pattern Analysis and Machine Intelligence, 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from gapssg.synthesis.base import InversionSettings

if TYPE_CHECKING:
    from torch import Tensor


class GapSSGSettings(InversionSettings):
    """Gap-sensitive sample generation; the defaults are the published settings."""

    summary: ClassVar[str] = "images from which the student can learn most, regulated by the reality gap"
    paper: ClassVar[str] = "Wang et al., T-PAMI 2024"
    year: ClassVar[int | None] = 2024
    needs_batch_norm: ClassVar[bool] = False
    published: ClassVar[Mapping[str, float]] = {
        "epochs": 200,
        "batch_size": 128,
        "optimizer.learning_rate": 0.2,
        "optimizer.weight_decay": 1e-4,
    }
    published_pair: ClassVar[str | None] = "cifar100-resnet34-mobilenetv2"

    name: Literal["gapssg"] = "gapssg"
    """The method."""
    statistics_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the statistics loss: of the batch norms or, without any, of the teacher's input."""
    gap_weight: float = Field(default=0.5, ge=0, le=1000)
    """Weight of the two gap terms, before the regulatory factor."""
    disagreement_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the disagreement loss in the gap terms."""
    agreement_weight: float = Field(default=0.2, ge=0, le=1000)
    """Weight of the agreement loss in the gap terms."""
    regulatory_factor: bool = True
    """Whether the regulatory factor a weakens the gap terms while the gap is small; otherwise a = 0."""

    def loss(
        self, statistics_loss: Tensor, teacher_logits: Tensor, student_logits: Tensor, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the generator's loss `L_bn + 0.5 (1 - a) (L_ds + 0.2 L_as)` and its terms.

        The regulatory factor `a` has no gradient; the other terms have gradients for both logits. The returned terms
        include `a` only if it is used.
        """
        from gapssg.synthesis.losses import agreement_loss, disagreement_loss, regulatory_factor

        disagreement = disagreement_loss(teacher_logits, student_logits, targets)
        agreement = agreement_loss(teacher_logits, student_logits, targets)
        factor = regulatory_factor(teacher_logits, student_logits)
        gap = self.disagreement_weight * disagreement + self.agreement_weight * agreement
        weight = self.gap_weight * (1 - factor if self.regulatory_factor else 1)
        terms = {
            "batch_norm_statistics_loss": statistics_loss,
            "disagreement_loss": disagreement,
            "agreement_loss": agreement,
            **({"regulatory_factor": factor} if self.regulatory_factor else {}),
        }
        return self.statistics_weight * statistics_loss + weight * gap, terms
