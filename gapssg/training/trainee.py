"""A model in training: its optimizer, its steps, and rollback on divergence."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from gapssg.core.muon import Muon
from gapssg.core.runtime import Runtime
from gapssg.core.training_step import Outputs, TrainingStep, step_size
from gapssg.errors import InputError, RunError
from gapssg.models.foreign import load_state
from gapssg.runs.checkpoint import Facts, State
from gapssg.runs.events import RolledBack
from gapssg.settings.parts import OptimizerSettings
from gapssg.training.schedules import learning_rate

_MODEL, _MOMENTUM, _LOSS_SUM, _GOOD = "model.", "momentum.", "loss_sum", "good."
_SKIPPED, _MODULES, _MODULES_ON_CUDA = "skipped", "modules", "modules_on_cuda"


class TraineeFacts(Facts):
    """The state of a trainee in a checkpoint, besides tensors."""

    steps_done: NonNegativeInt
    learning_rate: NonNegativeFloat
    rate_factor: PositiveFloat
    rollbacks: NonNegativeInt


class Trainee:
    """A model in training.

    Attributes:
        learning_rate: The current learning rate.
        loss_sum: Sum of the losses since it was last set to 0; 0-dimensional, on the device.
        rollbacks: Number of rollbacks so far.
        step: One update of the model.
        steps_done: Completed steps of the current phase.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Outputs],
        settings: OptimizerSettings,
        runtime: Runtime,
        max_rollbacks: int,
    ) -> None:
        """Train `model`, which is on the device, by gradients of `loss`, as for `TrainingStep`."""
        self.model = model
        self.learning_rate = settings.learning_rate
        self.loss_sum = torch.zeros((), device=runtime.device)
        self.rollbacks = 0
        self._settings = settings
        self._runtime = runtime
        self._max_rollbacks = max_rollbacks
        self._optimizer = _make_optimizer(settings, model, runtime.device)
        self.step = TrainingStep("the training step", loss, self._optimizer, runtime)
        self._rate_factor = 1.0
        self.steps_done = 0
        self._good: dict[str, Tensor] = {}
        self._modules_state: list[Tensor] = []

    def set_learning_rate(self, progress: float) -> None:
        """Set the learning rate after `progress` (in [0, 1)) of the run."""
        self.learning_rate = self._rate_factor * learning_rate(self._settings, progress)
        for group in self._optimizer.param_groups:
            group["lr"].fill_(self.learning_rate)  # in place, because a captured step reads this memory

    def train(
        self, epoch: int, number: int, steps: int, inputs: Iterator[tuple[Tensor, ...]]
    ) -> Generator[int, None, None]:
        """Make the remaining steps of a phase, and yield after each how many are done.

        After the last, `settle` keeps them all or rolls them back.

        Args:
            epoch: The epoch, counted from 0.
            number: The phase of the epoch, counted from 0.
            steps: Number of steps of the phase.
            inputs: The tensors of each step after the first `steps_done`; there may be more.
        """
        if self.steps_done == 0:
            self._good = {name: tensor.clone() for name, tensor in self._training_state().items()}
        self.model.train()
        with self._runtime.seeded_globals("modules", epoch, number, self.rollbacks):
            self._restore_modules_state()
            while self.steps_done < steps:
                self.loss_sum += self.step(*next(inputs))["loss"]
                self.steps_done += 1
                yield self.steps_done

    def settle(self, epoch: int, is_sound: bool = True) -> RolledBack | None:
        """Keep the steps of a phase, or roll them back if the model has diverged.

        It has diverged if a loss, a weight or a running statistic is not finite, or `is_sound` is False. The phase must
        then be repeated; the learning rate is halved from now on.

        Raises:
            RunError: It diverged too often.
        """
        self.steps_done = 0
        if is_sound and self._is_finite():
            self._good = {}
            return None
        self.rollbacks += 1
        if self.rollbacks > self._max_rollbacks:
            raise RunError(
                f"the training diverged in epoch {epoch + 1}, {self.rollbacks} times in all, at a learning rate of "
                f"{self.learning_rate:.3g}; lower optimizer.learning_rate or raise --max-rollbacks"
            )
        self._load_training_state(self._good)
        self._rate_factor /= 2
        for group in self._optimizer.param_groups:
            group["lr"].mul_(0.5)
        self.learning_rate /= 2
        return RolledBack(epoch=epoch + 1, part="training", learning_rate=self.learning_rate)

    def state(self) -> State:
        """Return the state for a checkpoint."""
        tensors = self._training_state()
        if self.steps_done:
            tensors |= {f"{_GOOD}{name}": tensor for name, tensor in self._good.items()}
            tensors[_MODULES] = torch.get_rng_state()
            if self._runtime.device.type == "cuda":
                tensors[_MODULES_ON_CUDA] = torch.cuda.get_rng_state(self._runtime.device)
        facts = TraineeFacts(
            steps_done=self.steps_done,
            learning_rate=self.learning_rate,
            rate_factor=self._rate_factor,
            rollbacks=self.rollbacks,
        )
        return State(facts.model_dump(), tensors)

    def restore(self, state: State) -> None:
        """Restore the state of a checkpoint.

        Raises:
            InputError: The state is damaged, or does not fit the model.
        """
        facts = TraineeFacts.read(state.facts)
        self._load_training_state(state.tensors)
        self.steps_done, self.learning_rate = facts.steps_done, facts.learning_rate
        self._rate_factor, self.rollbacks = facts.rate_factor, facts.rollbacks
        if self.steps_done:
            good = {name.removeprefix(_GOOD): t for name, t in state.tensors.items() if name.startswith(_GOOD)}
            self._good = {name: tensor.to(self._runtime.device) for name, tensor in good.items()}
            names = [_MODULES, _MODULES_ON_CUDA][: 2 if self._runtime.device.type == "cuda" else 1]
            if any(name not in state.tensors for name in names) or not self._fits(self._good):
                raise InputError("the checkpoint lacks the state of an unfinished epoch; restart with --overwrite")
            # Copied, because torch reads a random state as wider numbers, which must be aligned.
            self._modules_state = [state.tensors[name].clone() for name in names]
            self._check_modules_state()
        elif not self._is_finite():
            raise InputError("the checkpoint's weights are not finite; restart with --overwrite")

    def _fits(self, tensors: dict[str, Tensor]) -> bool:
        """Tell whether these are a training state of this model, with or without momenta."""
        places = self._training_state()
        needed = {name for name in places if not name.startswith(_MOMENTUM)}
        return needed <= tensors.keys() <= places.keys() and all(
            tensor.shape == places[name].shape for name, tensor in tensors.items()
        )

    def _check_modules_state(self) -> None:
        try:
            for state, device in zip(self._modules_state, (torch.device("cpu"), self._runtime.device), strict=False):
                torch.Generator(device).set_state(state)
        except (RuntimeError, TypeError) as error:
            raise InputError("the checkpoint's random state is damaged; restart with --overwrite") from error

    def _training_state(self) -> dict[str, Tensor]:
        tensors = {f"{_MODEL}{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, parameter in enumerate(self.model.parameters()):
            momentum = self._optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"{_MOMENTUM}{index}"] = momentum
        return {**tensors, _LOSS_SUM: self.loss_sum, _SKIPPED: self.step.skipped}

    def _load_training_state(self, tensors: dict[str, Tensor]) -> None:
        """Copy weights, buffers, momenta and sums into the memory that a captured step uses."""
        weights = {name.removeprefix(_MODEL): t for name, t in tensors.items() if name.startswith(_MODEL)}
        try:
            load_state(self.model, weights)
            for index, parameter in enumerate(self.model.parameters()):
                state, saved = self._optimizer.state[parameter], tensors.get(f"{_MOMENTUM}{index}")
                if saved is None:
                    # Before the first step, a momentum of 0 has the same effect as none.
                    if "momentum_buffer" in state:
                        state["momentum_buffer"].zero_()
                    continue
                if state.get("momentum_buffer") is None:
                    # In the memory layout of the parameter, which the fused update assumes.
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                _copy(saved, state["momentum_buffer"])
            _copy(tensors[_LOSS_SUM], self.loss_sum)
            _copy(tensors[_SKIPPED], self.step.skipped)
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"the checkpoint does not fit the model of the run: {str(error).splitlines()[0]}"
            ) from error

    def _restore_modules_state(self) -> None:
        """Restore torch's global generators, from which dropout draws, to their state in the checkpoint."""
        if not self._modules_state:
            return
        torch.set_rng_state(self._modules_state[0])
        for state in self._modules_state[1:]:
            torch.cuda.set_rng_state(state, self._runtime.device)
        self._modules_state = []

    def _is_finite(self) -> bool:
        tensors = [tensor for tensor in self.model.state_dict().values() if tensor.is_floating_point()]
        finite = torch.stack([tensor.isfinite().all() for tensor in tensors])
        return self.step.skipped.item() == 0 and bool(finite.all())


def _make_optimizer(settings: OptimizerSettings, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    rate, decay = step_size(settings.learning_rate, device), settings.weight_decay
    if settings.algorithm == "muon":
        return Muon(model, rate, settings.momentum, settings.nesterov, decay, settings.kernel_rate)
    nesterov = settings.nesterov and settings.momentum > 0  # torch refuses it without momentum
    return torch.optim.SGD(
        model.parameters(), rate, settings.momentum, weight_decay=decay, nesterov=nesterov, fused=True
    )


def _copy(source: Tensor, target: Tensor) -> None:
    if source.shape != target.shape:
        raise RuntimeError(f"a tensor has shape {tuple(source.shape)}, not {tuple(target.shape)}")
    with torch.no_grad():
        target.copy_(source)
