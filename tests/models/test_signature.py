"""The conversions to logits, in float64, and the hooks that make them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gapssg.models.description import PLAIN, ModelCard, Outputs, Signature
from gapssg.models.graphs.module import _Graph
from gapssg.models.signature import adapt, signature_of, to_logits
from tests.conftest import make_card
from tests.models.factories import Answering

KINDS: tuple[Outputs, ...] = ("logits", "probabilities", "log-probabilities", "sigmoids", "logit", "sigmoid")
SATURATED = (0.0, 1e-300, 1e-30, 1 - 1e-16, 1.0)


def draw(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def outputs_of_a_model(kind: Outputs, logits: Tensor) -> Tensor:
    """What a model with these logits, (N, K) or (N, 1), returns."""
    ends = {"probabilities": lambda x: x.softmax(1), "log-probabilities": lambda x: x.log_softmax(1)}
    ends |= dict.fromkeys(("sigmoid", "sigmoids"), torch.sigmoid)
    return ends.get(kind, lambda x: x)(logits)


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_probabilities_and_the_gradient_of_the_loss_are_those_before_the_conversion(kind: Outputs):
    has_one_column = kind in ("logit", "sigmoid")
    logits = draw(20, 1 if has_one_column else 5, scale=4).requires_grad_()
    targets = torch.arange(20) % (2 if has_one_column else 5)
    converted = to_logits(kind, outputs_of_a_model(kind, logits))
    (gradient,) = torch.autograd.grad(F.cross_entropy(converted, targets), logits)
    if has_one_column:
        expected = F.binary_cross_entropy_with_logits(logits[:, 0], targets.double())
        probabilities = torch.cat([(-logits).sigmoid(), logits.sigmoid()], dim=1)
    else:
        expected, probabilities = F.cross_entropy(logits, targets), logits.softmax(1)
    torch.testing.assert_close(converted.softmax(1), probabilities)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_a_conversion_is_that_of_finite_differences(kind: Outputs):
    values = outputs_of_a_model(kind, draw(6, 1 if kind in ("logit", "sigmoid") else 3, scale=2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda given: to_logits(kind, given), values)


@pytest.mark.parametrize("kind", ["probabilities", "sigmoids", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_saturated_probabilities_give_finite_logits_in_their_order_and_finite_gradients(kind: Outputs, dtype):
    values = torch.tensor(SATURATED, dtype=torch.float64).to(dtype)
    values = (values[:, None] if kind == "sigmoid" else torch.stack([1 - values, values], 1)).requires_grad_()
    converted = to_logits(kind, values)
    converted.logsumexp(1).sum().backward()
    assert converted.shape == (5, 2)
    assert converted.isfinite().all()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    margins = converted[:, 1] - converted[:, 0]
    assert (margins.diff() >= 0).all()
    assert margins[0] == -margins[-1] < -4
    assert values.grad[0, -1] == 0


def test_a_sigmoid_loses_nothing_of_a_logit_that_float32_can_tell_from_0_and_1():
    logits = torch.linspace(-15, 15, 61, dtype=torch.float64)
    converted = to_logits("sigmoid", logits.sigmoid())
    # A probability next to 1 is rounded by 1e-16, which is 4e-10 of its distance to 1 at a logit of 15.
    torch.testing.assert_close(converted[:, 1] - converted[:, 0], logits, rtol=0, atol=1e-9)
    assert torch.equal(converted.sum(1), torch.zeros(61, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
@pytest.mark.parametrize("kind", ["logit", "sigmoid"])
def test_one_value_of_an_image_may_have_a_dimension_of_its_own_or_none(kind: Outputs, shape):
    assert torch.equal(to_logits(kind, torch.full(shape, 0.5)), to_logits(kind, torch.full((3,), 0.5)))


def test_a_single_image_without_its_dimension_has_two_logits():
    assert to_logits("logit", torch.tensor(3.0)).tolist() == [[-1.5, 1.5]]


def test_an_adapted_module_keeps_its_state_dict_and_copies_know_their_signature():
    module = Answering(2, 3, "sigmoid in a dict, NHWC").eval()
    names = list(module.state_dict())
    signature = Signature("sigmoid", "p", "NHWC")
    for _ in range(2):  # a second time changes nothing
        adapt(module, signature)
    images = torch.rand(4, 3, 16, 16)
    expected = to_logits("logit", module.body(images))
    for adapted in (module, copy.deepcopy(module)):
        assert signature_of(adapted) == signature
        assert list(adapted.state_dict()) == names
        torch.testing.assert_close(adapted(images), expected)
    adapt(module, PLAIN)
    assert signature_of(module) == PLAIN
    assert set(module(images.permute(0, 2, 3, 1))) == {"features", "p"}


def test_a_copy_of_an_imported_graph_keeps_its_signature():
    traced = fx.symbolic_trace(nn.Sequential(nn.Flatten(), nn.Linear(48, 1), nn.Sigmoid()))
    graph = _Graph(traced, traced.graph)
    adapt(graph, Signature("sigmoid", None, "NHWC"))
    copied = copy.deepcopy(nn.Sequential(graph))[0]
    images = torch.rand(2, 3, 4, 4)
    assert signature_of(copied) == Signature("sigmoid", None, "NHWC")
    assert torch.equal(copied(images), graph(images))


@pytest.mark.slow
def test_an_adapted_module_can_be_compiled_as_one_graph():
    module = Answering(2, 3, "sigmoid in a dict, NHWC").eval()
    adapt(module, Signature("sigmoid", "p", "NHWC"))
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    images = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(compiled(images), module(images))


def test_a_description_of_images_and_logits_is_written_as_before_there_were_signatures():
    assert not {"outputs", "output_part", "input_layout"} & make_card().model_dump().keys()
    signature = Signature("sigmoid", "p", "NHWC")
    card = make_card(outputs="sigmoid", output_part="p", input_layout="NHWC")
    assert ModelCard.model_validate_json(card.model_dump_json()).signature == signature
