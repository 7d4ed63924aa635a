"""A program of its own: reads a PyTorch checkpoint with the restricted unpickler and writes its weights as safetensors.

    python -I checkpoint_child.py CHECKPOINT OUTPUT KEY

It runs in a child process with bounds on memory and time, and imports nothing of this package. It prints one JSON
object: `taken` and `others` (dotted keys of state dicts in the checkpoint), or `refused` and why.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CPU_SECONDS = 300
MEMORY_PER_BYTE = 6  # the file, its tensors, copies of them, and the output
MEMORY_BESIDE = 2 * 2**30
MOST_DEPTH = 4
# Names of state dicts in checkpoints, the preferred first; averages of weights come after the weights themselves.
PREFERRED = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema"),
)


def main() -> None:
    """Read, choose, write, and print what was done."""
    checkpoint, output, key = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    import torch
    from safetensors.torch import save_file

    bound(checkpoint.stat().st_size)
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        found = dict(state_dicts(content))
        taken = choose(found, key)
        tensors = {name: tensor for name, tensor in found[taken].items() if isinstance(tensor, torch.Tensor)}
        odd = [name for name, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_quantized]
        if odd:
            raise ValueError(f"the tensor {odd[0]!r} is sparse or quantised")
        save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, output)
        said: dict[str, Any] = {"taken": taken, "others": [name for name in found if name != taken]}
    except MemoryError:
        said = {"refused": "it needs more memory than a checkpoint of its size should"}
    except Exception as error:  # whatever an untrusted file makes the library raise
        said = {"refused": str(error) or type(error).__name__, "kind": type(error).__name__}
    sys.stdout.write(json.dumps(said) + "\n")


def state_dicts(content: object, key: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield mappings of names to tensors in a checkpoint with their dotted keys; the whole has the key ''."""
    if not isinstance(content, Mapping) or depth > MOST_DEPTH:
        return
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    if any(hasattr(value, "layout") and hasattr(value, "dtype") for value in named.values()):
        yield key, named
        return
    for name, value in named.items():
        yield from state_dicts(value, f"{key}.{name}" if key else name, depth + 1)


def choose(found: Mapping[str, Mapping[str, Any]], key: str) -> str:
    """Return the key of the state dict to take: `key` if given, else a preferred name, else the one with most tensors.

    Raises `ValueError` if there is none, or none with this key.
    """
    if not found:
        raise ValueError("it holds no tensors with names")
    if key and key not in found:
        raise ValueError(f"it has no state dict {key!r}, but: {', '.join(sorted(found))}")
    if key:
        return key

    def rank(candidate: str) -> tuple[int, int]:
        last = candidate.rpartition(".")[2]
        place = PREFERRED.index(last) if last in PREFERRED else len(PREFERRED)
        return place, -len(found[candidate])

    return min(found, key=rank)


def bound(size: int, seconds: int = CPU_SECONDS, per_byte: int = MEMORY_PER_BYTE, beside: int = MEMORY_BESIDE) -> None:
    """Limit this process, which reads a file of `size` bytes, in processor time (seconds) and memory (bytes)."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere the limit is not enforced, or refused
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + per_byte * size + beside, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
