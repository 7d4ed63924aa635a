from __future__ import annotations

import pytest
import torch

from gapssg.evaluation.metrics import (
    ClassCounts,
    agreement,
    answers_of,
    balanced_accuracy,
    concatenated,
    confusion_matrix,
    count_by_class,
    expected_calibration_error,
    is_better_than_chance,
    lowest_share,
    per_class_accuracy,
    reliability,
    score_answers,
    top_k_accuracy,
)


def test_top_k_accuracy_counts_labels_among_the_highest_logits():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    labels = torch.tensor([0, 1, 0, 2])
    assert top_k_accuracy(logits, labels, 1) == 0.5
    assert top_k_accuracy(logits, labels, 2) == 0.75
    assert top_k_accuracy(logits, labels, 5) == 1.0


def test_cross_entropy_is_in_nats():
    logits = torch.tensor([[0.0, 0.0]])
    assert answers_of(logits, torch.tensor([1])).losses.item() == pytest.approx(0.6931471805599453, abs=1e-15)


def test_calibration_error_of_a_known_case():
    # Two samples with confidence 0.8, one of them right: |0.8 - 0.5|. Two with 0.6, both right: |0.6 - 1|.
    probabilities = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.4, 0.6]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1])
    diagram = reliability(answers_of(probabilities.log(), labels), bins=4)
    found = [each and (each.samples, each.confidence, each.accuracy) for each in diagram]
    assert found == [None, None, (2, pytest.approx(0.6), 1.0), (2, pytest.approx(0.8), 0.5)]
    error = expected_calibration_error(diagram)
    assert error == pytest.approx((0.3 + 0.4) / 2, abs=1e-12)


def test_confusion_matrix_has_labels_in_rows_and_predictions_in_columns():
    matrix = confusion_matrix(torch.tensor([1, 1, 0]), torch.tensor([0, 1, 0]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert per_class_accuracy(ClassCounts([1, 1, 0], [2, 1, 0])) == [0.5, 1.0, None]


def test_agreement_compares_predictions_not_logits():
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert agreement(first, 10 * first) == 1.0
    assert agreement(first, first.flip(1)) == 0.0


def test_balanced_accuracy_is_the_mean_over_the_classes_that_have_samples():
    counts = count_by_class(torch.tensor([0, 0, 0, 0, 0, 1]), torch.tensor([0, 0, 0, 0, 1, 1]), 3)
    assert counts == ClassCounts([4, 1, 0], [4, 2, 0])
    assert balanced_accuracy(counts) == pytest.approx((1.0 + 0.5) / 2)


@pytest.mark.parametrize(
    ("hits", "totals", "is_better"),
    [
        ([900, 0], [900, 100], False),  # top-1 is 90 %
        ([97, 5], [100, 100], False),
        ([100, 2], [100, 100], False),
        ([80, 70], [100, 100], True),
        ([5, 5], [8, 8], False),  # 62.5 % of 16 images may be chance
        ([100, 90, 0], [100, 100, 100], True),
        ([10, 0, 0], [10, 0, 0], True),  # one class alone
    ],
)
def test_better_than_chance_is_better_than_one_class_by_more_than_the_sampling_error(hits, totals, is_better):
    assert is_better_than_chance(ClassCounts(hits, totals)) is is_better


def test_the_lowest_class_is_one_with_enough_samples():
    assert lowest_share(ClassCounts([0, 4, 9], [9, 10, 10])) == (1, 0.4)
    assert lowest_share(ClassCounts([0, 0], [9, 9])) is None


def test_scores_name_the_lowest_class():
    labels = torch.tensor([0, 1]).repeat_interleave(20)
    scores = score_answers(answers_of(torch.tensor([[1.0, 0.0]]).expand(40, 2), labels), ("cat", "dog"))
    assert (scores.top1, scores.balanced_accuracy, scores.better_than_chance) == (0.5, 0.5, False)
    assert (scores.lowest_recall, scores.lowest_class) == (0.0, "dog")
    assert scores.fewest_images == 20
    assert score_answers(answers_of(torch.eye(2), torch.tensor([0, 0])), ("cat", "dog")).fewest_images == 0


def test_answers_to_batches_are_those_to_all():
    logits, labels = torch.randn(10, 7, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 7
    parts = [answers_of(*batch) for batch in zip(logits.split(4), labels.split(4), strict=True)]
    for together, one in zip(concatenated(parts), answers_of(logits, labels), strict=True):
        torch.testing.assert_close(together, one, rtol=0, atol=1e-12)
