"""One weight update: where a step is compiled and, on a GPU, captured as a CUDA graph.

A small network on a large GPU is limited by kernel launches, which a graph replaces by one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gapssg.core.runtime import Runtime

Outputs = dict[str, Tensor]

_LOGGER = logging.getLogger(__name__)

EAGER_CALLS = 3
"""Calls before the capture. They are ordinary steps, in which libraries and optimizers create their state."""
Recording = tuple[Outputs, Callable[[], None]]
"""The outputs of a recorded function, and a function that replays it on the same memory."""


class TrainingStep:
    """Loss, gradients and optimizer step as one function of tensors of fixed sizes, without synchronising.

    A step whose loss is not finite changes neither weights nor optimizer state. That is decided and counted on the
    device.

    Attributes:
        skipped: Number of such steps; 0-dimensional float32 on the device, to be reset in place.
    """

    def __init__(
        self,
        name: str,
        loss: Callable[..., Outputs],
        optimizer: torch.optim.Optimizer,
        runtime: Runtime,
        after: Callable[[Outputs], None] | None = None,
    ) -> None:
        """Update the parameters of `optimizer` by the gradient of `loss`.

        Args:
            name: Name of the step, for messages.
            loss: Maps tensors to a dict whose entry `loss` is minimised; the others are for `after` and the caller.
            optimizer: A fused optimizer, whose learning rate is a tensor made by `step_size`.
            runtime: Whether and how the step is compiled and captured.
            after: Called with the outputs at the end of the step, to update tensors in place.
        """
        self._runtime = runtime
        self._loss = runtime.compile(loss)
        self._optimizer = optimizer
        self._after = after
        self.skipped = torch.zeros((), device=runtime.device)
        # Fused optimizers change nothing if this is 1; gradient scalers use it.
        self._not_finite = torch.zeros((), dtype=torch.float32, device=runtime.device)
        optimizer.grad_scale, optimizer.found_inf = None, self._not_finite  # type: ignore[attr-defined]
        self._capture = None
        if runtime.device.type == "cuda" and runtime.processes is None:
            self._capture = Capture(self._update, name, partial(record_cuda_graph, runtime.device))

    def __call__(self, *tensors: Tensor) -> Outputs:
        """Make one update; return the outputs of the loss, without gradient, which the next call may overwrite."""
        return self._update(*tensors) if self._capture is None else self._capture(*tensors)

    def make_state(self) -> None:
        """Let Adam create its moments, by a step that is not applied."""
        self._not_finite.fill_(1)
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _update(self, *tensors: Tensor) -> Outputs:
        self._optimizer.zero_grad(set_to_none=True)
        with self._runtime.whole_batch_layers():
            outputs = self._loss(*tensors)
        torch.autograd.backward(outputs["loss"])
        self._runtime.average_gradients(each for group in self._optimizer.param_groups for each in group["params"])
        self._not_finite.copy_(~torch.isfinite(outputs["loss"].detach()))
        self.skipped += self._not_finite
        self._optimizer.step()
        outputs = {name: value.detach() for name, value in outputs.items()}
        if self._after is not None:
            with torch.no_grad():
                self._after(outputs)
        return outputs


class Capture:
    """Calls a function a few times, and then replays the kernels that it launches.

    If the recording fails, the function is called every time, and a warning is logged.
    """

    def __init__(
        self,
        function: Callable[..., Outputs],
        name: str,
        record: Callable[[Callable[[], Outputs]], Recording],
    ) -> None:
        """Capture `function`, whose tensors must have the same sizes and types in each call."""
        self._function = function
        self._name = name
        self._record = record
        self._calls = 0
        self._recording: Recording | None = None
        self._inputs: tuple[Tensor, ...] = ()

    def __call__(self, *tensors: Tensor) -> Outputs:
        """Call the function, or replay it on these tensors."""
        if self._calls == EAGER_CALLS:
            self._capture(tensors)
        self._calls += 1
        if self._recording is None:
            return self._function(*tensors)
        for place, tensor in zip(self._inputs, tensors, strict=True):
            if place.shape != tensor.shape:
                # copy_ would broadcast it.
                raise ValueError(f"{self._name} was recorded for {tuple(place.shape)}, not {tuple(tensor.shape)}")
            place.copy_(tensor)
        outputs, replay = self._recording
        replay()
        return outputs

    def _capture(self, tensors: tuple[Tensor, ...]) -> None:
        inputs = tuple(tensor.clone() for tensor in tensors)
        try:
            self._recording, self._inputs = self._record(partial(self._function, *inputs)), inputs
        except RuntimeError as error:  # torch has no specific error for this
            reason = str(error).splitlines()[0]
            _LOGGER.warning("%s runs without a CUDA graph, which is slower: %s", self._name, reason)


def record_cuda_graph(device: torch.device, function: Callable[[], Outputs]) -> Recording:
    """Record the CUDA kernels of `function`, without running them, as one graph."""
    graph = torch.cuda.CUDAGraph()
    # A checkpoint may be copied from the GPU by another thread, which the default mode does not allow.
    with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        return function(), graph.replay


def step_size(learning_rate: float, device: torch.device) -> Tensor:
    """Return a learning rate as 0-dimensional float32, which compiled and captured steps read each time."""
    return torch.tensor(learning_rate, dtype=torch.float32, device=device)


def forget_steps(optimizer: torch.optim.Optimizer) -> None:
    """Reset an optimizer in place to the state before its first step (Adam: moments and step count 0)."""
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()
