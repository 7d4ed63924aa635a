"""Weights from checkpoints that PyTorch or other programs wrote: safetensors or pickles; no code in them is run."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import TypeAdapter
from torch import Tensor

from gapssg.errors import InputError, os_errors_as, says_out_of_memory, shortened
from gapssg.files import LARGEST_FILE, open_regular
from gapssg.models import checkpoint_child
from gapssg.models.checkpoint_child import seconds_for
from gapssg.models.safetensors_file import PYTORCH_FILES, read_safetensors

AnyAnswer = TypeVar("AnyAnswer")

_BUSY = 3  # seconds for each of processor time, on a busy machine


class CheckpointWeights(NamedTuple):
    """The weights of a checkpoint."""

    tensors: dict[str, Tensor]
    """By name, on the CPU."""
    taken: str = ""
    """Dotted key of the state dict in the checkpoint; empty where it is the whole file."""
    others: tuple[str, ...] = ()
    """Keys of other state dicts in it."""


def read_checkpoint_weights(path: Path, key: str | None = None) -> CheckpointWeights:
    """Read the weights in a safetensors file or a PyTorch checkpoint (`.pt`, `.pth`, `.bin`, `.ckpt`).

    PyTorch's restricted unpickler reads a checkpoint in a child process with bounds on memory and time. If it has
    several state dicts, one has this dotted key, or None takes the usual name. Raises `InputError` if the file is
    missing, damaged or too large, holds more than weights, or has no such key.
    """
    with open_regular(path, LARGEST_FILE) as file, os_errors_as(InputError, f"{path} cannot be read"):
        start = file.read(max(map(len, PYTORCH_FILES)))
    if not start.startswith(PYTORCH_FILES):
        if key:
            raise InputError(f"--weights-key: {path} is not a PyTorch checkpoint; leave --weights-key out")
        return CheckpointWeights(read_safetensors(path).tensors)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "weights.safetensors"
        arguments = [checkpoint_child.__file__, str(path.absolute()), str(output), key or ""]
        answer = answer_of_child(checkpoint_child.Answer, arguments, path)
        if answer.taken is None:
            raise InputError(*_refusal(path, answer))
        return CheckpointWeights(read_safetensors(output).tensors, answer.taken, answer.others)


def answer_of_child(kind: type[AnyAnswer], arguments: Sequence[str], path: Path) -> AnyAnswer:
    """Return the answer that an isolated Python process prints last about a file that it reads; `kind()` if it crashes.

    Raises `InputError` if it reaches its time limit, or its answer is damaged.
    """
    seconds = seconds_for(path)
    command = [sys.executable, "-I", *arguments]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_BUSY * seconds)
        late = f"{seconds} s of processor time" if done.returncode == -signal.SIGXCPU else ""
    except subprocess.TimeoutExpired:
        late = f"{_BUSY * seconds} s"
    if late:
        raise InputError(
            f"reading {path} reached the time limit of {late} for a file of its size, perhaps in an endless loop; "
            "export the model to ONNX without loops, or import its weights as safetensors into its own code (--model)"
        )
    return answer_in(done.stdout, kind, path) if done.returncode == 0 and done.stdout else kind()


def answer_in(printed: str, kind: type[AnyAnswer], path: Path) -> AnyAnswer:
    """Return the answer in the last line that a process has printed about a file; raise `InputError` if it is damaged.

    The lone surrogates by which Python represents undecodable bytes of a path become question marks, as in `Text`.
    """
    try:
        answer = json.dumps(json.loads(printed.splitlines()[-1]), ensure_ascii=False).encode(errors="replace")
        return TypeAdapter(kind).validate_json(answer)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read: the answer of its reader is damaged; copy or save it again"
        ) from error


def _refusal(path: Path, answer: checkpoint_child.Answer) -> tuple[str, ...]:
    refused, error, kind = answer.refused, answer.error, answer.kind
    if "TorchScript" in error:
        return (f"{path} is a TorchScript file, not a checkpoint of weights; save the original model's state dict",)
    if kind == "UnpicklingError":
        named = re.search(r"GLOBAL ([\w.]+)", error)
        what = f"refers to code ({named[1]})" if named else "is damaged or holds more than weights"
        return (
            f"{path} {what}, and reading it fully could run code; if you trust it, convert its weights:",
            f"    import torch; loaded = torch.load({str(path)!r}, map_location='cpu', weights_only=False)",
            f"    torch.save(loaded.state_dict(), {str(path.with_name(f'{path.stem}-weights.pth'))!r})"
            "  # of a dict: loaded['model'].state_dict() or loaded['model']",
        )
    if says_out_of_memory(f"{kind} {error}"):
        refused = "it needs more memory than a checkpoint of its size should"
    if "No space left" in error:
        refused = "the disk with the temporary folder is full; free some space, or set TMPDIR"
    reason = shortened(refused, 200) or (
        "it is damaged, incomplete or of another framework; download or save it again, or convert its model to ONNX"
        f" ({shortened(error, 100) or 'its reader crashed'})"
    )
    problem = (
        f"the weights in {path} cannot be taken" if answer.refused else f"{path} is not a readable PyTorch checkpoint"
    )
    return (f"{problem}: {reason}",)
