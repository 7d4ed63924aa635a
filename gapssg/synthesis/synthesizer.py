"""The protocol between data-free methods and distillation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from gapssg.models.generator import Generator
from gapssg.synthesis.labelled_views import LabelledViews
from gapssg.synthesis.pool import SamplePool


class EpochPlan(NamedTuple):
    """The work of one epoch."""

    rounds: int
    """Alternations between synthesis and distillation."""
    synthesis_steps: int
    """Steps per synthesis."""
    distillation_steps: int
    """Distillation steps after each synthesis."""
    advances_learning_rate: bool = True
    """Whether the learning-rate schedule counts this epoch."""


class Synthesizer(Protocol):
    """Generates the images that a student is trained on."""

    @property
    def augments(self) -> bool:
        """Whether distillation augments its samples."""

    @property
    def pool(self) -> SamplePool | None:
        """The growing pool; None for methods that sample their generator."""

    @property
    def labelled(self) -> LabelledViews | None:
        """Views of the pool's images, which the teacher labels once; None if it labels those of each step."""

    @property
    def generator(self) -> Generator | None:
        """The network that makes the images; None if there is none."""

    @property
    def fresh(self) -> Tensor:
        """The newest images, (N, C, H, W) float32 in [0, 1]."""

    @property
    def fresh_targets(self) -> Tensor:
        """Their target classes, (N,) int64."""

    def plan(self, epoch: int) -> EpochPlan:
        """Return the plan of an epoch, counted from 0."""

    def synthesis_steps(self, student: nn.Module, epoch: int, index: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Run the synthesis of round `index` of an epoch, or resume it after `load_state_dict`.

        Yields after each step the number of steps done and its loss terms (0-dimensional, on the device). Raises
        `Diverged` if a loss was not finite; the next call restarts this synthesis.
        """

    def slow_down(self) -> float:
        """Halve the learning rate of the synthesis permanently, and return it."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint, without the pool: an unfinished synthesis and state kept across epochs."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state that `state_dict` returned; raise `InputError` if it does not match."""

    def start_sampling(self, epoch: int, index: int, step: int) -> None:
        """Make `sample` return the distillation batches of round `index`, starting at step `step`."""

    def sample(self, count: int) -> Tensor:
        """Return `count` images for one distillation step, (count, C, H, W) float32 in [0, 1]."""

    def distillation_loss(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the loss that the student minimises."""
