"""The default method: GapSSG adapted to any teacher and to training on a CPU.

From GapSSG (Wang et al., T-PAMI 2024): the disagreement and agreement losses, the optimised latent, keeping the images
of the step with the lowest loss, and the growing pool. From other methods: a generator that keeps its weights between
batches and so needs few steps (FastDFKD, Fang et al., AAAI 2022), cross-entropy with the targets (CMI, Fang et al.,
IJCAI 2021), mixup in distillation (Beyer et al., CVPR 2022), and stored outputs of the teacher for some views of each
image (FKD, Shen and Xing, ECCV 2022). New, as far as we know: statistics relative to the teacher's own, so that one
weight fits all teachers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from gapssg.settings.parts import PaddingMode
from gapssg.synthesis.base import InversionSettings

if TYPE_CHECKING:
    from torch import Tensor


class GapSSGFastSettings(InversionSettings):
    """GapSSG's gap terms with relative statistics, target cross-entropy and a persistent generator."""

    summary: ClassVar[str] = "GapSSG with relative statistics, a persistent generator and few steps, for any teacher"
    paper: ClassVar[str] = "this project, after Wang et al., T-PAMI 2024"
    is_own: ClassVar[bool] = True
    departs: ClassVar[tuple[str, ...]] = ("this project's own method, not published",)
    needs_batch_norm: ClassVar[bool] = False
    balances_targets: ClassVar[bool] = True
    keeps_generator: ClassVar[bool] = True
    relative_statistics: ClassVar[bool] = True
    # Black borders add variance, which the statistics loss would remove from the images.
    crop_padding_mode: ClassVar[PaddingMode] = "reflect"

    name: Literal["gapssg-fast"] = "gapssg-fast"
    """The method."""
    temperature: float = Field(default=4.0, gt=0, le=1000)
    """Temperature T of the distillation loss."""
    mixup: float = Field(default=0.5, ge=0, le=1)
    """Probability that an image of a distillation batch is mixed with another one, with uniformly drawn weights."""
    synthesis_batch_size: int = Field(default=128, ge=2, le=65_536)
    """Images per synthesis, N."""
    distillation_steps: int = Field(default=60, ge=0, le=1_000_000)
    """Fixed schedule: distillation steps per epoch; 0 selects the sample-balanced schedule."""
    labelled_views: int = Field(default=16, ge=0, le=1000)
    """Random views of each image, whose teacher logits are computed once; 0 computes them in every step, for a new
    view."""
    generator_steps: int = Field(default=12, ge=1, le=100_000)
    """Generator steps per synthesis."""
    generator_learning_rate: float = Field(default=5e-3, gt=0, le=10)
    """Adam's learning rate for the generator and the latent."""
    generator_width: int = Field(default=32, ge=4, le=1024)
    """Channels of the generator's last hidden layer."""
    statistics_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the relative statistics loss: of the batch norms or, without any, of the teacher's input."""
    target_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the teacher's cross-entropy with the targets."""
    disagreement_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the disagreement loss."""
    agreement_weight: float = Field(default=0.2, ge=0, le=1000)
    """Weight of the agreement loss."""

    def loss(
        self, statistics_loss: Tensor, teacher_logits: Tensor, student_logits: Tensor, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the generator's loss `L_rel + CE(z_t, y) + L_ds + 0.2 L_as` and its terms.

        The factor `1 - a` is omitted: it vanishes where teacher and student agree, even on a wrong class, and no
        term would then bring the images back to their targets.
        """
        import torch.nn.functional as F

        from gapssg.synthesis.losses import agreement_loss, disagreement_loss

        target_loss = F.cross_entropy(teacher_logits, targets)
        disagreement = disagreement_loss(teacher_logits, student_logits, targets)
        agreement = agreement_loss(teacher_logits, student_logits, targets)
        loss = (
            self.statistics_weight * statistics_loss
            + self.target_weight * target_loss
            + self.disagreement_weight * disagreement
            + self.agreement_weight * agreement
        )
        return loss, {
            "relative_statistics_loss": statistics_loss,
            "target_loss": target_loss,
            "disagreement_loss": disagreement,
            "agreement_loss": agreement,
        }
