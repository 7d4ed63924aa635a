"""A mode that refuses operations which wait for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "unique", "masked_select"}


class Waiting(Exception):
    """An operation needs a value on the host."""


class NoWaiting(TorchDispatchMode):
    """Refuses operations for whose result the host must wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1] if index is not None
        )
        if name in _WAITING or masks:
            raise Waiting(name)
        result = func(*args, **(kwargs or {}))
        return result
