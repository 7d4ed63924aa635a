"""Procedural probe images."""

from __future__ import annotations

import pytest
import torch

from gapssg.quality.probes import coloured_noise, dead_leaves, mixtures, strokes


@pytest.mark.parametrize("make", [coloured_noise, dead_leaves, strokes, mixtures])
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 20), (4, 17, 33)])
def test_probes_are_images_of_any_size_that_depend_only_on_the_stream(make, shape):
    images = make(5, shape, torch.Generator().manual_seed(3))
    assert images.shape == (5, *shape)
    assert images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert images.flatten(1).std(dim=1).min() > 1e-3
    assert torch.equal(images, make(5, shape, torch.Generator().manual_seed(3)))
    assert not torch.equal(images, make(5, shape, torch.Generator().manual_seed(4)))


def test_coloured_noise_has_spectra_from_flat_to_steep():
    images = coloured_noise(64, (1, 64, 64), torch.Generator().manual_seed(0))
    steps = (images[..., 1:] - images[..., :-1]).std(dim=(1, 2, 3)) / images.std(dim=(1, 2, 3))
    # Neighbours of white noise differ by sqrt(2) standard deviations; those of noise of amplitude 1 / f^2 hardly do.
    assert steps.max() > 1.3
    assert steps.min() < 0.2
    assert ((steps > 0.3) & (steps < 1.2)).any()
