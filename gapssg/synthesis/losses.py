"""The losses of data-free distillation: plain functions of tensors, computed in the dtype of their inputs.

The callers pass float32; the numerics tests pass float64. Symbols as in the GapSSG paper (Wang et al.,
T-PAMI 2024): `teacher_logits` z_t and `student_logits` z_s are (N, K), `targets` y is (N,) int64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def disagreement_loss(teacher_logits: Tensor, student_logits: Tensor, targets: Tensor) -> Tensor:
    """Return `CE((z_t - z_s) / 2, y)`: low where the teacher is confident of the target and the student is not."""
    return F.cross_entropy((teacher_logits - student_logits) / 2, targets)


def agreement_loss(teacher_logits: Tensor, student_logits: Tensor, targets: Tensor) -> Tensor:
    """Return `CE(z_t + z_s, y)`: low where teacher and student together are confident of the target."""
    return F.cross_entropy(teacher_logits + student_logits, targets)


def reality_gap(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return the mean over samples of the largest difference of a class probability, in [0, 1]."""
    return reality_gaps(teacher_logits, student_logits).mean()


def reality_gaps(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return for each sample the largest difference of a class probability, (N,) in [0, 1]."""
    difference = teacher_logits.softmax(dim=1) - student_logits.softmax(dim=1)
    return difference.abs().amax(dim=1)


def gap_bounds(
    teacher_logits: Tensor, student_logits: Tensor, ideal_logits: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the bounds of the inherent and of the derived gap, means over samples, in nats.

    They are `E[|p_t - p_t*| |log(1/p_s)|]` and `E[|p_t* - y| |log(1/p_s)|]`, with Euclidean norms over the classes and
    y as one-hot vectors. By the inequalities of the triangle and of Cauchy and Schwarz, for any T* their sum is at
    least the distance of the student's risk under the teacher's probabilities from that under the targets (Wang et
    al., T-PAMI 2024).

    Args:
        teacher_logits: (N, K), of T.
        student_logits: (N, K), of S.
        ideal_logits: (N, K), of the ideal teacher T*, or of what stands for it.
        targets: (N,) int64.
    """
    teacher, ideal = teacher_logits.softmax(dim=1), ideal_logits.softmax(dim=1)
    surprise = F.log_softmax(student_logits, dim=1).norm(dim=1)
    answers = F.one_hot(targets, ideal.shape[1]).to(ideal.dtype)
    return ((teacher - ideal).norm(dim=1) * surprise).mean(), ((ideal - answers).norm(dim=1) * surprise).mean()


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


def confidence_loss(teacher_logits: Tensor) -> Tensor:
    """Return `CE(z_t, argmax z_t)`, the "one-hot" loss: low where the teacher is confident of any class.

    Chen et al., "Data-Free Learning of Student Networks" (DAFL), ICCV 2019, equation 3.
    """
    return F.cross_entropy(teacher_logits, teacher_logits.argmax(dim=1))


def class_balance_loss(teacher_logits: Tensor) -> Tensor:
    """Return `sum(q log q)` with q the mean of the teacher's probabilities: lowest, -log K, for balanced classes.

    Chen et al., "Data-Free Learning of Student Networks" (DAFL), ICCV 2019, equation 5, without its 1/K.
    """
    mean = teacher_logits.softmax(dim=1).mean(dim=0)
    # A class of probability 0 contributes nothing and has a finite gradient.
    return (mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum()


def masked_divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the mean over samples of `KL(p_t || p_s)` where both predict the same class, 0 elsewhere.

    Fang et al., "Contrastive Model Inversion" (CMI), IJCAI 2021, and FastDFKD, AAAI 2022: the adversarial term.
    """
    student, teacher = F.log_softmax(student_logits, dim=1), F.log_softmax(teacher_logits, dim=1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
    agree = student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)
    return (divergence * agree).mean()


def jensen_shannon_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return `KL(M || P) / 2 + KL(M || Q) / 2` with M the mean of the probabilities P and Q at a temperature.

    P, Q and M are clamped to [0.01, 0.99], as the published code of Adaptive DeepInversion does (Yin et al., CVPR
    2020, equation 8, which has the arguments of KL in the other order).
    """
    student, teacher = (logits.div(temperature).softmax(dim=1) for logits in (student_logits, teacher_logits))
    mean = ((student + teacher) / 2).clamp(0.01, 0.99)
    divergences = [F.kl_div(p.clamp(0.01, 0.99).log(), mean, reduction="batchmean") for p in (student, teacher)]
    return (divergences[0] + divergences[1]) / 2


def total_variation(images: Tensor) -> Tensor:
    """Return the sum of the mean absolute differences of neighbours, right, down and diagonal, of (N, C, H, W)."""
    right = images[..., :, 1:] - images[..., :, :-1]
    down = images[..., 1:, :] - images[..., :-1, :]
    falling = images[..., 1:, 1:] - images[..., :-1, :-1]
    rising = images[..., :-1, 1:] - images[..., 1:, :-1]
    return torch.stack([difference.abs().mean() for difference in (right, down, falling, rising)]).sum()


def logit_distance(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return `mean |z_s - z_t|` over samples and classes.

    Fang et al., "Data-Free Adversarial Distillation" (DFAD), 2019, equation 5.
    """
    return (student_logits - teacher_logits).abs().mean()
