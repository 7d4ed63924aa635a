"""How long a run would take, by timing a few of its steps."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gapssg.runtime import Runtime
from gapssg.step import EAGER_CALLS

EVALUATED_IMAGES = 256
"""Images of the evaluation data, at most, that are timed."""


@dataclass(frozen=True)
class Part:
    """Steps of one kind.

    Attributes:
        steps: How many the run makes.
        seconds_per_step: Measured after the first ones; 0 if there are no steps.
        first_seconds: What the first ones, which allocate and compile, take more.
    """

    steps: int
    seconds_per_step: float
    first_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of all steps."""
        return self.steps * self.seconds_per_step + self.first_seconds


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Attributes:
        command: The command of the run.
        parts: Its steps by kind.
        memory: Bytes at the peak: of the GPU, or on a processor of the process.
        runtime: Where and how is computed.
        flops: Floating-point operations in teacher and student; None where they are not counted.
    """

    command: str
    parts: dict[str, Part]
    memory: int
    runtime: Runtime
    flops: int | None = None

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        return sum(part.seconds for part in self.parts.values())

    def to_dict(self) -> dict[str, Any]:
        """Return what --json prints."""
        return {
            "command": self.command,
            "steps": {kind: part.steps for kind, part in self.parts.items()},
            "timing": {
                "total": self.seconds,
                **{kind: part.seconds for kind, part in self.parts.items()},
                "seconds_per_step": {kind: part.seconds_per_step for kind, part in self.parts.items()},
            },
            "memory_bytes": self.memory,
            **({} if self.flops is None else {"flops": self.flops}),
            "device": str(self.runtime.device),
            "precision": self.runtime.precision,
            "compiled": self.runtime.compiled,
        }


def time_steps(step: Callable[[], object], runtime: Runtime, steps: int, timed: int) -> Part:
    """Time a few of `steps` steps.

    Args:
        step: Makes one.
        runtime: Where.
        steps: How many the run makes; no more are made.
        timed: How many are timed after the first ones: one on a processor; on a GPU as many as come before the graph
            of the step is replayed.
    """
    if steps == 0:
        return Part(0, 0.0)
    first = min(steps, EAGER_CALLS + 1 if runtime.device.type == "cuda" else 1)
    timed = min(timed, steps - first)
    first_seconds = _time(step, runtime, first)
    if timed == 0:
        return Part(steps, first_seconds / first)
    rate = _time(step, runtime, timed) / timed
    return Part(steps, rate, max(0.0, first_seconds - first * rate))


def peak_memory(runtime: Runtime) -> int:
    """Return the peak of memory in bytes so far: what torch has allocated on the GPU, or the process in all."""
    if runtime.device.type == "cuda":
        return torch.cuda.max_memory_allocated(runtime.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _time(step: Callable[[], object], runtime: Runtime, count: int) -> float:
    runtime.synchronize()
    started = time.perf_counter()
    for _ in range(count):
        step()
    runtime.synchronize()
    return time.perf_counter() - started
