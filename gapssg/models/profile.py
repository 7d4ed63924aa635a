"""What a model costs: parameters, multiply-adds, batch-norm layers."""

import copy
import dataclasses
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class ModelProfile:
    """The size of a model and its work for one image.

    Attributes:
        parameters: Number of learned scalars.
        macs: Multiply-adds of convolutions and linear layers for one image.
        batch_norm_layers: Number of batch-norm layers.
    """

    parameters: int
    macs: int
    batch_norm_layers: int

    def to_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return dataclasses.asdict(self)


def profile_model(module: nn.Module, input_shape: tuple[int, ...]) -> ModelProfile:
    """Count what `module` costs for one input of `input_shape` (without the batch dimension).

    Nothing is computed: a copy without data is traced in evaluation mode, and `module` is left as it is.
    """
    hollow = copy.deepcopy(module).to(device="meta", dtype=torch.float32).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        hollow(torch.empty(1, *input_shape, device="meta", dtype=torch.float32))
    return ModelProfile(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        macs=counter.get_total_flops() // 2,
        batch_norm_layers=len(batch_norm_layers(module)),
    )


def batch_norm_layers(module: nn.Module) -> list[nn.Module]:
    """Return the batch-norm layers of `module` in the order of their registration."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
