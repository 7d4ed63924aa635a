"""CMI: Fang et al., "Contrastive Model Inversion for Data-Free Knowledge Distillation", IJCAI 2021."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from gapssg.synthesis.base import TargetInversionSettings


class CMISettings(TargetInversionSettings):
    """Adversarial images that a contrastive loss keeps distinct from each other and from earlier ones.

    The memory bank takes `8 * bank_size * F` bytes on the device and in checkpoints, where F is the total number of
    batch-norm channels of the teacher: 886 MB for a WRN-40-2 (F = 2,704) and 2.8 GB for a ResNet-34 (F = 8,512). The
    contrastive head has more than `F * F` weights: 8 million and 75 million.
    """

    batch_synthesis: ClassVar[str] = "gapssg.synthesis.contrastive_inversion:ContrastiveInversion"
    has_local_views: ClassVar[bool] = True
    summary: ClassVar[str] = "images that a contrastive loss keeps distinct from each other and from earlier ones"
    paper: ClassVar[str] = "Fang et al., IJCAI 2021"
    year: ClassVar[int | None] = 2021
    needs_batch_norm: ClassVar[bool] = True
    published: ClassVar[Mapping[str, float]] = {"epochs": 200, "batch_size": 256, "optimizer.learning_rate": 0.1}
    departs: ClassVar[tuple[str, ...]] = (
        "views of extreme shape are clipped at the image border, not redrawn",
        "the published results start from a pool of 50,000 images inverted beforehand",
    )
    departs_for_teacher: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "resnet34": ("the contrastive loss uses the inputs of all batch norms, not those of the four stages",)
    }

    name: Literal["cmi"] = "cmi"
    """The method."""
    generator_learning_rate: float = Field(default=1e-3, gt=0, le=10)
    """Adam's learning rate for the generator, the latent and the contrastive head."""
    statistics_weight: float = Field(default=1.0, ge=0, le=1000)
    target_weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the teacher's cross-entropy with the targets; 0.5 in some of the published runs."""
    adversarial_weight: float = Field(default=0.5, ge=0, le=1000)
    contrast_weight: float = Field(default=0.8, ge=0, le=1000)
    """Weight of the contrastive loss."""
    contrast_temperature: float = Field(default=0.2, gt=0, le=1000)
    """Temperature of the contrastive loss; 0.1 in some of the published runs."""
    bank_size: int = Field(default=40_960, ge=1, le=10_000_000)
    """Features of earlier images in the memory bank."""
    negatives: int = Field(default=4096, ge=1, le=1_000_000)
    """Bank features drawn in each step."""
    head_size: int = Field(default=256, ge=1, le=16_384)
    """Output dimensions of the contrastive head."""
    smallest_view: float = Field(default=0.25, gt=0, le=1)
    """Smallest share of an image's area in a local view."""
