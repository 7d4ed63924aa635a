"""The processes of one run, started by torchrun: their shares of a batch, and what they exchange."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread
from typing import Any, Self, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from gapssg.core.liveness import Liveness
from gapssg.errors import GapssgError, InputError, RunError, first_line, shortened

_SECONDS_OF_SILENCE = 120.0  # in a collective operation, for example while rank 0 writes to a slow disk
_SECONDS_TO_PREPARE = 1800.0  # in which a rank reads its inputs
_SECONDS_BETWEEN_LOOKS = 5.0  # for machines that are gone, in a collective operation
_SECONDS_TO_EXPLAIN = 5.0
_SECONDS_TO_DISCONNECT = 5.0
_LONGEST_WAIT = 0.1
_HOW_TO_CONTINUE = "--resume continues a run from its last checkpoint"


@dataclass
class Traffic:
    """Tensors that a process has exchanged."""

    operations: int = 0
    """Number of collective operations."""
    gathered: int = 0
    """Bytes of the gathered tensors, whose shares each process has sent."""
    summed: int = 0
    """Bytes of the tensors that were added up."""


class Processes:
    """This process among those of a run.

    Every process holds the same weights, optimizer states, latents and pool, and computes the forward and backward
    passes of its share of each batch. It computes the loss from the logits and statistics of the whole batch, so that
    the gradient of a gathered tensor is the same in every process. Gradients of parameters are averaged: therefore
    that of a gathered share is multiplied by the number of processes, and a parameter that every process uses alike
    keeps its gradient.

    Attributes:
        rank: Number of this process, from 0.
        world: Number of processes.
        local_rank: Number of this process on its machine, from 0.
        local_world: Number of processes on this machine.
        traffic: What has been exchanged so far.
    """

    def __init__(self, store: Store, rank: int, world: int, local_rank: int, local_world: int, host: str) -> None:
        """Connect to the other processes by a store that they share, and to rank 0 on `host`.

        Raises `RunError` if that fails.
        """
        self.rank, self.world, self.local_rank, self.local_world = rank, world, local_rank, local_world
        self.traffic = Traffic()
        self._store = store
        self._exchanges = 0
        self._missing: set[int] = set()
        self._is_connected = True
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        with self._contact():
            dist.init_process_group(
                backend,
                store=PrefixStore("collectives", store),
                rank=rank,
                world_size=world,
                timeout=timedelta(seconds=_SECONDS_OF_SILENCE),
            )
            self._liveness = Liveness(store, rank, world, host)

    @classmethod
    def join(cls, environment: Mapping[str, str]) -> Self:
        """Join the processes that the variables of torchrun describe; raise `RunError` if they cannot be reached."""
        try:
            store, rank, world = next(rendezvous("env://"))
            local_rank, local_world = (int(environment.get(name, default)) for name, default in _LOCAL.items())
            return cls(store, rank, world, local_rank, local_world, environment["MASTER_ADDR"])
        except (RuntimeError, ValueError, OSError) as error:
            raise RunError(f"the processes of torchrun cannot be reached: {first_line(error, 300)}") from error

    def __deepcopy__(self, _: object) -> Self:
        """Return this: there is one of it in a process."""
        return self

    @property
    def speaks(self) -> bool:
        """Whether this process tells the user of errors: rank 0, or the first that is left."""
        return self.rank == min(set(range(self.world)) - self._missing)

    def share(self, tensor: Tensor) -> Tensor:
        """Return the rows of this process of a tensor (N, ...) that every process has; N is a multiple of `world`."""
        count, rest = divmod(len(tensor), self.world)
        if rest:
            raise ValueError(f"{len(tensor)} rows cannot be shared by {self.world} processes")
        return tensor.narrow(0, self.rank * count, count)

    def whole(self, *shares: Tensor) -> tuple[Tensor, ...]:
        """Return the whole of each tensor (N / world, ...) of one dtype, in one exchange, with gradients.

        The gradient of a whole must be the same in every process: it may be used only for what all of them compute.
        """
        rows = len(shares[0])
        flat = torch.cat([each.reshape(rows, -1) for each in shares], dim=1)
        gathered: Tensor = _Gather.apply(flat, self)
        parts = torch.split(gathered, [each.numel() // rows for each in shares], dim=1)
        return tuple(part.reshape(self.world * rows, *each.shape[1:]) for part, each in zip(parts, shares, strict=True))

    def gather(self, share: Tensor) -> Tensor:
        """Return the whole of a tensor (N / world, ...), without gradients."""
        share = share.detach().contiguous()
        whole = share.new_empty((self.world * len(share), *share.shape[1:]))
        with self._contact():
            self._wait_for(dist.all_gather(list(whole.chunk(self.world)), share, async_op=not share.is_cuda))
        self.traffic.operations += 1
        self.traffic.gathered += whole.nbytes
        return whole

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the tensors of all processes, without gradients."""
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        with self._contact():
            self._wait_for(dist.all_reduce(total, async_op=not total.is_cuda))
        self.traffic.operations += 1
        self.traffic.summed += total.nbytes
        return total

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradients of parameters by their means over the processes, in one exchange for each dtype."""
        groups: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                groups.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in groups.values():
            mean = self.sum(torch.cat([each.flatten() for each in gradients])) / self.world
            parts = torch.split(mean, [each.numel() for each in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view(gradient.shape))

    def highest(self, *numbers: int) -> list[int]:
        """Return the highest of each of these numbers over all processes."""
        found = torch.tensor(numbers)
        with self._contact():
            self._wait_for(dist.all_reduce(found, op=dist.ReduceOp.MAX, async_op=True))
        return found.tolist()

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Raise an error in every process if the block raises in one; the block must not exchange anything."""
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
        failures = self._exchange(None if error is None else _describe(error))
        if error is not None:
            raise error
        for rank, failure in enumerate(failures):
            if failure is not None:
                raise _recreate(rank, failure)

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Raise the same `InputError` in every process if facts of a run, by name, differ between them."""
        first, *others = self._exchange(dict(facts))
        for rank, other in enumerate(others, 1):
            for name in first.keys() | other.keys():
                if first.get(name) != other.get(name):
                    values = (shortened(each.get(name, "none")) for each in (other, first))
                    raise InputError(
                        f"rank {rank} was started differently: {shortened(name)} is {' there and '.join(values)} at "
                        "rank 0; start every process with the same command and versions"
                    )

    def wait_for_all(self) -> None:
        """Wait until every process has come here; raise `GapssgError` if another one has failed."""
        self._exchange(None)

    @contextmanager
    def sharing_failures(self) -> Iterator[None]:
        """Tell the other processes of an error in the block, and disconnect, so that they end with its sentence."""
        try:
            yield
        except BaseException as error:
            is_mute = self._liveness.has_lost_store or not self._is_connected
            with suppress(RuntimeError):
                if not is_mute:
                    if not self._store.check([f"lost/{self.rank}"]):
                        self._store.set(f"failed/{self.rank}", json.dumps(_describe(error)))
                    self._store.set(f"ends/{self.rank}", "")
            self._disconnect()
            if self.rank == 0 and not is_mute:
                with suppress(RuntimeError):  # the store may be that of torchrun, and gone
                    self._let_others_end()
            raise

    def leave(self) -> None:
        """Leave the others: rank 0 first, for torchrun ends all processes once one has failed."""
        with suppress(RuntimeError):
            if self.rank == 0:
                self._store.set("left", "")
            deadline = time.monotonic() + _SECONDS_TO_PREPARE
            gone = self._missing
            while not gone and not self._store.check(["left"]) and time.monotonic() < deadline:
                gone = self._liveness.ended()
                time.sleep(_LONGEST_WAIT)

    @contextmanager
    def _contact(self) -> Iterator[None]:
        """Explain why a collective operation failed."""
        try:
            yield
        except (RuntimeError, OSError) as error:  # torch has no specific error for this
            raise self._explain(error) from error

    def _wait_for(self, operation: dist.Work | None) -> None:
        """Wait until a collective operation has ended; None is one for which the stream of a GPU waits."""
        while operation is not None:
            try:
                operation.wait(timedelta(seconds=_SECONDS_BETWEEN_LOOKS))
                return
            except RuntimeError:
                if operation.is_completed():  # it has failed, or ended since, which `wait` tells
                    operation.wait()
                    return
                self._check_liveness()

    def _check_liveness(self, awaited: Sequence[str] = ()) -> None:
        """Raise `GapssgError` if another process has ended before the store has the awaited keys."""
        ended = self._liveness.ended()
        if not ended:
            return
        if not self._liveness.has_lost_store:
            self._raise_failure()
            if awaited and self._store.check(list(awaited)):
                return
        self._missing = ended
        raise self._ended()

    def _ended(self) -> RunError:
        ended = ", ".join(f"rank {rank}" for rank in sorted(self._missing))
        return RunError(f"{ended} of {self.world} has ended or does not answer; {_HOW_TO_CONTINUE}")

    def _explain(self, error: Exception) -> GapssgError:
        """Return an error that names the processes that have ended, or raise that of one that has told why."""
        others = set(range(self.world)) - {self.rank}
        told: set[int] = set()
        try:
            self._store.set(f"lost/{self.rank}", "")
            deadline = time.monotonic() + _SECONDS_TO_EXPLAIN
            while told != others and time.monotonic() < deadline:
                self._raise_failure()
                told |= {rank for rank in others - told if self._store.check([f"lost/{rank}"])}
                time.sleep(_LONGEST_WAIT)
            self._missing = others - told
        except RuntimeError:  # the store is gone, and with it rank 0, unless torchrun keeps it
            self._missing = {0} - {self.rank}
        if self._missing:
            return self._ended()
        return RunError(f"the {self.world} processes lost contact ({first_line(error, 300)}); {_HOW_TO_CONTINUE}")

    def _exchange(self, mine: Any) -> list[Any]:
        """Return what every process gives, JSON types, in the order of their ranks."""
        self._exchanges += 1
        keys = [f"exchange/{self._exchanges}/{rank}" for rank in range(self.world)]
        try:
            self._store.set(keys[self.rank], json.dumps(mine))
            if not self._wait(keys, _SECONDS_TO_PREPARE):
                raise RunError(f"not all of the {self.world} processes were ready within half an hour")
            return [json.loads(self._store.get(key)) for key in keys]
        except RuntimeError as error:
            raise self._explain(error) from error

    def _wait(self, keys: list[str], seconds: float) -> bool:
        """Tell whether the store has these keys within some seconds.

        Signals are handled in between, which a wait by torch would not allow. Raises `GapssgError` if another process
        has failed meanwhile.
        """
        deadline, pause = time.monotonic() + seconds, 0.001
        while not self._store.check(keys):
            self._raise_failure()
            self._check_liveness(keys)
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_WAIT)
        return True

    def _raise_failure(self) -> None:
        for rank in set(range(self.world)) - {self.rank}:
            if self._store.check([f"failed/{rank}"]):
                raise _recreate(rank, json.loads(self._store.get(f"failed/{rank}")))

    def _let_others_end(self) -> None:
        """Wait until the others know why they end: the store may end with the process of rank 0."""
        deadline = time.monotonic() + _SECONDS_TO_EXPLAIN
        others = set(range(1, self.world))
        while others and time.monotonic() < deadline:
            others -= self._liveness.ended()
            others -= {rank for rank in others if self._store.check([f"ends/{rank}"])}
            time.sleep(_LONGEST_WAIT)

    def _disconnect(self) -> None:
        """Close the connections, for which torch may wait for work on a GPU."""
        if self._is_connected:
            self._is_connected = False
            closing: Callable[[], None] = dist.destroy_process_group
            thread = Thread(target=closing, daemon=True)
            thread.start()
            thread.join(_SECONDS_TO_DISCONNECT)


_LOCAL = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return processes.gather(share)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        processes: Processes = ctx.processes
        return processes.share(gradient) * processes.world, None


class _Failure(TypedDict):
    """An error of a process, for the others."""

    status: int
    lines: Sequence[str]


def _describe(error: BaseException) -> _Failure:
    status = getattr(error, "exit_status", RunError.exit_status)
    if isinstance(error, GapssgError):
        return {"status": status, "lines": error.lines}
    name = f"unexpected {type(error).__name__}: " if isinstance(error, Exception) else ""
    return {"status": status, "lines": [f"{name}{first_line(error, 300)}"]}


def _recreate(rank: int, failure: _Failure) -> GapssgError:
    kind = InputError if failure["status"] == InputError.exit_status else RunError
    first, *others = failure["lines"] or ["failed"]
    return kind(f"rank {rank}: {first}", *others)
