"""The result of `audit`."""

from __future__ import annotations

from typing import Literal

from gapssg.runs.results.common import Interval, ModelFile, RunFacts
from gapssg.stored import Count, PositiveCount, Seconds, Share, Stored, Text


class LowFalsePositives(Stored):
    """The rates of a membership-inference attack at a low false-positive rate; None with too few non-members."""

    one_in: PositiveCount
    """One false positive in so many non-members is allowed; as many non-members are needed."""
    true_positives: Interval | None
    """Share of the members above the threshold."""
    false_positives: Interval | None
    """Share of the non-members above the threshold."""


Attack = Literal["loss threshold", "LiRA, offline"]
Role = Literal["teacher", "student", "model"]
Space = Literal["pixels", "teacher's features", "shadow model's features"]


class AttackResult(Stored):
    """A membership-inference attack on a model."""

    attack: Attack
    auc: Interval
    """Area under the ROC curve; 0.5 is chance."""
    at_low_false_positives: tuple[LowFalsePositives, ...]


class AuditedModel(ModelFile):
    """A model and the attacks on it."""

    role: Role
    members_top1: Share
    non_members_top1: Share
    attacks: tuple[AttackResult, ...]


class AuditedImages(Stored):
    """Images whose membership is known."""

    data: Text
    split: Text
    images: PositiveCount
    """Number of images, without those that are left out."""
    left_out: Count
    """Images of the non-members that are also members, by their SHA-256."""
    sha256: Text
    """SHA-256 of the images and labels that were used."""


class ClosestPair(Stored):
    """A synthetic image, its nearest member and its nearest non-member."""

    pool_image: Count
    """Its number in the pool, from 0."""
    member: Count
    """Its number among the images that were read, from 0."""
    non_member: Count
    """Its number among the images that were read, from 0."""
    to_member: float
    to_non_member: float


class NeighbourResult(Stored):
    """Distances of synthetic images to members and non-members."""

    space: Space
    """Root mean square difference of pixels in [0, 1], or Euclidean distance of features."""
    images: PositiveCount
    """Number of synthetic images."""
    references: PositiveCount
    """Number of members, and of non-members, among which the neighbours are counted."""
    nearest_is_member: Interval
    """Share of the synthetic images whose nearest neighbour is a member."""
    effective_images: float
    """Number of independent images to which the interval corresponds; images with a common neighbour are not."""
    median_ratio: float
    """Median of the distance to the nearest member divided by that to the nearest non-member."""
    median_ratio_interval: tuple[float, float]
    """Its 95 % interval, of as many independent images as that of the share."""
    closest: tuple[ClosestPair, ...]
    """Of all members: the pairs that are closest relative to the nearest non-member."""

    @property
    def has_chance_level(self) -> bool:
        """Whether the share is 0.5 for images that are independent of the members.

        The teacher's features are not: it has moved its own training images towards their classes.
        """
        return self.space != "teacher's features"


class ShadowFacts(Stored):
    """The shadow models."""

    models: PositiveCount
    epochs: PositiveCount
    images: PositiveCount
    """Number of training images of each."""
    inside_top1: Share
    """Mean accuracy on their training images."""
    outside_top1: Share
    """Mean accuracy on the other images."""


class AuditTiming(Stored):
    """Duration of an audit."""

    total: Seconds
    shadow_models: Seconds


class AuditResult(RunFacts):
    """The result of `audit`."""

    command: Literal["audit"] = "audit"
    audited: Text
    """The run or the model file."""
    output: Text | None
    """The page."""
    sheet: Text | None
    """The picture of the closest pairs."""
    members: AuditedImages
    non_members: AuditedImages
    models: tuple[AuditedModel, ...]
    shadow: ShadowFacts | None
    """None without shadow models."""
    neighbours: tuple[NeighbourResult, ...]
    """Empty without a pool."""
    findings: tuple[Text, ...]
    """Signs that training images can be recognised; none is no proof of the contrary."""
    notes: tuple[Text, ...]
    """What was not measured, and why."""
    timing: AuditTiming
