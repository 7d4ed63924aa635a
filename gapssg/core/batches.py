"""Shuffled passes over a set of samples, in batches of a fixed size."""

from __future__ import annotations

import torch
from torch import Tensor


def steps_for_passes(count: int, passes: int, batch_size: int) -> int:
    """Return the number of batches that visit each of `count` samples `passes` times."""
    return -(-passes * count // batch_size)


def shuffled_batches(count: int, passes: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """Return the batches of `passes` shuffled passes over `count` samples: (steps, batch_size) int64 indices.

    If the batch size does not divide the number of samples, the last batch is filled from the start of another pass.
    """
    steps = steps_for_passes(count, passes, batch_size)
    rounds = -(-steps * batch_size // count)
    order = [torch.randperm(count, generator=generator, device=generator.device) for _ in range(rounds)]
    return torch.cat(order)[: steps * batch_size].view(steps, batch_size)
