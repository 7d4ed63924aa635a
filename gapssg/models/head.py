"""The last layer of a classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClassifierHead(nn.Linear):
    """A linear layer from features (N, F) to logits (N, K) that ignores autocast.

    Logits are compared, subtracted and exponentiated; with the 8 bits of bfloat16 they would tie. The layer is small,
    so its precision costs nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map features in any precision to logits in the precision of the weights."""
        if input.device.type == "meta":  # which has no autocast
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.to(self.weight.dtype), self.weight, self.bias)
