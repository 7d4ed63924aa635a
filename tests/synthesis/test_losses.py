"""Each formula against the golden values of the published reference implementation, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from gapssg.models.generator import Generator
from gapssg.synthesis.batch_norm import observed_statistics
from gapssg.synthesis.gapssg import GapSSGSettings
from gapssg.synthesis.losses import (
    agreement_loss,
    disagreement_loss,
    distillation_divergence,
    gap_bounds,
    reality_gap,
    regulatory_factor,
)
from tests.synthesis.golden import EXPECTED, GOLDEN, TOLERANCE, tensor


@pytest.fixture
def logits() -> tuple[Tensor, Tensor, Tensor]:
    inputs = GOLDEN["inputs"]
    return tensor(inputs["teacher_logits"]), tensor(inputs["student_logits"]), torch.tensor(inputs["targets"])


@pytest.fixture
def golden_net() -> nn.Module:
    values = GOLDEN["inputs"]["batch_norm_net"]
    net = nn.Sequential(
        nn.Conv2d(3, 3, 1, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 4, 1, bias=False),
        nn.BatchNorm2d(4),
    ).double()
    with torch.no_grad():
        for index, name in ((0, "conv1"), (3, "conv2")):
            net[index].weight.copy_(tensor(values[name]))
        for index, name in ((1, "bn1"), (4, "bn2")):
            net[index].running_mean.copy_(torch.tensor(values[f"{name}_mean"], dtype=torch.float64))
            net[index].running_var.copy_(torch.tensor(values[f"{name}_var"], dtype=torch.float64))
    return net.eval()


def golden_statistics_loss(net: nn.Module) -> Tensor:
    distances: list[Tensor] = []
    with observed_statistics(net, distances):
        net(tensor(GOLDEN["inputs"]["batch_norm_net"]["x"]))
    return torch.stack(distances).sum()


def test_disagreement_loss(logits):
    assert disagreement_loss(*logits).item() == pytest.approx(EXPECTED["disagreement_loss"], **TOLERANCE)


def test_agreement_loss(logits):
    assert agreement_loss(*logits).item() == pytest.approx(EXPECTED["agreement_loss"], **TOLERANCE)


def test_regulatory_factor(logits):
    teacher, student, _ = logits
    assert regulatory_factor(teacher, student).item() == pytest.approx(EXPECTED["regulatory_factor"], **TOLERANCE)
    assert math.exp(-reality_gap(teacher, student).item()) == pytest.approx(EXPECTED["regulatory_factor"], **TOLERANCE)


def test_gap_bounds_are_the_formula_and_bound_the_distance_of_the_risks(logits):
    teacher, student, targets = logits
    ideal = (teacher + student) / 3
    expected, risks = [0.0, 0.0], [0.0, 0.0]
    for t, s, best, y in zip(teacher.tolist(), student.tolist(), ideal.tolist(), targets.tolist(), strict=True):
        p_t, p_s, p_best = ([math.exp(z) / sum(map(math.exp, row)) for z in row] for row in (t, s, best))
        one_hot = [float(index == y) for index in range(len(t))]
        surprise = [math.log(1 / p) for p in p_s]
        expected[0] += math.dist(p_t, p_best) * math.hypot(*surprise) / len(targets)
        expected[1] += math.dist(p_best, one_hot) * math.hypot(*surprise) / len(targets)
        risks[0] += sum(map(math.prod, zip(p_t, surprise, strict=True))) / len(targets)
        risks[1] += sum(map(math.prod, zip(one_hot, surprise, strict=True))) / len(targets)
    bounds = [bound.item() for bound in gap_bounds(teacher, student, ideal, targets)]
    assert bounds == pytest.approx(expected, **TOLERANCE)
    assert abs(risks[0] - risks[1]) <= sum(bounds)


@pytest.mark.parametrize("temperature", [1, 20])
def test_distillation_divergence(logits, temperature):
    teacher, student, _ = logits
    value = distillation_divergence(student, teacher, temperature).item()
    # The squared temperature amplifies the rounding of the inputs 400-fold.
    assert value == pytest.approx(EXPECTED[f"kd_loss_T{temperature}"], rel=0, abs=1e-9)


def test_batch_norm_statistics_loss(golden_net):
    loss = golden_statistics_loss(golden_net).item()
    assert loss == pytest.approx(EXPECTED["batch_norm_statistics_loss"], rel=0, abs=1e-9)


def test_gap_loss_is_statistics_plus_regulated_disagreement_and_agreement(logits, golden_net):
    loss, terms = GapSSGSettings().loss(golden_statistics_loss(golden_net), *logits)
    assert loss.item() == pytest.approx(EXPECTED["gap_loss_total"], rel=0, abs=1e-9)
    assert terms["disagreement_loss"].item() == pytest.approx(EXPECTED["disagreement_loss"], **TOLERANCE)
    assert terms["agreement_loss"].item() == pytest.approx(EXPECTED["agreement_loss"], **TOLERANCE)
    assert terms["regulatory_factor"].item() == pytest.approx(EXPECTED["regulatory_factor"], **TOLERANCE)


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({"regulatory_factor": False}, (0.5, 0.1)),
        ({"disagreement_weight": 0.0}, (0.0, 0.1 * (1 - EXPECTED["regulatory_factor"]))),
        ({"agreement_weight": 0.0}, (0.5 * (1 - EXPECTED["regulatory_factor"]), 0.0)),
        ({"gap_weight": 0.0}, (0.0, 0.0)),
    ],
)
def test_each_part_of_the_gap_loss_can_be_disabled(logits, changes, weights):
    statistics = torch.tensor(13.5, dtype=torch.float64)
    loss, terms = GapSSGSettings(**changes).loss(statistics, *logits)
    expected = 13.5 + weights[0] * EXPECTED["disagreement_loss"] + weights[1] * EXPECTED["agreement_loss"]
    assert loss.item() == pytest.approx(expected, **TOLERANCE)
    assert ("regulatory_factor" in terms) == changes.get("regulatory_factor", True)  # reported only if used


def test_generator_has_the_published_number_of_parameters():
    generator = Generator((3, 32, 32), latent_size=256, width=64)
    assert sum(p.numel() for p in generator.parameters()) == EXPECTED["generator_parameters_latent256_width64_32x32x3"]


def test_sample_balanced_schedule_has_the_published_number_of_steps():
    expected = EXPECTED["sample_balanced_steps_N256_batch128"]
    steps = [GapSSGSettings().steps_on(256 * (epoch + 1), 128) for epoch in range(200)]
    assert steps[0] == expected["epoch_0"]
    assert steps[1] == expected["epoch_1"]
    assert steps[199] == expected["epoch_199"]
    assert sum(steps) == expected["total_200_epochs"]


def test_no_gradient_flows_through_the_regulatory_factor(logits):
    teacher, student, targets = (t.clone().requires_grad_() if t.is_floating_point() else t for t in logits)
    settings = GapSSGSettings()
    loss, terms = settings.loss(torch.zeros((), dtype=torch.float64), teacher, student, targets)
    assert not terms["regulatory_factor"].requires_grad
    factor = terms["regulatory_factor"].item()
    constant = settings.gap_weight * (1 - factor)
    gap = disagreement_loss(teacher, student, targets) + settings.agreement_weight * agreement_loss(
        teacher, student, targets
    )
    for actual, expected in zip(
        torch.autograd.grad(loss, (teacher, student)),
        torch.autograd.grad(constant * gap, (teacher, student)),
        strict=True,
    ):
        # The same products in another order: a few units in the last place of numbers below 1.
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)


def test_gradient_flows_to_teacher_and_student_logits(logits):
    teacher, student, targets = (t.clone().requires_grad_() if t.is_floating_point() else t for t in logits)
    loss, _ = GapSSGSettings().loss(torch.zeros((), dtype=torch.float64), teacher, student, targets)
    for gradient in torch.autograd.grad(loss, (teacher, student)):
        assert gradient.abs().sum() > 0.01


def test_distillation_divergence_is_zero_only_where_the_distributions_agree(logits):
    teacher, student, _ = logits
    # A constant added to all logits of a sample changes no probability.
    assert distillation_divergence(teacher + 3.0, teacher, 4.0).item() == pytest.approx(0, abs=1e-12)
    assert distillation_divergence(student, teacher, 4.0).item() > 0.01
