"""DFAD: Fang et al., "Data-Free Adversarial Distillation", arXiv:1912.11006, 2019."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from gapssg.synthesis.base import GeneratorMethodSettings, Responses

if TYPE_CHECKING:
    from torch import Tensor


class DFADSettings(GeneratorMethodSettings):
    """Images on which the student's logits are furthest from the teacher's; the student minimises the same distance.

    Batch size and learning rate are those of the code that was released with the paper (`DFAD_cifar.py`). The number
    of epochs is that of the methods it is compared with: the published table has no DFAD.
    """

    summary: ClassVar[str] = "images on which student and teacher differ most in logits"
    paper: ClassVar[str] = "Fang et al., 2019"
    year: ClassVar[int | None] = 2019
    needs_batch_norm: ClassVar[bool] = False
    published: ClassVar[Mapping[str, float]] = {"epochs": 200, "batch_size": 256, "optimizer.learning_rate": 0.1}
    departs: ClassVar[tuple[str, ...]] = (
        *GeneratorMethodSettings.departs,
        "epochs and schedule are those of the methods beside it; its own code has 500 epochs of 50 rounds, and steps",
    )
    makes_class_images: ClassVar[bool] = False

    name: Literal["dfad"] = "dfad"
    """The method."""

    def loss(self, responses: Responses) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `-mean |z_s - z_t|` and, as its term, the distance."""
        from gapssg.synthesis.losses import logit_distance

        distance = logit_distance(responses.student_logits, responses.teacher_logits)
        return -distance, {"logit_distance": distance}

    def distillation_loss(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return `mean |z_s - z_t|`; the temperature plays no part."""
        from gapssg.synthesis.losses import logit_distance

        return logit_distance(student_logits, teacher_logits)
