"""Converts the weights of a network to one vector and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """The tensors of a network that make up a vector, in order.

    Attributes:
        shapes: Shape of each tensor by its name in the network.
    """

    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, module: nn.Module, *, statistics: bool = False) -> Layout:
        """Include all parameters and, with `statistics`, the batch-norm statistics after them."""
        tensors: dict[str, Tensor] = dict(module.named_parameters())
        if statistics:
            tensors |= {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
        return cls({name: tuple(tensor.shape) for name, tensor in tensors.items()})

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Concatenate the tensors of a state dict to a vector (P,) float32."""
        return torch.cat([tensors[name].detach().float().reshape(-1) for name in self.shapes])

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of a vector (P,) by tensor name."""
        parts = torch.split(vector, [prod(shape) for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
