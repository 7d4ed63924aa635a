"""Nearest neighbours of synthetic images among members and non-members."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gapssg.audit.attacks import share_estimate
from gapssg.intervals import wilson_interval
from gapssg.runs.results.common import Interval

_REFERENCES_AT_A_TIME = 4096
_QUERIES_AT_A_TIME = 4096


class Nearest(NamedTuple):
    """The nearest neighbour of each of N queries."""

    distances: Tensor
    """(N,) float64, Euclidean."""
    indices: Tensor
    """(N,) int64, into the references."""

    def of_both(self, other: Nearest, offset: int) -> Nearest:
        """Return the nearer neighbours; the references of `other` begin at the index `offset`."""
        is_other = other.distances < self.distances
        return Nearest(
            torch.where(is_other, other.distances, self.distances),
            torch.where(is_other, other.indices + offset, self.indices),
        )


class NeighbourComparison(NamedTuple):
    """The distances of N queries to as many members as non-members, and to all."""

    references: int
    """Number of members, and of non-members, that were compared."""
    nearest_is_member: Interval
    """Share of the queries whose nearest neighbour is a member, half of ties included."""
    effective_queries: float
    """Number of independent queries that the interval of this share corresponds to."""
    members: Nearest
    """Nearest neighbours among all members."""
    non_members: Nearest
    """Nearest neighbours among all non-members."""
    median_ratio: float
    """Median ratio of the distance to the nearest of as many members, to that of non-members."""
    median_ratio_interval: tuple[float, float]
    """Its 95 % interval."""


def nearest(queries: Tensor, references: Tensor) -> Nearest:
    """Return the nearest of the references (M, D) to each of the queries (N, D), uint8 or float32, on one device.

    The neighbour is found by float32 products of centred vectors; its distance is then computed in float64, so that
    that of a copy is 0.
    """
    found = [_nearest(part, references) for part in torch.split(queries, _QUERIES_AT_A_TIME)]
    indices = torch.cat(found)
    chunks = zip(*(torch.split(each, _QUERIES_AT_A_TIME) for each in (queries, indices)), strict=True)
    distances = [(part.double() - references[index].double()).norm(dim=1) for part, index in chunks]
    return Nearest(torch.cat(distances).cpu(), indices.cpu())


def _nearest(queries: Tensor, references: Tensor) -> Tensor:
    centre = queries.float().mean(dim=0)
    queries = queries.float() - centre
    lowest = queries.new_full((len(queries),), torch.inf)
    indices = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    for number, part in enumerate(torch.split(references, _REFERENCES_AT_A_TIME)):
        part = part.float() - centre
        # The squared distance without the part that all references share.
        values, places = torch.addmm(part.square().sum(dim=1), queries, part.T, alpha=-2).min(dim=1)
        is_lower = values < lowest
        lowest = torch.where(is_lower, values, lowest)
        indices = torch.where(is_lower, places + number * _REFERENCES_AT_A_TIME, indices)
    return indices


def compare(queries: Tensor, members: Tensor, non_members: Tensor) -> NeighbourComparison:
    """Compare the distances of queries (N, D) to members (M, D) with those to non-members (L, D), both in random order.

    All are uint8 or float32, on one device. Of the larger set, the first ones are compared, as many as the smaller set
    has. If membership has no influence on the queries, the nearest neighbour of each is a member with probability 1/2.
    Queries with a common neighbour are all right or all wrong together, so the Wilson interval counts not the queries
    but Kish's effective number of their neighbours, (sum of c)^2 / sum of c^2, with c the number of queries of each
    neighbour.
    """
    count = min(len(members), len(non_members))
    (near, all_members), (far, all_non_members) = (
        _first_and_all(queries, each, count) for each in (members, non_members)
    )
    is_member = (near.distances < far.distances).double() + 0.5 * (near.distances == far.distances).double()
    neighbour = near.of_both(far, count).indices
    hits = torch.bincount(neighbour).double()
    effective = (hits.sum().square() / hits.square().sum()).item()
    return NeighbourComparison(
        references=count,
        nearest_is_member=share_estimate(is_member.mean().item(), effective),
        effective_queries=effective,
        members=all_members,
        non_members=all_non_members,
        median_ratio=ratios(near, far).median().item(),
        median_ratio_interval=_interval_of_median(ratios(near, far), effective),
    )


def _interval_of_median(values: Tensor, count: float) -> tuple[float, float]:
    """Return the order statistics that are a 95 % interval of the median of `count` independent ones among the values.

    A quantile within the Wilson interval of 1/2 is not told from the median.
    """
    ordered, last = values.sort().values, len(values) - 1
    low, high = wilson_interval(0.5, count)
    return ordered[math.floor(low * last)].item(), ordered[math.ceil(high * last)].item()


def ratios(members: Nearest, non_members: Nearest) -> Tensor:
    """Return the ratios (N,) of the distances to the two neighbours of each query; 1 where both are 0."""
    near, far = members.distances, non_members.distances
    return torch.where(near == far, torch.ones_like(near), near / far.clamp_min(torch.finfo(torch.float32).tiny))


def _first_and_all(queries: Tensor, references: Tensor, count: int) -> tuple[Nearest, Nearest]:
    first = nearest(queries, references[:count])
    if count == len(references):
        return first, first
    return first, first.of_both(nearest(queries, references[count:]), count)


def closest_pairs(comparison: NeighbourComparison, most: int) -> list[int]:
    """Return the queries that are nearest to a member, relative to their nearest non-member, one for each member."""
    order = ratios(comparison.members, comparison.non_members).argsort(stable=True).tolist()
    by_member: dict[int, int] = {}
    for query in order:
        by_member.setdefault(int(comparison.members.indices[query]), query)
    return list(by_member.values())[:most]
