from __future__ import annotations

import pytest
import torch
import torchvision.transforms.v2.functional as TF

from gapssg.core.augment import (
    Augmentation,
    Mixture,
    Normalization,
    Shifts,
    choose_crop_padding,
    crop_and_flip,
    draw_mixture,
    mix,
)
from gapssg.errors import InputError


def reference(images, shifts, padding, padding_mode="constant"):
    """torchvision's pad, crop and flip, one image at a time."""
    height, width = images.shape[2:]
    result = []
    for image, row, column, flip in zip(images, *shifts, strict=True):
        padded = TF.pad(image, [padding] * 4, padding_mode=padding_mode)
        cropped = TF.crop(padded, padding + int(row), padding + int(column), height, width)
        result.append(TF.horizontal_flip(cropped) if flip else cropped)
    return torch.stack(result)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(16, 16), (8, 12)])
def test_crops_and_flips_equal_torchvisions(dtype, size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 3, *size), generator=generator).to(dtype)
    shifts = Augmentation(padding=3, flip=True).draw(32, generator)
    assert torch.equal(crop_and_flip(images, shifts), reference(images, shifts, 3))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(16, 16), (8, 12)])
def test_reflecting_crops_and_flips_equal_torchvisions(dtype, size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 3, *size), generator=generator).to(dtype)
    augmentation = Augmentation(padding=3, flip=True, padding_mode="reflect")
    shifts = augmentation.draw(32, generator)
    assert torch.equal(augmentation(images, shifts), reference(images, shifts, 3, "reflect"))


def test_gradients_of_reflecting_crops_are_those_of_indexing():
    augmentation = Augmentation(padding=2, flip=True, padding_mode="reflect")
    shifts = augmentation.draw(2, torch.Generator().manual_seed(0))
    images = torch.rand(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda inputs: augmentation(inputs, shifts), images)


def test_reflecting_without_padding_only_flips():
    images = torch.rand(4, 1, 5, 6)
    augmentation = Augmentation(padding=0, flip=True, padding_mode="reflect")
    shifts = augmentation.draw(4, torch.Generator().manual_seed(0))
    assert torch.equal(augmentation(images, shifts), crop_and_flip(images, shifts))


def test_channels_last_images_give_the_same_crops():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 16, 16, generator=generator)
    shifts = Augmentation(padding=2, flip=True).draw(8, generator)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(crop_and_flip(last, shifts), crop_and_flip(images, shifts))


def test_each_sample_has_its_own_crop_and_flip():
    images = torch.arange(1.0, 257.0).view(1, 1, 16, 16).expand(512, -1, -1, -1)
    shifts = Augmentation(padding=2, flip=True).draw(512, torch.Generator().manual_seed(0))
    different = torch.unique(crop_and_flip(images, shifts).flatten(1), dim=0)
    # 5 x 5 offsets, flipped or not, are 50 views; each is missed by 512 draws with probability 3e-5.
    assert len(different) == 50


def test_half_of_the_images_are_flipped_if_asked_for_and_none_otherwise():
    shifts = Augmentation(padding=2, flip=False).draw(256, torch.Generator().manual_seed(0))
    assert not shifts.flips.any()
    flips = Augmentation(padding=2, flip=True).draw(1024, torch.Generator().manual_seed(0)).flips
    # Five standard deviations of a fair coin.
    assert abs(flips.float().mean().item() - 0.5) < 5 * 0.5 / 1024**0.5


@pytest.mark.parametrize(
    ("augmentation", "words"),
    [
        (Augmentation(4, True), "crops with 4 pixels of zero padding, random horizontal flips"),
        (Augmentation(1, False), "crops with 1 pixel of zero padding, no flips"),
        (Augmentation(5, False, "reflect"), "crops with 5 pixels of mirrored padding, no flips"),
        (Augmentation(0, False), "no crops, no flips"),
    ],
)
def test_an_augmentation_describes_itself(augmentation, words):
    assert augmentation.describe() == words


def test_crop_padding_is_the_given_one_the_default_or_an_eighth_of_the_shorter_side():
    shape = (3, 64, 32)
    assert choose_crop_padding(15, shape, otherwise=3) == 15
    assert choose_crop_padding(0, shape, otherwise=3) == 0
    assert choose_crop_padding(None, shape, otherwise=3) == 3
    assert choose_crop_padding(None, shape, otherwise=0) == 0
    assert choose_crop_padding(None, shape) == 4
    assert choose_crop_padding(None, (1, 64, 4)) == 0


@pytest.mark.parametrize(("given", "otherwise"), [(16, None), (None, 16)])
def test_crop_padding_must_leave_a_part_of_the_image_in_every_crop(given, otherwise):
    with pytest.raises(InputError) as caught:
        choose_crop_padding(given, (3, 32, 16), otherwise)
    assert str(caught.value) == (
        "--crop-padding 16 is too large: a crop could miss all of an image of 32x16 pixels; give at most 15"
    )


def test_gradient_is_the_adjoint_of_the_crop():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 2, 8, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    shifts = Augmentation(padding=3, flip=True).draw(6, generator)
    assert torch.autograd.gradcheck(lambda x: crop_and_flip(x, shifts), (images,))


def test_a_crop_beyond_the_image_is_zero():
    images = torch.ones(1, 1, 4, 4)
    shifts = Shifts(torch.tensor([4]), torch.tensor([0]), torch.tensor([False]))
    assert crop_and_flip(images, shifts).sum() == 0


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 1.0])
def test_a_share_of_the_samples_is_blended_with_a_partner_in_uniform_shares(probability):
    partners, shares = draw_mixture(10_000, probability, torch.Generator().manual_seed(0))
    assert torch.equal(partners.sort().values, torch.arange(10_000))  # each is the partner of one
    assert (partners != torch.arange(10_000)).float().mean() > 0.99
    assert shares.shape == (10_000, 1, 1, 1)
    assert shares.dtype == torch.float32
    assert 0 <= shares.min() <= shares.max() < 1
    blended = shares[shares > 0]
    # Five standard deviations of a coin, and of a mean of uniform numbers.
    assert abs(len(blended) / 10_000 - probability) <= 5 * (probability * (1 - probability) / 10_000) ** 0.5 + 1e-4
    if probability > 0:
        assert abs(blended.mean().item() - 0.5) < 5 / (12 * len(blended)) ** 0.5
        assert abs(blended.var().item() - 1 / 12) < 5 * (1 / 180 / len(blended)) ** 0.5


def test_equal_seeds_draw_equal_mixtures():
    first, again, other = (draw_mixture(32, 0.5, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, again, strict=True))
    assert not torch.equal(first.partners, other.partners)


def test_a_blend_is_the_plain_formula():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(16, 3, 5, 7, generator=generator, dtype=torch.float64)
    partners, shares = draw_mixture(16, 0.7, generator)
    found = mix(images, Mixture(partners, shares.double()))
    for index, (partner, share) in enumerate(zip(partners.tolist(), shares.flatten().tolist(), strict=True)):
        expected = (1 - share) * images[index] + share * images[partner]
        torch.testing.assert_close(found[index], expected, rtol=0, atol=1e-15)
    unblended = shares.flatten() == 0
    assert unblended.any()
    assert torch.equal(found[unblended], images[unblended])


def test_normalization_subtracts_the_mean_and_divides_by_the_deviation():
    normalization = Normalization.from_statistics((0.5, 0.25), (0.5, 2.0), torch.device("cpu"))
    images = torch.stack([torch.full((4, 4), 0.75), torch.full((4, 4), 0.25)])[None]
    expected = torch.stack([torch.full((4, 4), 0.5), torch.zeros(4, 4)])[None]
    assert torch.equal(normalization(images), expected)
