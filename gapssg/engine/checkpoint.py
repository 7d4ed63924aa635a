"""What a run needs to continue: one file, replaced atomically after an epoch.

Random streams hold no state between epochs, and the sample pool is on disk as its shards, so a checkpoint costs
as much as the weights and their momentum, however long the run has been.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from gapssg.engine.run_directory import RunDirectory
from gapssg.errors import InputError
from gapssg.files import canonical_json, write_atomically
from gapssg.models.safetensors_file import read_safetensors

_FOLDER, _FILE, _KEY = "checkpoint", "latest.safetensors", "facts"
_MODEL, _MOMENTUM = "model.", "momentum."


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after an epoch.

    Attributes:
        epoch: Epochs that are done.
        events_length: Bytes of `events.jsonl` at that time.
        facts: Counters and scores, by the component that they belong to.
        tensors: Weights, buffers and momenta.
    """

    epoch: int
    events_length: int
    facts: dict[str, Any]
    tensors: dict[str, Tensor]


def write_checkpoint(
    run: RunDirectory,
    epoch: int,
    identity: dict[str, str],
    facts: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write the state of a run after `epoch` epochs.

    Args:
        run: The run; its events must be recorded already.
        epoch: Epochs that are done.
        identity: What must be the same when the run continues, such as the SHA-256 of the settings.
        facts: Counters and scores, JSON types.
        model: What is trained.
        optimizer: Its optimizer.

    Raises:
        RunError: The file cannot be written; the one before is untouched.
    """
    tensors = {f"{_MODEL}{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {
        f"{_MOMENTUM}{index}": optimizer.state[parameter]["momentum_buffer"]
        for index, parameter in enumerate(_parameters(optimizer))
        if optimizer.state[parameter].get("momentum_buffer") is not None
    }
    header = {"epoch": epoch, "events_length": run.events_length(), "identity": identity, "facts": facts}
    on_processor = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(on_processor, metadata={_KEY: canonical_json(header)})
    write_atomically(run.folder(_FOLDER) / _FILE, content)


def read_checkpoint(path: Path, identity: dict[str, str]) -> Checkpoint:
    """Read the checkpoint of the run in `path`.

    Raises:
        InputError: There is none, it is damaged, or the run was another one than `identity` says.
    """
    file = path / _FOLDER / _FILE
    if not file.is_file():
        raise InputError(
            f"{path} holds no checkpoint to continue from (no epoch was finished, or it keeps no pool); "
            f"start it anew with --output {path} --overwrite"
        )
    content = read_safetensors(file)
    try:
        header = json.loads(content.metadata[_KEY])
        checkpoint = Checkpoint(
            int(header["epoch"]), int(header["events_length"]), dict(header["facts"]), content.tensors
        )
        stored = dict(header["identity"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is not a checkpoint of a run") from error
    differing = [name for name, value in identity.items() if stored.get(name) != value]
    if differing:
        raise InputError(f"{path} cannot be continued: {' and '.join(differing)} differ from when it began")
    return checkpoint


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the weights, buffers and momenta of a checkpoint in their places.

    Raises:
        InputError: They do not fit.
    """
    tensors = checkpoint.tensors
    weights = {name.removeprefix(_MODEL): t for name, t in tensors.items() if name.startswith(_MODEL)}
    try:
        model.load_state_dict(weights)
        for index, parameter in enumerate(_parameters(optimizer)):
            if f"{_MOMENTUM}{index}" in tensors:
                # In the parameter's own memory layout, which the fused update takes for granted.
                buffer = torch.empty_like(parameter).copy_(tensors[f"{_MOMENTUM}{index}"])
                optimizer.state[parameter]["momentum_buffer"] = buffer.detach()
    except RuntimeError as error:
        raise InputError(f"the checkpoint does not fit the model of the run: {str(error).splitlines()[0]}") from error


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
