from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.distributions import Normal

from gapssg.audit.attacks import area_under_roc, likelihood_ratios, margins, rate_at, roc_curve
from gapssg.audit.shadows import halves

NORMAL = Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))


def phi(value: float) -> float:
    return (1 + math.erf(value / math.sqrt(2))) / 2


def quantiles(count: int, mean: float = 0.0) -> Tensor:
    """Return a sample of the normal distribution whose distribution function is within 1 / (2 * count) of the exact."""
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return mean + NORMAL.icdf(levels)


def draws(count: int, seed: int, mean: float = 0.0) -> Tensor:
    return mean + torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_margin_is_the_logarithm_of_the_odds_of_the_label():
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])
    labels = torch.tensor([1, 0])
    p = logits.double().softmax(dim=1)[torch.arange(2), labels]
    torch.testing.assert_close(margins(logits, labels), (p / (1 - p)).log(), rtol=1e-13, atol=0)


def test_margins_of_sure_answers_differ_where_their_losses_round_to_zero():
    logits = torch.tensor([[50.0, 0.0], [60.0, 0.0], [0.0, 90.0]])
    labels = torch.tensor([0, 0, 0])
    losses = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    assert losses[0] == losses[1] == 0
    assert margins(logits, labels).tolist() == [50.0, 60.0, -90.0]


@pytest.mark.parametrize("distance", [0.0, 0.5, 2.0])
def test_the_area_for_normal_scores_is_the_closed_form(distance: float):
    area = area_under_roc(quantiles(2000, distance), quantiles(1000))
    # Each empirical distribution function is off by at most half a step.
    assert area.value == pytest.approx(phi(distance / math.sqrt(2)), abs=1 / 4000 + 1 / 2000)
    assert area.low < area.value < area.high


def test_the_area_with_ties_is_that_of_scikit_learn():
    members, non_members = draws(80, 1, 0.5).round(decimals=1), draws(120, 2).round(decimals=1)
    labels = [1] * 80 + [0] * 120
    expected = roc_auc_score(labels, torch.cat([members, non_members]).numpy())
    assert area_under_roc(members, non_members).value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("distance", [0.0, 1.0])
def test_the_interval_of_the_area_covers_the_true_one_in_95_of_100_samples(distance: float):
    true, repetitions = phi(distance / math.sqrt(2)), 400
    areas = [area_under_roc(draws(60, seed, distance), draws(90, 1000 + seed)) for seed in range(repetitions)]
    covered = sum(area.low <= true <= area.high for area in areas) / repetitions
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / repetitions)


def test_the_interval_of_a_perfect_attack_on_few_images_is_not_a_point():
    area = area_under_roc(torch.ones(10).double(), torch.zeros(10).double())
    assert (area.value, area.high) == (1.0, 1.0)
    assert 0.6 < area.low < 0.9


@pytest.mark.parametrize(("one_in", "distance"), [(100, 1.0), (1000, 1.0), (1000, 3.0)])
def test_the_rate_for_normal_scores_is_the_closed_form(one_in: int, distance: float):
    count = 4000
    rates = rate_at(quantiles(count, distance), quantiles(count), one_in)
    allowed = count // one_in
    assert rates.false_positives is not None and rates.true_positives is not None
    assert rates.false_positives.value == allowed / count
    threshold = NORMAL.icdf(torch.tensor(1 - (allowed + 0.5) / count, dtype=torch.float64)).item()
    assert rates.true_positives.value == pytest.approx(1 - phi(threshold - distance), abs=1 / (2 * count) + 1e-9)
    # The threshold lies half a step from the wanted rate; the slope of the curve there is the ratio of the densities.
    wanted = NORMAL.icdf(torch.tensor(1 - 1 / one_in, dtype=torch.float64)).item()
    slope = math.exp(wanted * distance - distance**2 / 2)
    assert rates.true_positives.value == pytest.approx(1 - phi(wanted - distance), abs=(slope + 1) / count)


@pytest.mark.parametrize(("count", "one_in", "is_known"), [(99, 100, False), (100, 100, True), (999, 1000, False)])
def test_a_rate_needs_enough_non_members(count: int, one_in: int, is_known: bool):
    rates = rate_at(quantiles(50, 1.0), quantiles(count), one_in)
    assert (rates.true_positives is not None) == (rates.false_positives is not None) == is_known


def test_ties_never_raise_the_false_positives_above_the_limit():
    rates = rate_at(torch.ones(200).double(), torch.ones(200).double(), 100)
    assert rates.false_positives is not None and rates.true_positives is not None
    assert (rates.false_positives.value, rates.true_positives.value) == (0.0, 0.0)


def test_the_curve_has_the_rates_at_its_thresholds():
    members, non_members = draws(300, 3, 1.0), draws(250, 4)
    curve = roc_curve(members, non_members)
    ordered = non_members.sort(descending=True).values
    assert len(curve) == 101
    assert list(curve) == sorted(curve)
    assert curve[1.0] == 1.0
    for wrong, found in list(curve.items())[:-1]:
        threshold = ordered[round(wrong * 250)]
        assert (non_members > threshold).double().mean().item() == pytest.approx(wrong, abs=1e-12)
        assert (members > threshold).double().mean().item() == pytest.approx(found, abs=1e-12)


def test_the_halves_of_a_pair_complement_each_other():
    is_inside = halves(11, 6, torch.Generator().manual_seed(0))
    assert is_inside.shape == (6, 11)
    assert (is_inside.sum(dim=0) == 3).all()
    for first, second in zip(is_inside[::2], is_inside[1::2], strict=True):
        assert torch.equal(first, ~second)
        assert first.sum() == 5
    assert not torch.equal(is_inside[0], is_inside[2])


def test_likelihood_ratios_reach_their_closed_form_where_images_differ_in_difficulty():
    """The margin is N(difficulty, 1) outside and N(difficulty + d, 1) inside; difficulties are N(0, s^2)."""
    count, models, distance, spread = 20_000, 8, 1.0, 2.0
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(models + 2, 2 * count, dtype=torch.float64, generator=generator)
    difficulty = spread * noise[0]
    is_member = torch.arange(2 * count) < count
    audited = difficulty + noise[1] + distance * is_member
    is_inside = halves(2 * count, models, generator)
    # What models say of their own training images must not matter.
    shadows = difficulty + noise[2:] + 1000 * is_inside
    scores = likelihood_ratios(audited, shadows, is_inside)
    error = 4 * math.sqrt(2 / (12 * count))  # four standard errors at most: a placement has a variance below 1/12
    by_ratio, by_loss = (area_under_roc(each[:count], each[count:]).value for each in (scores, audited))
    assert by_ratio == pytest.approx(phi(distance / math.sqrt(2 * (1 + 2 / models))), abs=error)
    assert by_loss == pytest.approx(phi(distance / math.sqrt(2 * (1 + spread**2))), abs=error)
    assert by_ratio > by_loss + 0.1
