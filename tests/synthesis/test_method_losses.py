"""The losses of the other methods: golden values where available, otherwise the formula written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gapssg.synthesis.base import Responses
from gapssg.synthesis.cmi import CMISettings
from gapssg.synthesis.contrastive_inversion import contrastive_loss, resized_crop
from gapssg.synthesis.dafl import DAFLSettings
from gapssg.synthesis.dfad import DFADSettings
from gapssg.synthesis.dfq import DFQSettings
from gapssg.synthesis.fast import FastSettings
from gapssg.synthesis.gapssg_fast import GapSSGFastSettings
from gapssg.synthesis.losses import (
    class_balance_loss,
    confidence_loss,
    jensen_shannon_divergence,
    logit_distance,
    masked_divergence,
    total_variation,
)
from gapssg.synthesis.mad import MADSettings
from gapssg.synthesis.zskt import ZSKTSettings
from tests.synthesis.golden import EXPECTED, GOLDEN, TOLERANCE, tensor

INPUTS = GOLDEN["inputs"]
TEACHER, STUDENT = tensor(INPUTS["teacher_logits"]), tensor(INPUTS["student_logits"])
TARGETS = torch.tensor(INPUTS["targets"])
STATISTICS = torch.tensor(13.5, dtype=torch.float64)


def divergence(temperature: float) -> float:
    """T^2 KL(p_t || p_s), summed sample by sample."""
    total = 0.0
    for teacher, student in zip(TEACHER.tolist(), STUDENT.tolist(), strict=True):
        p, q = probabilities(teacher, temperature), probabilities(student, temperature)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total * temperature**2 / len(TEACHER)


def probabilities(logits: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(logit / temperature) for logit in logits]
    return [power / sum(powers) for power in powers]


def responses(features: Tensor | None = None) -> Responses:
    return Responses(TEACHER, STUDENT, STATISTICS, torch.zeros(6, 0) if features is None else features)


def test_golden_values_of_the_shared_losses():
    found = {
        "js_divergence_T3_clamped": jensen_shannon_divergence(STUDENT, TEACHER, 3.0),
        "class_balance_loss_teacher": class_balance_loss(TEACHER),
        "masked_adversarial_loss": -masked_divergence(STUDENT, TEACHER),
        "one_hot_loss_teacher_argmax": confidence_loss(TEACHER),
        "total_variation_l1": total_variation(tensor(INPUTS["images"])),
    }
    for name, value in found.items():
        assert value.item() == pytest.approx(EXPECTED[name], **TOLERANCE), name


def test_the_class_balance_loss_of_an_absent_class_and_its_gradient_are_finite():
    logits = torch.tensor([[0.0, -1000.0], [0.0, -2000.0]], requires_grad=True)
    loss = class_balance_loss(logits)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_logit_distance_is_the_mean_absolute_difference():
    pairs = zip(TEACHER.flatten().tolist(), STUDENT.flatten().tolist(), strict=True)
    expected = sum(abs(a - b) for a, b in pairs) / TEACHER.numel()
    assert logit_distance(STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-12)


def test_dafl_adds_confidence_activation_and_balance_losses():
    features = torch.linspace(-2, 3, 42, dtype=torch.float64).view(6, 7)
    loss, terms = DAFLSettings().loss(responses(features))
    activation = sum(abs(value) for value in features.flatten().tolist()) / 42
    confidence, balance = EXPECTED["one_hot_loss_teacher_argmax"], EXPECTED["class_balance_loss_teacher"]
    # The balance is weighted 20-fold.
    assert loss.item() == pytest.approx(confidence - 1e-3 * activation + 20 * balance, rel=0, abs=1e-9)
    assert terms.keys() == {"confidence_loss", "activation_loss", "class_balance_loss"}


def test_zskt_maximises_the_divergence_that_the_student_minimises():
    for temperature in (1.0, 4.0):
        settings = ZSKTSettings(temperature=temperature)
        assert settings.loss(responses())[0].item() == pytest.approx(-divergence(temperature), rel=1e-9)
        assert settings.distillation_loss(STUDENT, TEACHER).item() == pytest.approx(divergence(temperature), rel=1e-9)


def test_dfad_maximises_the_distance_that_the_student_minimises():
    expected = (TEACHER - STUDENT).abs().mean().item()
    assert DFADSettings().loss(responses())[0].item() == pytest.approx(-expected)
    assert DFADSettings().distillation_loss(STUDENT, TEACHER).item() == pytest.approx(expected)


def test_dfq_and_mad_add_statistics_and_confidence_to_the_adversarial_loss():
    confidence, balance = EXPECTED["one_hot_loss_teacher_argmax"], EXPECTED["class_balance_loss_teacher"]
    expected = 13.5 + confidence - divergence(1.0)
    assert MADSettings().loss(responses())[0].item() == pytest.approx(expected, rel=0, abs=1e-9)
    assert DFQSettings().loss(responses())[0].item() == pytest.approx(expected + 20 * balance, rel=0, abs=1e-9)


@pytest.mark.parametrize(
    ("settings", "weights"), [(CMISettings(), (1.0, 1.0, 0.5)), (FastSettings(), (10.0, 0.4, 1.1))]
)
def test_cmi_and_fast_add_target_and_masked_adversarial_losses_to_the_statistics(settings, weights):
    loss, _ = settings.loss(STATISTICS, TEACHER, STUDENT, TARGETS)
    rows = zip(TEACHER.tolist(), TARGETS.tolist(), strict=True)
    target_loss = -sum(math.log(probabilities(row)[target]) for row, target in rows) / 6
    adversarial = EXPECTED["masked_adversarial_loss"]
    expected = weights[0] * 13.5 + weights[1] * target_loss + weights[2] * adversarial
    assert loss.item() == pytest.approx(expected, rel=0, abs=1e-9)


def test_gapssg_fast_adds_the_targets_and_both_gap_terms_to_the_statistics():
    def cross_entropy(logits: Tensor) -> float:
        rows = zip(logits.tolist(), TARGETS.tolist(), strict=True)
        return -sum(math.log(probabilities(row)[target]) for row, target in rows) / len(TARGETS)

    found = {
        "target_loss": cross_entropy(TEACHER),
        "disagreement_loss": cross_entropy((TEACHER - STUDENT) / 2),
        "agreement_loss": cross_entropy(TEACHER + STUDENT),
    }
    for weights in ((1.0, 1.0, 1.0, 0.2), (0.5, 2.0, 0.0, 3.0)):
        statistics, target, disagreement, agreement = weights
        settings = GapSSGFastSettings(
            statistics_weight=statistics,
            target_weight=target,
            disagreement_weight=disagreement,
            agreement_weight=agreement,
        )
        loss, terms = settings.loss(STATISTICS, TEACHER, STUDENT, TARGETS)
        expected = statistics * 13.5 + sum(w * value for w, value in zip(weights[1:], found.values(), strict=True))
        assert loss.item() == pytest.approx(expected, rel=0, abs=1e-9)
        values = {name: term.item() for name, term in terms.items()}
        assert values == pytest.approx({"relative_statistics_loss": 13.5, **found}, rel=1e-12)
    assert GapSSGFastSettings().loss(STATISTICS, TEACHER, STUDENT, TARGETS)[0].item() == pytest.approx(
        13.5 + found["target_loss"] + found["disagreement_loss"] + 0.2 * found["agreement_loss"], rel=1e-12
    )


def test_the_contrastive_loss_compares_each_view_with_the_valid_images():
    draw = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(2, 7, 4, generator=draw, dtype=torch.float64), dim=2)
    local, whole = features[0].requires_grad_(), features[1].requires_grad_()
    valid = torch.tensor([True] * 3 + [True, True, False, False])
    loss = contrastive_loss(local, whole, 3, valid, 0.2)
    similar = [[sum(a * b for a, b in zip(x, y, strict=True)) / 0.2 for y in whole.tolist()] for x in local.tolist()]
    rows = [-math.log(probabilities(row[:5])[index]) for index, row in enumerate(similar[:5])]
    assert loss.item() == pytest.approx(sum(rows[:3]) / 3 + sum(rows[3:]) / 2, rel=1e-12)
    loss.backward()
    assert whole.grad is None
    assert local.grad is not None
    assert local.grad[:5].abs().sum(dim=1).gt(0).all()
    assert not local.grad[5:].any()


def test_the_contrastive_loss_of_an_empty_bank_is_that_of_the_batch():
    features = torch.nn.functional.normalize(torch.arange(10.0, dtype=torch.float64).view(5, 2), dim=1)
    valid = torch.tensor([True] * 3 + [False] * 2)
    found = contrastive_loss(features, features, 3, valid, 0.5)
    expected = contrastive_loss(features[:3], features[:3], 3, valid[:3], 0.5)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_resized_crop_equals_that_of_torch():
    images = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flips = torch.tensor([False, True])
    # Boxes aligned to pixels, so that torch can crop first.
    box = [torch.tensor(each, dtype=torch.float64) for each in ([0, 0.5], [0.25, 0], [1, 0.5], [0.5, 0.75])]
    found = resized_crop(images, box[0], box[1], box[2], box[3], flips)
    for image, result, flip, rows, columns in (
        (images[0], found[0], False, slice(0, 8), slice(3, 9)),
        (images[1], found[1], True, slice(4, 8), slice(0, 9)),
    ):
        grid: dict[str, Any] = {"size": (8, 12), "mode": "bilinear", "align_corners": False}
        expected = torch.nn.functional.interpolate(image[None, :, rows, columns], **grid)[0]
        inside = (slice(None), slice(1, -1), slice(2, -2))  # torch does not see the pixels outside the box
        torch.testing.assert_close(result[inside], (expected.flip(2) if flip else expected)[inside])
