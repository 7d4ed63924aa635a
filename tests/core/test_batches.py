from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from gapssg.core.batches import shuffled_batches, steps_for_passes


@given(count=st.integers(1, 60), passes=st.integers(1, 4), batch_size=st.integers(1, 80), seed=st.integers(0, 9))
def test_each_sample_is_visited_once_a_pass_and_batches_have_one_size(count, passes, batch_size, seed):
    batches = shuffled_batches(count, passes, batch_size, torch.Generator().manual_seed(seed))
    assert batches.shape == (steps_for_passes(count, passes, batch_size), batch_size)
    flat = batches.flatten()
    for start in range(0, passes * count, count):
        assert sorted(flat[start : start + count].tolist()) == list(range(count))
    visits = torch.bincount(flat, minlength=count)
    assert visits.sum() - passes * count < batch_size
    assert visits.min() >= passes


def test_passes_are_shuffled_differently():
    batches = shuffled_batches(64, 2, 64, torch.Generator().manual_seed(0))
    assert batches[0].tolist() != batches[1].tolist()
    assert batches[0].tolist() != list(range(64))


def test_the_order_depends_on_the_generator_alone():
    first = shuffled_batches(50, 3, 16, torch.Generator().manual_seed(5))
    torch.rand(3)
    assert torch.equal(first, shuffled_batches(50, 3, 16, torch.Generator().manual_seed(5)))
