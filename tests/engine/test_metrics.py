from __future__ import annotations

import pytest
import torch

from gapssg.engine.metrics import (
    agreement,
    confusion_matrix,
    cross_entropy,
    expected_calibration_error,
    per_class_accuracy,
    reliability,
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
    assert cross_entropy(logits, torch.tensor([1])) == pytest.approx(0.6931471805599453, abs=1e-15)


def test_calibration_error_of_a_known_case():
    # Two samples with confidence 0.8, one of them right: |0.8 - 0.5|. Two with 0.6, both right: |0.6 - 1|.
    probabilities = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.4, 0.6]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1])
    diagram = reliability(probabilities.log(), labels, bins=4)
    assert diagram == [None, None, (2, pytest.approx(0.6), 1.0), (2, pytest.approx(0.8), 0.5)]
    error = expected_calibration_error(diagram)
    assert error == pytest.approx((0.3 + 0.4) / 2, abs=1e-12)


def test_confusion_matrix_has_labels_in_rows_and_predictions_in_columns():
    matrix = confusion_matrix(torch.tensor([1, 1, 0]), torch.tensor([0, 1, 0]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert per_class_accuracy(matrix) == [0.5, 1.0, None]


def test_agreement_compares_predictions_not_logits():
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert agreement(first, 10 * first) == 1.0
    assert agreement(first, first.flip(1)) == 0.0
