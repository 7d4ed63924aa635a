"""Membership-inference attacks and their figures of merit: plain functions of tensors.

An attack gives each image a score, which is higher the more the model behaves as on its training images. Every
threshold on the score has a true-positive rate, the share of members above it, and a false-positive rate, that of
non-members.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gapssg.intervals import Z_95, wilson_interval
from gapssg.runs.results.audit import LowFalsePositives
from gapssg.runs.results.common import Interval

ONE_IN = (100, 1000)
"""The true-positive rate is given for one false positive in so many non-members."""
_MOST_POINTS = 100


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log(p / (1 - p)), (N,) float64, of the probability p of each label, for logits (N, K) and K at least 2.

    It falls as the cross-entropy rises, so that a threshold on it is one on the loss (Yeom et al., "Privacy Risk in
    Machine Learning", CSF 2018); unlike the loss, it does not round to the same value for all images of which the model
    is sure. It is the scaled logit of Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022.
    """
    logits, places = logits.double(), labels[:, None]
    others = logits.scatter(1, places, -torch.inf).logsumexp(dim=1)
    return logits.gather(1, places).squeeze(1) - others


def likelihood_ratios(margins: Tensor, shadow_margins: Tensor, is_inside: Tensor) -> Tensor:
    """Return scores of the offline likelihood-ratio attack (LiRA).

    The score of Carlini et al. is the probability that a normal variable, with the mean and the variance of the margins
    of shadow models that were not trained on the image, is below the margin of the audited model. With the variance
    common to all images, which they advise for few shadow models, it is a rising function of the difference to the
    mean, which is returned.

    Args:
        margins: (N,) float64, of the audited model.
        shadow_margins: (S, N) float64, of the shadow models.
        is_inside: (S, N) bool, whether a shadow model was trained on the image; for each image, one was not.

    Returns:
        (N,) float64.
    """
    is_outside = ~is_inside
    return margins - (shadow_margins * is_outside).sum(dim=0) / is_outside.sum(dim=0)


def area_under_roc(members: Tensor, non_members: Tensor) -> Interval:
    """Return the area under the ROC curve of scores: the probability that a member's is above a non-member's.

    The 95 % interval has the variance of DeLong et al., Biometrics 1988. The placements of each kind get one 0 and one
    1 in addition, so that an area of 1 also has an error. Scores are (M,) and (N,) float64.
    """
    of_members, of_non_members = _placements(members, non_members), _placements(non_members, members)
    area = of_members.mean().item()
    half = Z_95 * (_variance_of_mean(of_members) + _variance_of_mean(of_non_members)).sqrt().item()
    return Interval(value=area, low=max(0.0, area - half), high=min(1.0, area + half))


def _placements(scores: Tensor, others: Tensor) -> Tensor:
    """Return for each score the share of the others that are below it, and half of those that are equal."""
    ordered = others.sort().values
    below, up_to = (torch.searchsorted(ordered, scores, right=right) for right in (False, True))
    return (below + up_to).double() / (2 * len(others))


def _variance_of_mean(placements: Tensor) -> Tensor:
    smoothed = torch.cat([placements, placements.new_tensor([0.0, 1.0])])
    return smoothed.var() / len(smoothed)


def rate_at(members: Tensor, non_members: Tensor, one_in: int) -> LowFalsePositives:
    """Return the true-positive rate at the lowest threshold with at most one false positive in `one_in` non-members.

    Scores are (M,) and (N,) float64, and `one_in` at least 2. Both rates have 95 % Wilson intervals; that of the
    false-positive rate says how far the threshold may be from the wanted one, which few non-members determine badly.
    With fewer than `one_in` non-members there are no rates.
    """
    allowed = len(non_members) // one_in
    if allowed == 0:
        return LowFalsePositives(one_in=one_in, true_positives=None, false_positives=None)
    threshold = non_members.topk(allowed + 1).values[-1]
    found, wrong = (
        share_estimate((scores > threshold).double().mean().item(), len(scores)) for scores in (members, non_members)
    )
    return LowFalsePositives(one_in=one_in, true_positives=found, false_positives=wrong)


def share_estimate(share: float, count: float) -> Interval:
    """Return a share of `count` samples with its 95 % Wilson interval."""
    low, high = wilson_interval(share, count)
    return Interval(value=share, low=low, high=high)


def roc_curve(members: Tensor, non_members: Tensor) -> dict[float, float]:
    """Return true-positive by false-positive rates, at most 101 of them, evenly spaced from 0 to 1."""
    count = len(non_members)
    numbers = torch.linspace(0, count, min(count, _MOST_POINTS) + 1).round().long()
    thresholds = torch.cat([non_members.sort(descending=True).values, non_members.new_tensor([-torch.inf])])[numbers]
    found = 1 - torch.searchsorted(members.sort().values, thresholds, right=True).double() / len(members)
    return dict(zip((numbers.double() / count).tolist(), found.tolist(), strict=True))
