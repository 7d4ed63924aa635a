"""How long a run would take, by timing a few of its steps."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import torch

from gapssg.core.runtime import Runtime
from gapssg.core.training_step import EAGER_CALLS
from gapssg.runs.results import EstimateResult, Part

EVALUATED_IMAGES = 256
"""Images of the evaluation data, at most, that are timed."""


def estimated(
    command: str, parts: dict[str, Part], memory_bytes: int, runtime: Runtime, flops: int | None = None
) -> EstimateResult:
    """Return the estimate of a run that makes these steps."""
    return EstimateResult(
        command=command,
        parts=parts,
        memory_bytes=memory_bytes,
        flops=flops,
        device=str(runtime.device),
        precision=runtime.precision,
        compiled=runtime.compiled,
        described=runtime.describe(),
    )


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
