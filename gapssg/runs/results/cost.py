"""The estimated cost of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import model_serializer

from gapssg.stored import Stored, Text


@dataclass(frozen=True)
class Part:
    """Steps of one kind in a run."""

    steps: int
    """Number of steps in the run."""
    seconds_per_step: float
    """Measured after the first steps; 0 if there are no steps."""
    first_seconds: float = 0.0
    """Extra time of the first steps, which allocate and compile."""

    @property
    def seconds(self) -> float:
        """Total time of the steps."""
        return self.steps * self.seconds_per_step + self.first_seconds


class EstimateResult(Stored):
    """The estimated cost of a run, as `--estimate` prints it."""

    command: str
    parts: dict[str, Part]
    """Steps by kind."""
    memory_bytes: int
    """Peak memory: of the GPU, or of the process."""
    flops: int | None = None
    device: Text
    precision: str
    compiled: bool
    described: str
    """Device, precision and compilation in words."""

    @property
    def seconds(self) -> float:
        """Total time of the run."""
        return sum(part.seconds for part in self.parts.values())

    @model_serializer
    def _by_kind(self) -> dict[str, Any]:
        return {
            "command": self.command,
            "steps": {kind: part.steps for kind, part in self.parts.items()},
            "timing": {
                "total": self.seconds,
                **{kind: part.seconds for kind, part in self.parts.items()},
                "seconds_per_step": {kind: part.seconds_per_step for kind, part in self.parts.items()},
            },
            "memory_bytes": self.memory_bytes,
            **({} if self.flops is None else {"flops": self.flops}),
            "device": self.device,
            "precision": self.precision,
            "compiled": self.compiled,
        }
