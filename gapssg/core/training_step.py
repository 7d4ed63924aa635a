"""One update of weights: the place where a step is compiled and, on a GPU, captured as a graph.

A small network on a large GPU is bound by the launches of its kernels, which a graph replays in one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from gapssg.core.runtime import Runtime

Outputs = dict[str, Tensor]

_LOGGER = logging.getLogger(__name__)

EAGER_CALLS = 3
"""Calls before the capture. They are steps like any other; libraries and optimizers make their state in them."""


class Recorder(Protocol):
    """Something that records what a function launches, and replays it on the same memory."""

    def record(self, function: Callable[[], Outputs]) -> Outputs:
        """Record `function` without running it; return the tensors that each replay writes to."""

    def replay(self) -> None:
        """Run what was recorded."""


class TrainingStep:
    """Loss, gradients, optimizer and what follows them: one function of tensors of fixed sizes, without waiting.

    A step whose loss is not finite changes no weight and no state of the optimizer. That is decided on the device,
    and counted there.

    Attributes:
        skipped: How many steps changed nothing; 0-dimensional float32 on the device, to be set to 0 in place.
    """

    def __init__(
        self,
        name: str,
        loss: Callable[..., Outputs],
        optimizer: torch.optim.Optimizer,
        runtime: Runtime,
        after: Callable[[Outputs], None] | None = None,
    ) -> None:
        """Update what `optimizer` holds by the gradient of `loss`.

        Args:
            name: What the step does, for messages.
            loss: Tensors to a dict whose entry `loss` is minimised; the others are for `after` and the caller.
            optimizer: A fused one, whose learning rate is a tensor, as `step_size` makes it.
            runtime: Whether and how the step is compiled and captured.
            after: Called with the outputs at the end of the step, to update tensors in place.
        """
        self._loss = runtime.compile(loss)
        self._optimizer = optimizer
        self._after = after
        self.skipped = torch.zeros((), device=runtime.device)
        # Fused optimizers leave everything as it is where this says 1; gradient scalers use it.
        self._not_finite = torch.zeros((), device=runtime.device)
        optimizer.grad_scale, optimizer.found_inf = None, self._not_finite  # type: ignore[attr-defined]
        self._capture = None
        if runtime.device.type == "cuda":
            self._capture = Capture(self._update, name, partial(CudaRecorder, runtime.device))

    def __call__(self, *tensors: Tensor) -> Outputs:
        """Make one update.

        Returns:
            What the loss function returned, without gradient, on the device. The next call may overwrite it.
        """
        return self._update(*tensors) if self._capture is None else self._capture(*tensors)

    def make_state(self) -> None:
        """Let Adam make its moments, by a step that is not applied."""
        self._not_finite.fill_(1)
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _update(self, *tensors: Tensor) -> Outputs:
        self._optimizer.zero_grad(set_to_none=True)
        outputs = self._loss(*tensors)
        torch.autograd.backward(outputs["loss"])
        self._not_finite.copy_(~torch.isfinite(outputs["loss"].detach()))
        self.skipped += self._not_finite
        self._optimizer.step()
        outputs = {name: value.detach() for name, value in outputs.items()}
        if self._after is not None:
            with torch.no_grad():
                self._after(outputs)
        return outputs


class Capture:
    """Calls a function as it is a few times, and from then on replays what it launches.

    Where the recording fails, the function is called as it is for good, and a warning is logged.
    """

    def __init__(
        self,
        function: Callable[..., Outputs],
        name: str,
        make_recorder: Callable[[], Recorder],
    ) -> None:
        """Record `function`, whose tensors must have the same sizes and types in each call."""
        self._function = function
        self._name = name
        self._make_recorder = make_recorder
        self._calls = 0
        self._recorder: Recorder | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: Outputs = {}
        self._possible = True

    def __call__(self, *tensors: Tensor) -> Outputs:
        """Call the function, or replay it on these tensors."""
        self._calls += 1
        if self._recorder is None and self._possible and self._calls > EAGER_CALLS:
            self._record(tensors)
        if self._recorder is None:
            return self._function(*tensors)
        for place, tensor in zip(self._inputs, tensors, strict=True):
            if place.shape != tensor.shape:
                # copy_ would broadcast it.
                raise ValueError(f"{self._name} was recorded for {tuple(place.shape)}, not {tuple(tensor.shape)}")
            place.copy_(tensor)
        self._recorder.replay()
        return self._outputs

    def _record(self, tensors: tuple[Tensor, ...]) -> None:
        recorder = self._make_recorder()
        inputs = tuple(tensor.clone() for tensor in tensors)
        try:
            self._outputs = recorder.record(lambda: self._function(*inputs))
        except RuntimeError as error:  # torch has no error of its own for this
            self._possible = False
            reason = str(error).splitlines()[0]
            _LOGGER.warning("%s runs slower than it could: no graph of it, %s", self._name, reason)
        else:
            self._recorder, self._inputs = recorder, inputs


class CudaRecorder:
    """Records CUDA kernels as one graph (torch.cuda.CUDAGraph)."""

    def __init__(self, device: torch.device) -> None:
        """Record on `device`."""
        self._device = device
        self._graph = torch.cuda.CUDAGraph()

    def record(self, function: Callable[[], Outputs]) -> Outputs:
        """Record `function` on a stream of its own."""
        # A checkpoint may be on its way from the GPU in another thread, which the default mode does not allow.
        mode = "thread_local"
        with torch.cuda.device(self._device), torch.cuda.graph(self._graph, capture_error_mode=mode):
            return function()

    def replay(self) -> None:
        """Launch the graph on the current stream."""
        self._graph.replay()


def step_size(learning_rate: float, device: torch.device) -> Tensor:
    """Return a learning rate as 0-dimensional float32, which optimizers read anew in each compiled or captured step."""
    return torch.tensor(learning_rate, dtype=torch.float32, device=device)


def forget_steps(optimizer: torch.optim.Optimizer) -> None:
    """Put an optimizer back, in place, to where it was before its first step (Adam: moments and step count 0)."""
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()
