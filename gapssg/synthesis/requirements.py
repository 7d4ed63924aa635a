"""What the methods require of a teacher, and which image prior a teacher gives them. The only place that decides it."""

from __future__ import annotations

from torch import nn

from gapssg.models.profile import executed_batch_norm_layers, last_linear_layer
from gapssg.synthesis.base import BATCH_NORM, ImagePrior, SynthesisSettings


def image_prior(teacher: nn.Module, input_shape: tuple[int, int, int]) -> ImagePrior:
    """Return whose statistics the images of `gapssg` and `gapssg-fast` follow; raises as `executed_layers`."""
    return "batch-norm statistics" if executed_batch_norm_layers(teacher, input_shape) else "input statistics"


def missing_for(
    method: type[SynthesisSettings], teacher: nn.Module, input_shape: tuple[int, int, int], num_classes: int
) -> str | None:
    """Return which of `method.needs()` the teacher lacks, None if the method runs; raises as `executed_layers`."""
    for need in method.needs():
        if need == BATCH_NORM:
            is_missing = not executed_batch_norm_layers(teacher, input_shape)
        else:
            is_missing = last_linear_layer(teacher, input_shape, num_classes) is None
        if is_missing:
            return need
    return None
