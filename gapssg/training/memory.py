"""The memory of a training step: a check before a run on a processor, and advice when memory runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from gapssg.core.runtime import Runtime
from gapssg.errors import InputError
from gapssg.models.hollow import hollow_copy
from gapssg.synthesis.labelled_views import SMALLER_VIEWS
from gapssg.synthesis.pool import SMALLER_POOL

Precision = Literal["fp32", "bf16"]

_MEMINFO, _GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_SHARE_FOR_STEPS = 0.6  # a step takes 1.2 to 1.6 times what it keeps, measured with WRN-16-1 and 3x64x64 images
# Compiled, a step computes some of it again: it keeps all of a WRN-16-1's, ResNet-18's and ConvNeXt's, 84 % of a vision
# transformer's, 66 % of a MobileNetV2's and 58 % of a VGG-11's, measured with torch 2.14's partitioner.
_COMPILED_SHARE = 1 / 3
_IMAGES = 2  # batch norms need more than one value per channel
_SMALLEST_BATCH = 2


class StepMemory(NamedTuple):
    """The memory of one kind of step."""

    option: str
    """What sets its batch size on the command line, up to the number."""
    batch_size: int
    """Its batch size."""
    bytes_per_image: int
    """A lower bound of what it needs; 0 if unknown."""


def check_memory(steps: Mapping[str, StepMemory], runtime: Runtime, pool: int = 0, views: int = 0) -> None:
    """Check that every kind of step fits in the memory of a processor, with the bytes of a pool and its labelled views.

    A GPU reports it itself. Raises `InputError`, with a batch size that fits, if something does not.
    """
    available = available_memory() if runtime.device.type == "cpu" else None
    if available is None:
        return
    available //= _processes_here(runtime)
    for held, needed, advice in (
        ("sample pool needs", pool, SMALLER_POOL),
        ("labelled views need", views, SMALLER_VIEWS),
    ):
        if needed > available:
            raise InputError(
                f"the {held} {_gibibytes(needed)} of memory, more than the {_gibibytes(available)} that are "
                f"available; {advice}"
            )
        available -= needed
    for name, step in steps.items():
        if runtime.compiled:
            step = step._replace(bytes_per_image=int(_COMPILED_SHARE * step.bytes_per_image))
        needed = -(-step.batch_size // runtime.world) * step.bytes_per_image
        if needed > available:
            raise InputError(
                f"a step of {name} with {step.batch_size:,} images needs at least {_gibibytes(needed)} of memory, "
                f"more than the {_gibibytes(available)} that are available; {_advice(step, available, runtime.world)}"
            )


def advice_without_memory(step: StepMemory, runtime: Runtime) -> str:
    """Return what to do after a step has run out of memory: a batch size that would fit."""
    if runtime.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(runtime.device)
        available: int | None = free + torch.cuda.memory_reserved(runtime.device)
    else:
        available = available_memory()
        available = None if available is None else available // _processes_here(runtime)
    if not available:
        return f"lower the batch size with {step.option}N, or use smaller images"
    # The step did not fit, so an image needs at least an equal share of the memory.
    share = -(-available * runtime.world // step.batch_size)
    return _advice(step._replace(bytes_per_image=max(step.bytes_per_image, share)), available, runtime.world)


def _advice(step: StepMemory, available: int, world: int) -> str:
    """Return a batch size that fits, given the memory of a process, which has an equal share of the batch."""
    fitting = min(int(_SHARE_FOR_STEPS * available / step.bytes_per_image) * world, step.batch_size - 1)
    fitting -= fitting % world
    if fitting < _SMALLEST_BATCH:
        return "use smaller images or models, or a machine with more memory"
    return f"{step.option}{fitting} would fit"


def _processes_here(runtime: Runtime) -> int:
    return 1 if runtime.processes is None else runtime.processes.local_world


def training_memory(model: nn.Module, input_shape: Sequence[int], batch_size: int, precision: Precision) -> StepMemory:
    """Return the memory of the steps that train a model on images (C, H, W)."""
    return StepMemory("--batch-size ", batch_size, saved_bytes(model, input_shape, precision, trains=True))


def saved_bytes(module: nn.Module, input_shape: Sequence[int], precision: Precision, *, trains: bool) -> int:
    """Return the bytes per input that a forward pass keeps for the backward pass, without the weights.

    Gradients are those of the inputs, or, if it trains, in training mode, also those of the weights. With `bf16`, half
    the bytes of float32 are counted. A copy on the meta device is run, so that nothing is computed and the module is
    unchanged; 0 if that is impossible.
    """
    try:
        hollow = hollow_copy(module).train(trains).requires_grad_(trains)
        weights = {_storage(each) for each in (*hollow.parameters(), *hollow.buffers())}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            if _storage(tensor) not in weights:
                kept[_storage(tensor)] = tensor
            return tensor

        inputs = torch.zeros(_IMAGES, *input_shape, device="meta", requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hollow(inputs)
    except Exception:  # the code of a model may depend on values, which the meta device does not have
        return 0
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return total // _IMAGES // (2 if precision == "bf16" else 1)


def _storage(tensor: Tensor) -> int:
    """Return what identifies the memory of a tensor; on the meta device every address is 0."""
    return int(tensor.untyped_storage()._cdata)


def available_memory(meminfo: Path = _MEMINFO, group: Path = _GROUP) -> int | None:
    """Return the bytes that this process may still allocate, swap included, on Linux; None elsewhere.

    The limits of a container (cgroup v2) count, without the file cache, which can be reclaimed.
    """
    try:
        found = _numbers(meminfo)
        available = 1024 * (found["MemAvailable:"] + found["SwapFree:"])
    except (OSError, KeyError):
        return None
    with contextlib.suppress(OSError, KeyError, ValueError):  # no container, or one without a limit
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text()) - _numbers(group / "memory.stat")["inactive_file"]
        available = min(available, max(0, limit - used))
    return available


def _numbers(file: Path) -> dict[str, int]:
    return {parts[0]: int(parts[1]) for line in file.read_text().splitlines() if len(parts := line.split()) > 1}


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
