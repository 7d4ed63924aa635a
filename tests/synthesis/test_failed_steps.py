"""A step that fails half-way, as one that cannot be captured, leaves nothing; one that diverges leaves its images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gapssg.core.runtime import Runtime
from gapssg.errors import Diverged
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


def make(name: str, runtime: Runtime, **changes: int) -> tuple[Any, Any]:
    """Return the synthesizer of a method and its step."""
    (settings,) = (each for each in method_classes() if each.model_fields["name"].default == name)
    synthesizer: Any = settings(**{**METHODS[name], **changes}).build(make_context(runtime, "tiny"))
    return synthesizer, (synthesizer.synthesis if synthesizer.pool is not None else synthesizer)._step


def synthesise(name: str, fails: bool, runtime: Runtime) -> tuple[list[dict[str, float]], Tensor]:
    synthesizer, step = make(name, runtime)
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


# DAFL makes no pass through the student.
@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"noise", "dafl"}))
def test_a_step_that_failed_half_way_changes_nothing(name: str, runtime: Runtime):
    with tiny_model():
        (terms, images), (expected_terms, expected) = (synthesise(name, fails, runtime) for fails in (True, False))
    assert terms == expected_terms
    assert torch.equal(images, expected)


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"noise", "deepinversion"}))
def test_a_synthesis_that_diverged_has_the_images_of_the_step_at_fault(name: str, runtime: Runtime):
    with tiny_model():
        synthesizer, step = make(name, runtime, generator_steps=4)
        loss, images = step._loss, list[Tensor]()

        def diverging(*tensors: Tensor) -> dict[str, Tensor]:
            outputs = loss(*tensors)
            images.append(outputs["images"].detach().clone())
            return {**outputs, "loss": outputs["loss"] * (torch.nan if len(images) == 2 else 1)}

        step._loss = diverging
        with pytest.raises(Diverged) as raised:
            list(synthesizer.synthesis_steps(make_student(runtime, "tiny"), 0, 0))
        assert len(images) == 4
        assert torch.equal(raised.value.images, images[1])
