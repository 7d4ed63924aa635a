"""How long a classifier takes for a batch of images."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import nn

from gapssg.core.runtime import Runtime
from gapssg.errors import reporting_out_of_memory
from gapssg.models.frozen import frozen
from gapssg.runs.results.evaluation import Latency

BATCH_SIZES = (1, 64)
SECONDS = 3.0
FEWEST_PASSES = 10
"""Timed passes of a measurement that no deadline ends."""
_WARM_UP = 3
_MOST_PASSES = 200


def measure_latency(
    module: nn.Module,
    input_shape: tuple[int, int, int],
    runtime: Runtime,
    batch_size: int,
    seconds: float,
    deadline: float = math.inf,
) -> Latency:
    """Time forward passes of one batch after a warm-up, each on its own, leaving the classifier unchanged.

    Decoding and normalisation of the images are not part of it.

    Args:
        module: Maps images (N, C, H, W) float32 to logits (N, K), on the runtime's device.
        input_shape: Channels, height and width.
        runtime: Device and precision.
        batch_size: N.
        seconds: After these there are no further passes than the `FEWEST_PASSES`.
        deadline: When `time.perf_counter()` has reached it, there are no further passes at all; the last one counts
            even if it was one of the warm-up.

    Raises:
        RunError: Memory ran out.
    """
    images = torch.randn(batch_size, *input_shape, generator=torch.Generator().manual_seed(0)).to(runtime.device)
    images = images.contiguous(memory_format=torch.channels_last)
    taken: list[float] = []
    advice = f"{batch_size} images at once do not fit; measure no latency, or use another --device"
    with reporting_out_of_memory(lambda: advice), runtime.configured(), frozen(module), torch.inference_mode():
        for number in range(_WARM_UP + _MOST_PASSES):
            runtime.synchronize()
            started = time.perf_counter()
            with runtime.autocast():
                module(images)
            runtime.synchronize()
            ended = time.perf_counter()
            if number >= _WARM_UP or ended >= deadline:
                taken.append(1000 * (ended - started))
            if ended >= deadline or (len(taken) >= FEWEST_PASSES and sum(taken) >= 1000 * seconds):
                break
    median, p95 = map(float, np.percentile(taken, (50, 95)))
    return Latency(batch_size=batch_size, passes=len(taken), median_ms=median, p95_ms=p95)
