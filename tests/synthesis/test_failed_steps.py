"""A step that fails half-way, as one that cannot be captured as a CUDA graph, leaves nothing for the next."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gapssg.core.runtime import Runtime
from gapssg.synthesis import method_classes
from tests.methods import METHODS
from tests.synthesis.context import make_context, make_student
from tests.tiny import tiny_model


class FailingOnce(nn.Module):
    """A student whose first pass fails if `fails`; then the step is made again, as a failed capture is."""

    def __init__(self, student: nn.Module, fails: bool) -> None:
        super().__init__()
        self.student = student
        self.fails = fails

    def forward(self, images: Tensor) -> Tensor:
        if self.fails:
            self.fails = False
            raise RuntimeError("cannot be captured")
        logits: Tensor = self.student(images)
        return logits


def synthesise(name: str, fails: bool, runtime: Runtime) -> tuple[list[dict[str, float]], Tensor]:
    (settings,) = (each for each in method_classes() if each.model_fields["name"].default == name)
    synthesizer: Any = settings(**METHODS[name]).build(make_context(runtime, "tiny"))
    step = (synthesizer.synthesis if synthesizer.pool is not None else synthesizer)._step
    loss = step._loss

    def again(*tensors: Tensor) -> dict[str, Tensor]:
        try:
            return loss(*tensors)
        except RuntimeError:
            return loss(*tensors)

    step._loss = again
    student = FailingOnce(make_student(runtime, "tiny"), fails)
    steps = synthesizer.synthesis_steps(student, 0, 0)
    terms = [{term: value.item() for term, value in terms.items()} for _, terms in steps]
    assert not student.fails
    return terms, synthesizer.fresh


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"noise"}))
def test_a_step_that_failed_half_way_changes_nothing(name: str, runtime: Runtime):
    with tiny_model():
        (terms, images), (expected_terms, expected) = (synthesise(name, fails, runtime) for fails in (True, False))
    assert terms == expected_terms
    assert torch.equal(images, expected)
