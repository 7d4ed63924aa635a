"""What is said of a classifier's logits on labelled images: plain functions of tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gapssg.errors import RunError


class Scores(NamedTuple):
    """The accuracies and the loss of a classifier; accuracies are fractions in [0, 1]."""

    top1: float
    top5: float
    loss: float

    def to_dict(self) -> dict[str, Any]:
        """Return the scores by name."""
        return self._asdict()


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Return top-1 and top-5 accuracy and the cross-entropy of logits (N, K) on labels (N,).

    Raises:
        RunError: The logits are not finite.
    """
    if not torch.isfinite(logits).all():
        raise RunError("the model's output is not finite; if it was being trained, lower the learning rate")
    return Scores(top_k_accuracy(logits, labels, 1), top_k_accuracy(logits, labels, 5), cross_entropy(logits, labels))


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int) -> float:
    """Return the share of samples whose label is among the `k` highest logits (all, if k >= K)."""
    highest = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (highest == labels[:, None]).any(dim=1).double().mean().item()


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """Return the mean cross-entropy in nats, computed in float64."""
    return F.cross_entropy(logits.double(), labels).item()


class ReliabilityBin(NamedTuple):
    """The samples whose confidence lies in one of equal-width bins.

    Attributes:
        samples: How many there are.
        confidence: Their mean confidence.
        accuracy: The share that is right.
    """

    samples: int
    confidence: float
    accuracy: float


def reliability(logits: Tensor, labels: Tensor, bins: int = 15) -> list[ReliabilityBin | None]:
    """Return what a reliability diagram shows of logits (N, K) on labels (N,): one entry a bin, None where none falls.

    The confidence is the highest class probability; the first bin is (0, 1/bins]. Guo et al., "On Calibration of Modern
    Neural Networks", ICML 2017.
    """
    confidence, predictions = logits.cpu().double().softmax(dim=1).max(dim=1)  # sums in a fixed order
    correct = (predictions == labels.cpu()).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    counts = torch.bincount(index, minlength=bins).tolist()
    sums = (torch.zeros(bins, dtype=torch.float64).index_add_(0, index, each) for each in (confidence, correct))
    rows = zip(counts, *(each.tolist() for each in sums), strict=True)
    return [ReliabilityBin(count, sure / count, right / count) if count else None for count, sure, right in rows]


def expected_calibration_error(diagram: list[ReliabilityBin | None]) -> float:
    """Return the mean difference of confidence and accuracy over the bins of `reliability`, weighted by their size.

    Guo et al., equation 3.
    """
    filled = [each for each in diagram if each is not None]
    return sum(each.samples * abs(each.accuracy - each.confidence) for each in filled) / sum(
        each.samples for each in filled
    )


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return (K, K) int64 counts: row is the label, column the prediction."""
    counts = torch.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


def per_class_accuracy(confusion: Tensor) -> list[float | None]:
    """Return each class's accuracy; None for a class without samples."""
    totals = confusion.sum(dim=1).tolist()
    hits = confusion.diagonal().tolist()
    return [hit / total if total else None for hit, total in zip(hits, totals, strict=True)]


def agreement(first_logits: Tensor, second_logits: Tensor) -> float:
    """Return the share of samples on which two classifiers predict the same class."""
    return (first_logits.argmax(dim=1) == second_logits.argmax(dim=1)).double().mean().item()
