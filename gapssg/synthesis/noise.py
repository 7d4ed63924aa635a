"""Baseline: noise images with the mean and standard deviation of the teacher's input, by channel."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, ClassVar, Literal

from gapssg.synthesis.base import PoolMethodSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gapssg.synthesis.context import SynthesisContext


class NoiseSettings(PoolMethodSettings):
    """Distillation on Gaussian noise: what a student learns from images without information."""

    batch_synthesis: ClassVar[str] = "gapssg.synthesis.noise:NoiseSynthesis"
    summary: ClassVar[str] = "baseline: Gaussian noise with the mean and standard deviation of the teacher's input"
    paper: ClassVar[str] = "-"
    needs_batch_norm: ClassVar[bool] = False
    makes_class_images: ClassVar[bool] = False

    name: Literal["noise"] = "noise"
    """The method."""


class NoiseSynthesis:
    """Gaussian noise with the mean and standard deviation of the teacher's input, clipped to [0, 1]."""

    step_count = 1
    generator = None

    def __init__(self, settings: NoiseSettings, context: SynthesisContext) -> None:
        self.context = context

    def slow_down(self) -> float:
        """Do nothing: noise does not diverge."""
        return 0.0

    def state_dict(self) -> dict[str, Tensor]:
        """Return nothing: noise is drawn in one step."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Do nothing."""

    def synthesise(
        self, student: nn.Module, targets: Tensor, epoch: int
    ) -> Generator[tuple[int, dict[str, Tensor]], None, Tensor]:
        """Draw one image for each target, independently of its class."""
        import torch

        runtime, normalization = self.context.runtime, self.context.normalization
        stream = runtime.random_stream("noise", epoch)
        noise = torch.randn((len(targets), *self.context.image_shape), generator=stream, device=runtime.device)
        yield 1, {}
        return (noise * normalization.deviation + normalization.mean).clamp(0, 1)
