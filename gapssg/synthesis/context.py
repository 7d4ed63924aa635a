"""What a data-free method works with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gapssg.core.augment import Augmentation, Normalization
from gapssg.core.runtime import Runtime


@dataclass(frozen=True)
class SynthesisContext:
    """Everything that a method has access to: the teacher and its input shape, but no real images."""

    teacher: nn.Module
    """Frozen, in eval mode, on the device."""
    normalization: Normalization
    """The teacher's input normalisation."""
    augmentation: Augmentation
    """The random crop and flip of the teacher's training."""
    image_shape: tuple[int, int, int]
    """Channels, height and width."""
    num_classes: int
    """Number of classes, K."""
    batch_size: int
    """Samples per distillation step."""
    epochs: int
    """Number of epochs."""
    runtime: Runtime
    """Device, precision and random streams."""
