from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gapssg.audit import neighbours
from gapssg.audit.neighbours import Nearest, closest_pairs, compare, nearest, ratios


def points(count: int, seed: int, size: int = 8) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [torch.float32, torch.uint8])
def test_neighbours_are_those_of_the_distances_in_float64(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbours, "_REFERENCES_AT_A_TIME", 7)
    monkeypatch.setattr(neighbours, "_QUERIES_AT_A_TIME", 5)
    queries, references = ((50 * points(count, count) + 128).clamp(0, 255).to(kind) for count in (23, 40))
    distances = (queries.double()[:, None] - references.double()).norm(dim=2)
    found = nearest(queries, references)
    torch.testing.assert_close(found.distances, distances.amin(dim=1), rtol=1e-14, atol=0)
    assert torch.equal(found.indices, distances.argmin(dim=1))


def test_the_distance_of_a_copy_is_zero():
    references = 1000 + points(50, 1)
    found = nearest(references[10:13].clone(), references)
    assert found.distances.tolist() == [0.0, 0.0, 0.0]
    assert found.indices.tolist() == [10, 11, 12]


def test_copies_of_members_are_found_and_independent_images_are_not():
    members, non_members = points(300, 1), points(200, 2)
    copies = compare(members[:100] + 0.05 * points(100, 3), members, non_members)
    assert copies.references == 200
    assert copies.nearest_is_member.low > 0.9
    assert copies.median_ratio < 0.2
    assert copies.median_ratio_interval[1] < 0.5
    others = compare(points(100, 4), members, non_members)
    assert others.nearest_is_member.low < 0.5 < others.nearest_is_member.high


def test_only_the_neighbours_among_all_members_are_shown():
    members, non_members = points(300, 1), points(200, 2)
    copy = members[250:251].clone()
    comparison = compare(copy, members, non_members)
    assert comparison.members.indices.tolist() == [250]
    assert comparison.members.distances.tolist() == [0.0]
    assert comparison.nearest_is_member.value in (0.0, 1.0)  # among the first 200
    assert comparison.median_ratio > 0


def test_many_images_with_one_neighbour_are_one_image():
    references = points(20, 1) + 100
    hub = torch.zeros(1, 8)
    comparison = compare(points(500, 2), torch.cat([hub, references]), points(21, 3) + 100)
    assert comparison.nearest_is_member.value == 1.0
    assert comparison.effective_queries == 1.0
    assert comparison.nearest_is_member.low < 0.5


def test_effective_images_are_kishs():
    members = torch.tensor([[0.0], [100.0]])
    non_members = torch.tensor([[50.0], [150.0]])
    comparison = compare(torch.tensor([[1.0], [2.0], [3.0], [49.0], [101.0]]), members, non_members)
    assert comparison.nearest_is_member.value == pytest.approx(0.8)
    assert comparison.effective_queries == pytest.approx(5**2 / (3**2 + 1 + 1))


def test_the_intervals_cover_one_half_and_one_if_membership_is_drawn_at_random():
    # Low-dimensional queries of another spread than the references, so that many share a neighbour.
    queries, references, repetitions = 0.3 * points(400, 1, 2), points(400, 2, 2), 200
    covered = covered_ratio = 0
    for seed in range(repetitions):
        order = torch.randperm(400, generator=torch.Generator().manual_seed(seed))
        comparison = compare(queries, references[order[:200]], references[order[200:]])
        share, (low, high) = comparison.nearest_is_member, comparison.median_ratio_interval
        assert low <= comparison.median_ratio <= high
        covered += share.low <= 0.5 <= share.high
        covered_ratio += low <= 1 <= high  # members and non-members are exchangeable
    assert abs(covered / repetitions - 0.95) < 4 * math.sqrt(0.95 * 0.05 / repetitions)
    assert abs(covered_ratio / repetitions - 0.95) < 4 * math.sqrt(0.95 * 0.05 / repetitions)


def test_a_ratio_is_one_where_both_distances_are_zero():
    index = torch.zeros(3, dtype=torch.int64)
    near = Nearest(torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64), index)
    far = Nearest(torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64), index)
    assert ratios(near, far).tolist() == [1.0, 0.0, 0.5]


def test_each_member_is_in_one_of_the_closest_pairs():
    members, non_members = torch.tensor([[0.0], [10.0]]), torch.tensor([[5.0], [100.0]])
    comparison = compare(torch.tensor([[1.0], [0.1], [9.0], [0.2]]), members, non_members)
    assert closest_pairs(comparison, 8) == [1, 2]
    assert closest_pairs(comparison, 1) == [1]
