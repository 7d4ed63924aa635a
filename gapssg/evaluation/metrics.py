"""Metrics of a classifier on labelled images: plain functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gapssg.errors import NotFinite
from gapssg.intervals import Z_95
from gapssg.runs.failures import FEWEST_IMAGES_OF_A_CLASS
from gapssg.runs.results.common import Scores
from gapssg.runs.results.evaluation import ReliabilityBin


class Answers(NamedTuple):
    """A summary of the logits of N labelled images whose size does not grow with the number of classes."""

    labels: Tensor
    """(N,) int64."""
    predictions: Tensor
    """(N,) int64."""
    is_top1: Tensor
    """(N,) bool, whether the label has the highest logit."""
    is_top5: Tensor
    """(N,) bool, whether it is among the five highest."""
    losses: Tensor
    """(N,) float64, the cross-entropy in nats."""
    confidences: Tensor
    """(N,) float64, the highest class probability."""


def check_finite(logits: Tensor, name: str, first: int = 0, advice: str = "") -> None:
    """Raise `NotFinite` if logits (N, K) of the model `name`, for the images from number `first` on, are not finite.

    The message ends in advice, by default for a model that was not trained just now.
    """
    is_bad = ~logits.isfinite().all(dim=1)
    if is_bad.any():
        number = first + int(is_bad.nonzero()[0]) + 1
        advice = advice or "try --precision fp32, or another model"
        raise NotFinite(f"the logits of {name} for image {number:,} of the data are not finite; {advice}")


def answers_of(logits: Tensor, labels: Tensor) -> Answers:
    """Summarise finite logits (N, K) on labels (N,) int64, on the CPU."""
    kept = (
        labels,
        logits.argmax(dim=1),
        _is_among_highest(logits, labels, 1),
        _is_among_highest(logits, labels, 5),
        F.cross_entropy(logits.double(), labels, reduction="none"),
        logits.cpu().double().softmax(dim=1).amax(dim=1),  # on the CPU, sums have a fixed order
    )
    return Answers(*(each.cpu() for each in kept))


def concatenated(parts: Sequence[Answers]) -> Answers:
    """Concatenate the answers to several batches."""
    return Answers(*map(torch.cat, zip(*parts, strict=True)))


def score_answers(answers: Answers, class_names: Sequence[str]) -> Scores:
    """Return the accuracies and the cross-entropy of the answers to images of named classes."""
    counts = count_by_class(answers.predictions, answers.labels, len(class_names))
    lowest = lowest_share(counts)
    return Scores(
        top1=answers.is_top1.double().mean().item(),
        top5=answers.is_top5.double().mean().item(),
        loss=answers.losses.mean().item(),
        balanced_accuracy=balanced_accuracy(counts),
        better_than_chance=is_better_than_chance(counts),
        lowest_recall=None if lowest is None else lowest[1],
        lowest_class=None if lowest is None else class_names[lowest[0]],
        fewest_images=min(counts.totals),
    )


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int) -> float:
    """Return the share of samples whose label is among the `k` highest logits (all, if k >= K)."""
    return _is_among_highest(logits, labels, k).double().mean().item()


def _is_among_highest(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    highest = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (highest == labels[:, None]).any(dim=1)


def reliability(answers: Answers, bins: int = 15) -> list[ReliabilityBin | None]:
    """Return the bins of a reliability diagram; None for an empty bin.

    The confidence is the highest class probability; the first bin is (0, 1/bins]. Guo et al., "On Calibration of Modern
    Neural Networks", ICML 2017.
    """
    confidence, correct = answers.confidences, (answers.predictions == answers.labels).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    counts = torch.bincount(index, minlength=bins).tolist()
    sums = (torch.zeros(bins, dtype=torch.float64).index_add_(0, index, each) for each in (confidence, correct))
    rows = zip(counts, *(each.tolist() for each in sums), strict=True)
    return [
        ReliabilityBin(samples=count, confidence=sure / count, accuracy=right / count) if count else None
        for count, sure, right in rows
    ]


def expected_calibration_error(diagram: list[ReliabilityBin | None]) -> float:
    """Return the mean absolute difference of confidence and accuracy over bins, weighted by their size.

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


class ClassCounts(NamedTuple):
    """The number of samples and of correct predictions for each class."""

    hits: list[int]
    """Samples of the class that were predicted as it, one number per class."""
    totals: list[int]
    """Samples of the class, one number per class."""


def count_by_class(predictions: Tensor, classes: Tensor, num_classes: int) -> ClassCounts:
    """Count the samples of each class and the hits among predictions (N,) for classes (N,), both int64."""
    predictions, classes = predictions.cpu(), classes.cpu()
    hits = torch.bincount(classes[predictions == classes], minlength=num_classes)
    return ClassCounts(hits.tolist(), torch.bincount(classes, minlength=num_classes).tolist())


def per_class_accuracy(counts: ClassCounts) -> list[float | None]:
    """Return each class's accuracy; None for a class without samples."""
    return [hits / total if total else None for hits, total in zip(*counts, strict=True)]


def balanced_accuracy(counts: ClassCounts) -> float:
    """Return the mean accuracy of the classes that have samples, in [0, 1]."""
    shares = [share for share in per_class_accuracy(counts) if share is not None]
    return sum(shares) / len(shares)


def is_better_than_chance(counts: ClassCounts) -> bool:
    """Tell whether the balanced accuracy is better than that of always predicting one class.

    A constant prediction has 1/K over the K classes that have samples. The balanced accuracy must exceed it by more
    than 1.96 standard errors, computed with one hit and one miss added to each class, so that accuracies of 0 and 1
    also have an error. True if only one class has samples.
    """
    classes = [(hits, total) for hits, total in zip(*counts, strict=True) if total]
    if len(classes) < 2:
        return True
    smoothed = [((hits + 1) / (total + 2), total + 2) for hits, total in classes]
    error = math.sqrt(sum(share * (1 - share) / total for share, total in smoothed)) / len(classes)
    return balanced_accuracy(counts) - Z_95 * error > 1 / len(classes)


def lowest_share(counts: ClassCounts) -> tuple[int, float] | None:
    """Return the class with the lowest share of hits (the first of equal ones), and that share.

    Classes with fewer than `FEWEST_IMAGES_OF_A_CLASS` samples are ignored; None if no class has enough.
    """
    shares = [
        (hits / total, number)
        for number, (hits, total) in enumerate(zip(*counts, strict=True))
        if total >= FEWEST_IMAGES_OF_A_CLASS
    ]
    if not shares:
        return None
    share, number = min(shares)
    return number, share


def agreement(first_logits: Tensor, second_logits: Tensor) -> float:
    """Return the share of samples on which two classifiers predict the same class."""
    return (first_logits.argmax(dim=1) == second_logits.argmax(dim=1)).double().mean().item()


def largest_share(predictions: Tensor) -> float:
    """Return the share of the most frequent class among predictions (N,) int64."""
    return torch.bincount(predictions.cpu()).max().item() / len(predictions)
