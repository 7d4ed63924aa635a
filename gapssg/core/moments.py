"""Mean and variance of each channel of a batch, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def channel_moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and biased variance of each channel of (N, C, ...) in one pass: (C,) float32 or float64 each."""
    wide = torch.promote_types(inputs.dtype, torch.float32)
    # The batch-norm training kernel. With a momentum of 0, the running statistics only set the dtype of the
    # accumulation.
    unused = torch.zeros(2, inputs.shape[1], dtype=wide, device=inputs.device)
    mean, variance = torch.batch_norm_update_stats(inputs, unused[0], unused[1], 0.0)
    return mean, variance


def combined_moments(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Return the moments (C,) of a batch from those of equal parts of it, (parts, C) each."""
    mean = means.mean(dim=0)
    return mean, variances.mean(dim=0) + (means - mean).square().mean(dim=0)
