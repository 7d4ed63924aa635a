"""The weights of a network as one long vector, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Which tensors of a network stand in the vector, in which order.

    Attributes:
        shapes: Shape of each tensor by its name in the network.
    """

    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, module: nn.Module, *, statistics: bool = False) -> Layout:
        """Take all parameters and, with `statistics`, the batch-norm statistics after them."""
        tensors: dict[str, Tensor] = dict(module.named_parameters())
        if statistics:
            tensors |= {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
        return cls({name: tuple(tensor.shape) for name, tensor in tensors.items()})

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the tensors of a state dict as one vector (P,) float32."""
        return torch.cat([tensors[name].detach().float().reshape(-1) for name in self.shapes])

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of a vector (P,) by name."""
        parts = torch.split(vector, [prod(shape) for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
