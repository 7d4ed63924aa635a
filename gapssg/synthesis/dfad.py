"""DFAD: Fang et al., "Data-Free Adversarial Distillation", arXiv:1912.11006, 2019."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from gapssg.synthesis.base import GeneratorMethodSettings, Responses

if TYPE_CHECKING:
    from torch import Tensor


class DFADSettings(GeneratorMethodSettings):
    """Images that maximise the distance between student and teacher logits; the student minimises it.

    Batch size and learning rate are those of the released code (`DFAD_cifar.py`). The number of epochs is that of the
    methods it is compared with: the published table has no DFAD.
    """

    summary: ClassVar[str] = "images on which student and teacher differ most in logits"
    paper: ClassVar[str] = "Fang et al., 2019"
    year: ClassVar[int | None] = 2019
    needs_batch_norm: ClassVar[bool] = False
    published: ClassVar[Mapping[str, float]] = {"epochs": 200, "batch_size": 256, "optimizer.learning_rate": 0.1}
    departs: ClassVar[tuple[str, ...]] = (
        *GeneratorMethodSettings.departs,
        "epochs and schedule of the other methods; the published code has 500 epochs of 50 rounds, with step decay",
        "weight decay 1e-4, not 5e-4, and each round starts with the generator, not with the student",
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
        """Return `mean |z_s - z_t|`; the temperature is not used."""
        from gapssg.synthesis.losses import logit_distance

        return logit_distance(student_logits, teacher_logits)
