"""A compiled or captured step equals the plain one, and a step with a non-finite loss changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gapssg.core.runtime import Runtime
from gapssg.core.training_step import EAGER_CALLS, Capture, Outputs, Recording, TrainingStep, forget_steps, step_size

CPU = torch.device("cpu")


class FakeRecorder:
    """Records like a CUDA graph: the function is traced once, and replays work on the same memory."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.replays = 0

    def record(self, function: Callable[[], Outputs]) -> Recording:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.function = function
        self.places: Outputs = {"doubled": torch.zeros(3)}
        return self.places, self.replay

    def replay(self) -> None:
        self.replays += 1
        for name, value in self.function().items():
            self.places[name].copy_(value)


def make_capture(recorder: FakeRecorder) -> tuple[Capture, list[int]]:
    addresses: list[int] = []

    def double(values: Tensor) -> Outputs:
        addresses.append(values.data_ptr())
        return {"doubled": 2 * values}

    return Capture(double, "the doubling", recorder.record), addresses


def test_a_captured_function_is_replayed_on_the_same_memory_with_new_values(caplog):
    recorder = FakeRecorder()
    capture, addresses = make_capture(recorder)
    for call in range(EAGER_CALLS + 4):
        values = torch.full((3,), float(call))
        assert capture(values)["doubled"].tolist() == [2.0 * call] * 3
    assert recorder.replays == 4
    assert len(set(addresses[EAGER_CALLS:])) == 1
    assert caplog.messages == []
    with pytest.raises(ValueError, match=r"the doubling was recorded for \(3,\), not \(1,\)"):
        capture(torch.ones(1))


def test_a_function_that_cannot_be_captured_runs_eagerly_with_one_warning(caplog):
    capture, _ = make_capture(FakeRecorder(fails=True))
    for call in range(EAGER_CALLS + 3):
        assert capture(torch.full((3,), float(call)))["doubled"].tolist() == [2.0 * call] * 3
    (note,) = caplog.messages
    assert "the doubling runs without a CUDA graph" in note
    assert note.endswith("operation not permitted when stream is capturing")


def make_step(runtime: Runtime, optimizer_class: type, **options: object) -> tuple[nn.Parameter, TrainingStep]:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = optimizer_class([weight], lr=step_size(0.1, CPU), fused=True, **options)
    return weight, TrainingStep("a step", lambda x: {"loss": (weight * x).sum()}, optimizer, runtime)


@pytest.mark.parametrize(("kind", "options"), [(torch.optim.SGD, {"momentum": 0.9}), (torch.optim.Adam, {})])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_changes_nothing_and_is_counted(runtime, kind, options, bad):
    weight, step = make_step(runtime, kind, **options)
    other, reference = make_step(runtime, kind, **options)
    step(torch.ones(2)), reference(torch.ones(2))
    before = weight.detach().clone()
    step(torch.tensor([bad, 1.0]))
    assert torch.equal(weight, before)
    assert step.skipped.item() == 1
    # The optimizer state has not changed either: the next step is that of a run without the bad one.
    step(torch.ones(2)), reference(torch.ones(2))
    assert torch.equal(weight, other)
    assert step.skipped.item() == 1


def test_sgd_is_the_formula_in_float64(runtime):
    weight, step = make_step(runtime, torch.optim.SGD, momentum=0.9, weight_decay=0.01)
    expected, momentum = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for index in range(5):
        x = torch.tensor([0.5 + index, -1.0])
        step(x)
        momentum = 0.9 * momentum + x.double() + 0.01 * expected
        expected = expected - 0.1 * momentum
    # Five steps, each with a handful of roundings of 2**-24.
    torch.testing.assert_close(weight.detach().double(), expected, rtol=5 * 8 * 2**-24, atol=0)


def test_resetting_an_optimizer_restarts_it_in_the_same_memory(runtime):
    weight, step = make_step(runtime, torch.optim.Adam, betas=(0.5, 0.999))
    start = weight.detach().clone()
    step.make_state()
    assert torch.equal(weight, start)
    optimizer = step._optimizer
    moments = {name: value.data_ptr() for name, value in optimizer.state[weight].items()}
    first = [(step(torch.tensor([1.0, -3.0])), weight.detach().clone())[1] for _ in range(3)]
    forget_steps(optimizer)
    with torch.no_grad():
        weight.copy_(start)
    again = [(step(torch.tensor([1.0, -3.0])), weight.detach().clone())[1] for _ in range(3)]
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert {name: value.data_ptr() for name, value in optimizer.state[weight].items()} == moments


def test_the_function_after_a_step_sees_its_outputs_without_gradient(runtime):
    weight = nn.Parameter(torch.ones(1))
    seen: list[Outputs] = []
    optimizer = torch.optim.SGD([weight], lr=step_size(0.1, CPU), fused=True)
    step = TrainingStep("a step", lambda: {"loss": weight.sum(), "w": weight * 1}, optimizer, runtime, seen.append)
    step()
    assert seen[0]["w"].item() == 1.0  # from before the update
    assert not any(value.requires_grad for value in seen[0].values())
