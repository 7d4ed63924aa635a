"""Signs that training images can be recognised, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gapssg.runs.results.audit import AuditedModel, NeighbourResult, Space
from gapssg.runs.results.common import Interval
from gapssg.text import percent


def find_signs(models: Sequence[AuditedModel], neighbours: Sequence[NeighbourResult]) -> list[str]:
    """Return a sentence for each measurement that is above chance.

    An area under the ROC curve and a share of neighbours are above chance if their 95 % interval is above 1/2; a
    true-positive rate, if its interval is above that of the false-positive rate.
    """
    return [*_of_models(models), *_of_neighbours(neighbours)]


def _of_models(models: Sequence[AuditedModel]) -> Iterator[str]:
    for model in models:
        for attack in model.attacks:
            if attack.auc.low > 0.5:
                yield (
                    f"the attack '{attack.attack}' tells members from non-members by the {model.role}'s answers: "
                    f"AUC {area(attack.auc)}, where 0.5 is chance"
                )
            for rates in attack.at_low_false_positives:
                found, wrong = rates.true_positives, rates.false_positives
                if found is not None and wrong is not None and found.low > wrong.high:
                    yield (
                        f"the attack '{attack.attack}' finds {with_interval(found)} of the members by the "
                        f"{model.role}'s answers, at {with_interval(wrong)} false positives"
                    )


def _of_neighbours(neighbours: Sequence[NeighbourResult]) -> Iterator[str]:
    for result in neighbours:
        share = result.nearest_is_member
        if result.has_chance_level and share.low > 0.5:
            yield (
                f"synthetic images are closer to members than to non-members in {the(result.space)}: the nearest "
                f"neighbour of {with_interval(share)} of them is a member, where 50 % is chance"
            )


def the(space: Space) -> str:
    """Return a space with its article."""
    return space if space == "pixels" else f"the {space}"


def with_interval(share: Interval | None) -> str:
    """Format a share and its interval in percent, None as a dash."""
    if share is None:
        return "-"
    return f"{percent(share.value)} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def area(auc: Interval) -> str:
    """Format an area under a ROC curve and its interval."""
    return f"{auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})"
