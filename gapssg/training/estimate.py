"""Estimating the cost of a run by timing a few of its steps."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gapssg.core.runtime import Runtime, to_uint8
from gapssg.core.training_step import EAGER_CALLS
from gapssg.runs.results.cost import EstimateResult, Part
from gapssg.synthesis.pool_synthesizer import PoolSynthesizer
from gapssg.synthesis.synthesizer import EpochPlan

if TYPE_CHECKING:
    from gapssg.training.distillation import Distillation

_EVALUATED_IMAGES = 256
_TIMED_SYNTHESIS, _TIMED_DISTILLATION = 3, 5


def estimated(
    command: str, parts: dict[str, Part], memory_bytes: int, runtime: Runtime, flops: int | None = None
) -> EstimateResult:
    """Return the estimate of a run with these steps."""
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
    """Time a few of the steps of a run, `timed` after the first ones, but no more than there are.

    The first ones are one on a processor; on a GPU all up to the replay of the captured graph.
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


def time_evaluation(predict: Callable[[Tensor], Tensor], images: Tensor, runtime: Runtime) -> float:
    """Return the seconds of a prediction of all images (N, C, H, W), by timing a few of them."""
    some = images[:_EVALUATED_IMAGES]
    steps = EAGER_CALLS + 2  # the first ones of `time_steps`, and one that is timed
    return time_steps(lambda: predict(some), runtime, steps, 1).seconds_per_step * len(images) / len(some)


def time_distillation(distillation: Distillation) -> dict[str, Part]:
    """Time a few steps of synthesis and distillation; the student cannot be used afterwards.

    The images of syntheses that are not completed are replaced by noise in the pool.
    """
    steps, runtime = distillation.steps_left(), distillation.runtime
    synthesis = _synthesis_steps(distillation)
    parts = {"synthesis": time_steps(lambda: next(synthesis), runtime, steps["synthesis"], _TIMED_SYNTHESIS)}
    synthesis.close()
    batches = _batches(distillation)
    labelled = distillation.labelled
    if labelled is not None:
        passes = labelled.extend()
        timed = time_steps(partial(next, passes), runtime, labelled.count, _TIMED_DISTILLATION)
        passes.close()
        parts["labelling"] = replace(timed, steps=steps["labelling"])
        deque(labelled.extend(pretend=True), maxlen=0)
    distillation.student.train()
    parts["distillation"] = time_steps(
        lambda: distillation.trainee.step(*next(batches)), runtime, steps["distillation"], _TIMED_DISTILLATION
    )
    return parts


def _synthesis_steps(distillation: Distillation) -> Generator[object, None, None]:
    for epoch in range(distillation.settings.epochs):
        for index in range(distillation.synthesizer.plan(epoch).rounds):
            yield from distillation.synthesizer.synthesis_steps(distillation.student, epoch, index)


def _batches(distillation: Distillation) -> Iterator[tuple[Tensor, ...]]:
    """Yield batches of the first epoch that distils, again and again."""
    settings, device = distillation.settings, distillation.runtime.device
    synthesizer, plans = distillation.synthesizer, map(distillation.synthesizer.plan, range(settings.epochs))
    epoch, plan = next((each for each in enumerate(plans) if each[1].distillation_steps), (0, EpochPlan(1, 0, 0)))
    if isinstance(synthesizer, PoolSynthesizer) and plan.synthesis_steps:
        pool, size = synthesizer.pool, synthesizer.settings.synthesis_batch_size
        stream = distillation.runtime.random_stream("noise")
        needed = min(pool.capacity, len(pool) + (epoch + 1) * synthesizer.settings.images_per_epoch)
        while len(pool) < needed:
            noise = torch.rand((size, *distillation.card.input_shape), generator=stream, device=device)
            synthesizer.add(epoch, to_uint8(noise), torch.zeros(size, dtype=torch.int64, device=device))
    whole = (distillation.student_steps.batches(epoch, 0, 0) for _ in repeat(None))
    return chain.from_iterable(islice(batches, plan.distillation_steps) for batches in whole)


def peak_memory(runtime: Runtime) -> int:
    """Return the peak memory so far in bytes: allocated by torch on the GPU, or of the process."""
    if runtime.device.type == "cuda":
        return torch.cuda.max_memory_allocated(runtime.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def unused_memory(distillation: Distillation) -> tuple[int, int]:
    """Return the reserved bytes of pool and labelled views that a processor allocates only when they are written to."""
    pool, labelled = distillation.synthesizer.pool, distillation.labelled
    if pool is None or distillation.runtime.device.type != "cpu":
        return 0, 0
    unused = (pool.capacity - len(pool)) * math.prod(distillation.card.input_shape)
    return unused, 0 if labelled is None else labelled.unused_bytes


def _time(step: Callable[[], object], runtime: Runtime, count: int) -> float:
    runtime.synchronize()
    started = time.perf_counter()
    for _ in range(count):
        step()
    runtime.synchronize()
    return time.perf_counter() - started
