"""The losses of data-free distillation: plain functions of tensors, computed in the type they are given.

The callers pass float32; the numerics tests pass float64. Symbols as in the GapSSG paper (Wang et al.,
T-PAMI 2024): `teacher_logits` z_t and `student_logits` z_s are (N, K), `targets` y is (N,) int64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def disagreement_loss(teacher_logits: Tensor, student_logits: Tensor, targets: Tensor) -> Tensor:
    """Return `CE((z_t - z_s) / 2, y)`: low where the teacher is sure of the target and the student is not."""
    return F.cross_entropy((teacher_logits - student_logits) / 2, targets)


def agreement_loss(teacher_logits: Tensor, student_logits: Tensor, targets: Tensor) -> Tensor:
    """Return `CE(z_t + z_s, y)`: low where teacher and student together are sure of the target."""
    return F.cross_entropy(teacher_logits + student_logits, targets)


def reality_gap(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return the mean over samples of the largest difference of a class probability, in [0, 1]."""
    difference = teacher_logits.softmax(dim=1) - student_logits.softmax(dim=1)
    return difference.abs().amax(dim=1).mean()


def regulatory_factor(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return `exp(-reality gap)` without gradient: near 1 where the student tracks the teacher."""
    return torch.exp(-reality_gap(teacher_logits.detach(), student_logits.detach()))


def distillation_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return `T^2 KL(softmax(z_t / T) || softmax(z_s / T))`, summed over classes, mean over samples.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
