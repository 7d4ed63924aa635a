"""Procedural images: what they look like, and their place in a pool."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from gapssg.core.augment import Normalization
from gapssg.synthesis.base import RunSize, Work
from gapssg.synthesis.dead_leaves import dead_leaves
from gapssg.synthesis.noise import NoiseSettings
from gapssg.synthesis.pool import PROCEDURAL
from gapssg.synthesis.pool_synthesizer import PoolSynthesizer
from gapssg.training.comparison import images_to_compare
from tests.synthesis.context import make_context, make_student

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 16, 24), (3, 64, 48)])
def test_procedural_images_have_the_colours_of_the_teachers_input_and_are_smooth_in_part(shape: tuple[int, int, int]):
    mean, deviation = (0.3, 0.5, 0.6)[: shape[0]], (0.1, 0.2, 0.15)[: shape[0]]
    normalization = Normalization.from_statistics(mean, deviation, CPU)
    images = dead_leaves(200, shape, normalization, torch.Generator().manual_seed(0))
    assert images.shape == (200, *shape) and images.dtype == torch.uint8
    assert torch.equal(images, dead_leaves(200, shape, normalization, torch.Generator().manual_seed(0)))
    assert len({image.numpy().tobytes() for image in images}) == 200
    pixels = images.double() / 255
    # An image has few independent colours: about a tenth of a deviation is the error of the mean of 200 images.
    for channel, (expected, spread) in enumerate(zip(mean, deviation, strict=True)):
        assert pixels[:, channel].mean().item() == pytest.approx(expected, abs=0.2 * spread)
        # Colours have 1.28 deviations; blur and clipping to [0, 1] take some of it.
        assert 0.8 * spread < pixels[:, channel].std().item() < 1.6 * spread
    # Of noise, neighbours differ by 1.13 deviations on average; shapes have edges, which is why it is not 0.
    steps = (pixels[..., 1:] - pixels[..., :-1]).abs().mean(dim=(0, 2, 3)) / torch.tensor(deviation)
    assert ((steps > 0.05) & (steps < 0.7)).all()


@pytest.mark.parametrize(("mean", "deviation"), [((0.0,), (1.0,)), ((0.5,), (0.5,)), ((0.5,), (20.0,))])
def test_a_normalisation_that_is_not_of_images_gives_ordinary_colours(mean, deviation):
    normalization = Normalization.from_statistics(mean, deviation, CPU)
    images = dead_leaves(200, (1, 16, 16), normalization, torch.Generator().manual_seed(0))
    assert images.double().mean().item() / 255 == pytest.approx(0.5, abs=0.05)
    assert ((images == 0) | (images == 255)).double().mean().item() < 0.15


def test_shapes_have_one_colour_and_edges():
    """Most neighbours are nearly alike and few are far apart, unlike in noise of any smoothness."""
    normalization = Normalization.from_statistics((0.5,), (0.2,), CPU)
    images = dead_leaves(200, (1, 64, 64), normalization, torch.Generator().manual_seed(0)).double() / 255
    steps = (images[..., 1:] - images[..., :-1]).abs() / 0.2
    # Of a normal distribution, 0.7 % are over four times the median of the absolute values.
    assert (steps > 4 * steps.median()).double().mean() > 0.1


def test_no_images_are_none():
    normalization = Normalization.from_statistics((0.5,), (0.2,), CPU)
    assert dead_leaves(0, (1, 8, 8), normalization, torch.Generator()).shape == (0, 1, 8, 8)


def test_an_epoch_adds_procedural_images_before_the_synthesised_images_which_alone_are_fresh_and_compared(runtime):
    settings = NoiseSettings(synthesis_batch_size=8, procedural_share=1 / 3)
    assert (settings.procedural_images, settings.images_per_epoch) == (4, 12)
    synthesizer = settings.build(make_context(runtime))
    assert isinstance(synthesizer, PoolSynthesizer)
    for epoch in range(3):
        list(synthesizer.synthesis_steps(make_student(runtime), epoch, 0))
    assert len(synthesizer.pool) == synthesizer.pool.capacity == 36
    is_procedural = (synthesizer.pool.targets == PROCEDURAL).view(3, 12)
    assert is_procedural[:, :4].all() and not is_procedural[:, 4:].any()
    alone = NoiseSettings(synthesis_batch_size=8).build(make_context(runtime))
    assert isinstance(alone, PoolSynthesizer)
    for epoch in range(3):
        list(alone.synthesis_steps(make_student(runtime), epoch, 0))
    assert torch.equal(synthesizer.fresh, alone.fresh)
    assert torch.equal(synthesizer.fresh_targets, alone.fresh_targets)
    compared = torch.cat(list(images_to_compare(synthesizer, 5, 8, 3)))
    assert torch.equal(compared, alone.pool.images)
    first, second = synthesizer.pool.images[:4], synthesizer.pool.images[12:16]
    assert not torch.equal(first, second)


def test_a_share_that_is_no_image_is_refused_with_the_least_share_that_is():
    with pytest.raises(ValidationError, match=r"adds no image to 8; set it to 0\.11 or more, or to 0"):
        NoiseSettings(synthesis_batch_size=8, procedural_share=0.01)
    assert NoiseSettings(synthesis_batch_size=8, procedural_share=0.11).procedural_images == 1
    assert NoiseSettings(synthesis_batch_size=8).procedural_images == 0


def test_procedural_images_are_labelled_and_visited_but_take_no_synthesis():
    plain = NoiseSettings(synthesis_batch_size=8, labelled_views=2, passes=1)
    more = plain.model_copy(update={"procedural_share": 0.5})
    run = RunSize(2, 8)
    assert plain.work(run) == Work(0, 8 + 16, 2 * 16)
    assert more.work(run) == Work(0, 16 + 32, 2 * 32)
    given = run._replace(pool_size=10)
    assert more.work(given) == plain.work(given)
