"""ZSKT: Micaelli and Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from gapssg.synthesis.base import GeneratorMethodSettings, Responses

if TYPE_CHECKING:
    from torch import Tensor


class ZSKTSettings(GeneratorMethodSettings):
    """Images that maximise the divergence of student and teacher.

    The published scripts of the comparison pass temperature 20 and augmentation, but their code uses temperature 1
    without augmentation, in synthesis and distillation. The defaults follow the code.
    """

    summary: ClassVar[str] = "images on which student and teacher differ most in probability"
    paper: ClassVar[str] = "Micaelli and Storkey, NeurIPS 2019"
    year: ClassVar[int | None] = 2019
    needs_batch_norm: ClassVar[bool] = False
    published: ClassVar[Mapping[str, float]] = {"epochs": 200, "batch_size": 256, "optimizer.learning_rate": 0.1}
    departs: ClassVar[tuple[str, ...]] = (
        *GeneratorMethodSettings.departs,
        "as in CMI's code: the student without attention transfer, Adam and clipped gradients",
    )
    makes_class_images: ClassVar[bool] = False

    name: Literal["zskt"] = "zskt"
    """The method."""
    adversarial_weight: float = Field(default=1.0, gt=0, le=1000)
    """Weight of the divergence."""

    def loss(self, responses: Responses) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `-KL_T(z_s, z_t)` and, as its term, the divergence."""
        from gapssg.synthesis.losses import distillation_divergence

        divergence = distillation_divergence(responses.student_logits, responses.teacher_logits, self.temperature)
        return -self.adversarial_weight * divergence, {"divergence": divergence}
