"""Optimizers with checkpointed state, and restoring tensors in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gapssg.core.runtime import Runtime
from gapssg.core.training_step import step_size
from gapssg.errors import InputError

STATE_MISMATCH = "the synthesis in the checkpoint does not match the settings of the run; restart it with --overwrite"
"""The message where a checkpoint does not match the synthesis."""


def make_adam(groups: Iterable[Mapping[str, Any]], betas: tuple[float, float], runtime: Runtime) -> torch.optim.Adam:
    """Create Adam for parameter groups with `params`, `lr` (a number) and, if they differ, `betas`."""
    return torch.optim.Adam(
        [{**group, "lr": step_size(group["lr"], runtime.device)} for group in groups],
        betas=betas,
        fused=True,
        capturable=runtime.device.type == "cuda",
    )


def halve_learning_rates(optimizer: torch.optim.Optimizer) -> float:
    """Halve the learning rate of every group in place, and return that of the first."""
    for group in optimizer.param_groups:
        group["lr"].div_(2)
    rate: float = optimizer.param_groups[0]["lr"].item()
    return rate


def moments_of(optimizer: torch.optim.Optimizer, prefix: str = "moments") -> dict[str, Tensor]:
    """Return the state of every parameter of an optimizer by name."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{prefix}.{index}.{name}": tensor
        for index, parameter in enumerate(parameters)
        for name, tensor in optimizer.state[parameter].items()
    }


def put_back(state: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
    """Copy tensors of a checkpoint into those of the same name, shape and dtype; raise `InputError` if one differs."""
    if state.keys() != places.keys() or any(
        state[name].shape != place.shape or state[name].dtype != place.dtype for name, place in places.items()
    ):
        raise InputError(STATE_MISMATCH)
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(state[name])


def own_shares(state: Mapping[str, Tensor], shares: Iterable[str], runtime: Runtime) -> dict[str, Tensor]:
    """Return a checkpoint's state with this process's share of these tensors; raise `InputError` if one has none."""
    try:
        return {name: runtime.share(tensor) if name in shares else tensor for name, tensor in state.items()}
    except (TypeError, ValueError) as error:
        raise InputError(STATE_MISMATCH) from error


def take_all(noted: list[Tensor]) -> list[Tensor]:
    """Clear the list that the observers of a step have filled, and return its contents.

    It must be empty before each step: a compiled step is recompiled for another length.
    """
    taken = noted[:]
    noted.clear()
    return taken
