"""A program of its own: reads a PyTorch checkpoint with the restricted unpickler and writes its weights as safetensors.

    python -I checkpoint_child.py CHECKPOINT OUTPUT KEY

It runs in a child process with bounds on memory and time, and imports nothing of this package. It prints its `Answer`
as a JSON list.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

LEAST_SECONDS, MOST_SECONDS = 60, 600  # of processor time, and one more for each MiB
MEMORY_PER_BYTE = 6  # the file, its tensors, copies of them, and the output
MEMORY_BESIDE = 2 * 2**30
_MOST_BESIDE = 4 * 2**30  # bytes of weights beside an ONNX file that raise the bounds
_SECONDS_TO_SIGNAL = 5  # the signal SIGXCPU tells that the time is over, SIGKILL does not
MOST_DEPTH = 4
# Names of state dicts in checkpoints, the preferred first; averages of weights come after the weights themselves.
PREFERRED = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema"),
)


class Answer(NamedTuple):
    """What was done with a checkpoint."""

    taken: str | None = None
    """Dotted key of the state dict whose weights were written; None if none were."""
    others: tuple[str, ...] = ()
    """Keys of the other state dicts in it."""
    refused: str = ""
    """Why it has no weights to take."""
    error: str = ""
    """The error of a library that cannot read it."""
    kind: str = ""
    """The class of this error."""


class Refusal(ValueError):
    """A checkpoint can be read, but has no weights to take."""


def main() -> None:
    """Read, choose, write, and print what was done."""
    checkpoint, output, key = sys.argv[1:]
    import safetensors.torch

    assert safetensors.torch  # imported before memory is limited
    bound(Path(checkpoint))
    sys.stdout.write(json.dumps(answer(checkpoint, output, key)) + "\n")


def answer(checkpoint: str, output: str, key: str) -> Answer:
    """Read a checkpoint, write the weights of the state dict with a key, or '', and return what is printed."""
    import torch
    from safetensors.torch import save_file

    try:
        # PyTorch does not look at the checksums of tensors.
        if zipfile.is_zipfile(checkpoint) and (damaged := zipfile.ZipFile(checkpoint).testzip()) is not None:
            raise Refusal(f"it is damaged ({damaged} does not match its checksum); download or save it again")
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        found = dict(state_dicts(content))
        taken = choose(found, key)
        tensors = {name: tensor for name, tensor in found[taken].items() if isinstance(tensor, torch.Tensor)}
        odd = [name for name, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_quantized]
        if odd:
            raise Refusal(f"the tensor {odd[0]!r} is sparse or quantised")
        save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, output)
        return Answer(taken, tuple(name for name in found if name != taken))
    except Refusal as error:
        return Answer(refused=str(error))
    except Exception as error:  # whatever an untrusted file makes the library raise
        return Answer(error=str(error), kind=type(error).__name__)


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

    Raises `Refusal` if there is none, or none with this key.
    """
    if not found:
        raise Refusal("it holds no tensors with names")
    if key and key not in found:
        raise Refusal(f"it has no state dict {key!r}, but: {', '.join(sorted(found))}")
    if key:
        return key

    def rank(candidate: str) -> tuple[int, int]:
        last = candidate.rpartition(".")[2]
        place = PREFERRED.index(last) if last in PREFERRED else len(PREFERRED)
        return place, -len(found[candidate])

    return min(found, key=rank)


def bytes_of(path: Path) -> int:
    """Return the bytes of a file and of the weights beside an ONNX file, at most `_MOST_BESIDE`."""
    beside = path.with_name(f"{path.name}.data")
    counts = path.suffix.lower() == ".onnx" and beside.exists()
    return path.stat().st_size + (min(beside.stat().st_size, _MOST_BESIDE) if counts else 0)


def seconds_for(path: Path) -> int:
    """Return the processor time in seconds that reading a file may take."""
    return min(LEAST_SECONDS + bytes_of(path) // 2**20, MOST_SECONDS)


def bound(path: Path, per_byte: int = MEMORY_PER_BYTE, beside: int = MEMORY_BESIDE) -> None:
    """Limit this process, which reads a file, in processor time and memory (bytes for each of the file, and beside)."""
    seconds = seconds_for(path)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + _SECONDS_TO_SIGNAL))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere the limit is not enforced, or refused
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + per_byte * bytes_of(path) + beside, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
