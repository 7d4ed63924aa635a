"""The fit of the predictor, and what its intervals promise."""

from __future__ import annotations

import numpy as np
import pytest

from gapssg.quality.calibration import fit, leave_out, weighted_quantile


def drawn(groups: int, size: int, seed: int, spread: float = 0.3):
    """Rows whose groups are shifted against each other, as teachers are."""
    rng = np.random.default_rng(seed)
    shift = np.repeat(rng.normal(0, spread, groups), size)
    features = rng.normal(0, 1, (groups * size, 2))
    targets = 0.5 + features @ [0.8, 0.3] + shift + rng.normal(0, 0.05, groups * size)
    return features, targets, [f"group {number}" for number in range(groups) for _ in range(size)]


def test_a_weighted_quantile_is_the_first_value_that_reaches_the_share():
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([0.25, 0.5, 0.25])
    assert weighted_quantile(values, weights, 0.5) == 1.0
    assert weighted_quantile(values, weights, 0.51) == 2.0
    assert weighted_quantile(values, weights, 0.75) == 2.0
    assert weighted_quantile(values, weights, 1.0) == 3.0


def test_the_fit_recovers_coefficients_and_never_has_negative_ones():
    features, targets, groups = drawn(200, 5, seed=0)
    fitted = fit(features, targets, groups, 0.9)
    # Groups are shifted by 0.3 and rows by 0.05: with 200 groups of 5 rows, five standard errors are 0.05 and 0.11.
    assert fitted.coefficients == pytest.approx([0.8, 0.3], abs=0.05)
    assert fitted.intercept == pytest.approx(0.5, abs=0.11)
    assert np.all(fit(-features, targets, groups, 0.9).coefficients == 0)


def test_a_group_counts_once_however_many_rows_it_has():
    targets = np.array([1.0] * 98 + [3.0, 3.0])
    fitted = fit(np.zeros((100, 1)), targets, ["large"] * 98 + ["small"] * 2, 0.9)
    assert fitted.intercept == pytest.approx(2.0)
    assert fitted.errors(np.zeros((1, 1))) == pytest.approx(2.0)  # of each group from the other


def test_intervals_cover_new_groups_as_often_as_they_promise():
    covered = []
    for seed in range(40):
        features, targets, groups = drawn(20, 6, seed)
        fitted = fit(features, targets, groups, 0.9)
        new_features, new_targets, _ = drawn(10, 6, seed + 1000)
        predicted = fitted.predict(new_features)
        covered.append(np.mean(np.abs(new_targets - predicted) <= fitted.errors(new_features)))
    # 400 new groups: the standard error of a coverage of 0.9 is 0.015.
    assert 0.86 <= np.mean(covered) <= 0.97


def test_the_length_of_the_interval_follows_the_errors_unless_it_is_constant():
    rng = np.random.default_rng(1)
    features = rng.uniform(0, 1, (600, 1))
    shift = np.repeat(rng.choice([-1.0, 1.0], 100), 6)  # of each group
    targets = features[:, 0] * (1 + 0.5 * shift)
    groups = [f"group {number}" for number in range(100) for _ in range(6)]
    low, high = fit(features, targets, groups, 0.9).errors(np.array([[0.2], [0.8]]))
    # The error of every row is half of its feature, up to what 100 groups leave of the mean shift.
    assert (low, high) == (pytest.approx(0.1, abs=0.06), pytest.approx(0.4, abs=0.12))
    low, high = fit(features, targets, groups, 0.9, "constant").errors(np.array([[0.2], [0.8]]))
    assert low == high


def test_no_interval_is_shorter_than_the_sampling_error_allows():
    features = np.linspace(0, 1, 40)[:, None]
    groups = [f"group {number // 4}" for number in range(40)]
    fitted = fit(features, features[:, 0] + 0.3 * (np.arange(40) % 4 == 0) * features[:, 0], groups, 0.9)
    assert fitted.smallest_error > 0
    assert np.all(fitted.errors(np.array([[-5.0]])) == fitted.smallest_error)


def test_what_is_left_out_has_no_part_in_its_own_prediction():
    features, targets, groups = drawn(8, 3, seed=2)
    changed = targets.copy()
    changed[:3] += 5
    before, after = (leave_out(features, each, groups, 0.9)[0] for each in (targets, changed))
    assert before.group == after.group == "group 0"
    assert np.array_equal(before.predicted, after.predicted)
    assert np.array_equal(before.high, after.high)
    assert after.coverage == 0


def test_several_groups_are_left_out_together():
    features, targets, groups = drawn(8, 3, seed=3)
    larger = ["first" if index < 12 else "second" for index in range(24)]
    assert [each.group for each in leave_out(features, targets, groups, 0.9, larger)] == ["first", "second"]


def test_rows_that_are_refused_have_no_prediction_but_a_part_in_the_fit():
    features, targets, groups = drawn(8, 3, seed=4)
    first, second, *others = leave_out(features, targets, groups, 0.9)
    most = float(np.median(second.high))

    def is_refused(row: int, high: float) -> bool:
        return row < 3 or (row < 6 and high > most)

    found, *same = leave_out(features, targets, groups, 0.9, is_refused=is_refused)
    assert (first.group, found.group, len(found.targets)) == ("group 0", "group 1", 2)
    for values, expected in zip(found[1:], second[1:], strict=True):
        assert np.array_equal(values, expected[second.high <= most])
    assert [str(each) for each in same] == [str(each) for each in others]
