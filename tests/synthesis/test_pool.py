from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gapssg.synthesis.noise import NoiseSettings
from gapssg.synthesis.pool import SamplePool
from gapssg.synthesis.shards import PoolOrigin, read_images, write_shard
from tests.synthesis.context import make_context, make_student


def test_samples_are_appended_and_never_moved():
    pool = SamplePool(capacity=5, image_shape=(1, 2, 2), device=torch.device("cpu"))
    first = torch.full((2, 1, 2, 2), 7, dtype=torch.uint8)
    pool.append(first, torch.tensor([1, 2]))
    address = pool.images.data_ptr()
    pool.append(first + 1, torch.tensor([3, 4]))
    assert len(pool) == 4
    assert pool.images.data_ptr() == address
    assert torch.equal(pool.images[:2], first)
    assert pool.targets.tolist() == [1, 2, 3, 4]


def test_a_pool_does_not_grow_beyond_its_capacity():
    pool = SamplePool(capacity=3, image_shape=(1, 2, 2), device=torch.device("cpu"))
    with pytest.raises(ValueError, match="has room for 3 samples, not 4"):
        pool.append(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4).long())
    assert len(pool) == 0


def test_each_epoch_visits_every_pool_sample_passes_times(runtime):
    synthesizer = NoiseSettings(synthesis_batch_size=16, passes=3).build(make_context(runtime))
    student = make_student(runtime)
    for epoch in range(3):
        list(synthesizer.synthesis_steps(student, epoch, 0))
        synthesizer.start_sampling(epoch, 0, 0)
        plan = synthesizer.plan(epoch)
        assert plan.distillation_steps == 3 * 16 * (epoch + 1) // 8
        drawn = torch.cat([synthesizer.sample(8) for _ in range(plan.distillation_steps)])
        # Noise images differ, so each sample can be found again in the pool.
        pool = synthesizer.pool.images.float().flatten(1) / 255
        nearest = torch.cdist(drawn.flatten(1), pool).argmin(dim=1)
        assert torch.bincount(nearest, minlength=len(pool)).tolist() == [3] * len(pool)
        with pytest.raises(StopIteration):
            synthesizer.sample(8)


def test_a_batch_size_that_differs_from_the_run_is_refused(runtime):
    synthesizer = NoiseSettings(synthesis_batch_size=16).build(make_context(runtime))
    list(synthesizer.synthesis_steps(make_student(runtime), 0, 0))
    synthesizer.start_sampling(0, 0, 0)
    with pytest.raises(ValueError, match="batches of 8, not 5"):
        synthesizer.sample(5)


def test_noise_has_the_teachers_mean_and_standard_deviation(runtime):
    synthesizer = NoiseSettings(synthesis_batch_size=64).build(make_context(runtime))
    list(synthesizer.synthesis_steps(make_student(runtime), 0, 0))
    noise = torch.randn(64 * 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = (noise * 0.4 + 0.3).clamp(0, 1)  # clipping to the range of an image changes both
    # Two samples of 16,384 numbers: their means differ by less than 5 standard errors.
    tolerance = 5 * 0.4 * (2 / len(noise)) ** 0.5
    assert abs(synthesizer.fresh.mean().item() - expected.mean().item()) < tolerance
    assert abs(synthesizer.fresh.std().item() - expected.std().item()) < tolerance


def test_fresh_images_are_the_newest_of_the_pool(runtime):
    synthesizer = NoiseSettings(synthesis_batch_size=16).build(make_context(runtime))
    student = make_student(runtime)
    for epoch in range(2):
        list(synthesizer.synthesis_steps(student, epoch, 0))
    assert torch.equal(synthesizer.fresh * 255, synthesizer.pool.images[16:].float())
    assert torch.equal(synthesizer.fresh_targets, synthesizer.pool.targets[16:])


def test_some_images_of_shards_are_spread_evenly(tmp_path: Path):
    shards = [tmp_path / f"{index}.safetensors" for index in range(10)]
    for index, shard in enumerate(shards):
        images = torch.full((4, 1, 8, 8), index, dtype=torch.uint8)
        write_shard(shard, images, torch.zeros(4).long(), PoolOrigin("noise", "0" * 64))
    assert read_images(shards, (1, 8, 8), 2).unique().tolist() == list(range(10))
    assert read_images(shards, (1, 8, 8), 2, most=15).unique().tolist() == [0, 2, 5, 7]
