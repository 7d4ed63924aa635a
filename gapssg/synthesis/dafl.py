"""DAFL: Chen et al., "Data-Free Learning of Student Networks", ICCV 2019."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from gapssg.synthesis.base import GeneratorMethodSettings, Responses

if TYPE_CHECKING:
    from torch import Tensor


class DAFLSettings(GeneratorMethodSettings):
    """Images that the teacher classifies with confidence, balanced over the classes; the student is not used.

    The published scripts pass temperature 20 and augmentation, but the published code uses temperature 1 without
    augmentation, in synthesis and distillation. The defaults follow the code.
    """

    summary: ClassVar[str] = "images that the teacher classifies with confidence, balanced over the classes"
    paper: ClassVar[str] = "Chen et al., ICCV 2019"
    year: ClassVar[int | None] = 2019
    needs_batch_norm: ClassVar[bool] = False
    published: ClassVar[Mapping[str, float]] = {"epochs": 200, "batch_size": 256, "optimizer.learning_rate": 0.1}
    departs: ClassVar[tuple[str, ...]] = (
        *GeneratorMethodSettings.departs,
        "the shared generator has twice its width",
    )
    reads_features: ClassVar[bool] = True
    reads_student: ClassVar[bool] = False

    name: Literal["dafl"] = "dafl"
    """The method."""
    confidence_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the cross-entropy with the teacher's own prediction (the published "one-hot" loss)."""
    activation_weight: float = Field(default=1e-3, ge=0, le=1000)
    """Weight of the activation loss, which rewards large teacher features."""
    balance_weight: float = Field(default=20.0, ge=0, le=1000)
    """Weight of the class balance loss."""
    generator_width: int = Field(default=128, ge=4, le=1024)
    """Channels of the generator's last hidden layer; the first has twice as many, 4 x 64 as published."""
    latent_size: int = Field(default=512, ge=1, le=16_384)

    def loss(self, responses: Responses) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `CE(z_t, argmax z_t) - 1e-3 mean |f_t| + 20 sum(q log q)` and its terms."""
        from gapssg.synthesis.losses import class_balance_loss, confidence_loss

        confidence = confidence_loss(responses.teacher_logits)
        activation = -responses.features.abs().mean()
        balance = class_balance_loss(responses.teacher_logits)
        loss = self.confidence_weight * confidence + self.activation_weight * activation + self.balance_weight * balance
        return loss, {"confidence_loss": confidence, "activation_loss": activation, "class_balance_loss": balance}
