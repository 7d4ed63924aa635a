import torch
from sklearn.datasets import load_digits

from gapssg.data import load_split


def test_splits_have_1347_and_450_images_of_16x16_in_grey() -> None:
    train, test = load_split("digits", "train"), load_split("digits", "test")
    assert (len(train), len(test)) == (1347, 450)
    assert train.input_shape == test.input_shape == (1, 16, 16)
    assert train.class_names == test.class_names == tuple("0123456789")


def test_every_class_is_split_in_proportion() -> None:
    train = load_split("digits", "train").labels.bincount(minlength=10)
    test = load_split("digits", "test").labels.bincount(minlength=10)
    assert ((test - (train + test) * 450 / 1797).abs() < 1).all()


def test_the_split_is_the_same_at_every_call() -> None:
    first, second = load_split("digits", "test"), load_split("digits", "test")
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)


def test_both_splits_together_are_the_digits_of_scikit_learn_scaled_to_255() -> None:
    digits = load_digits()
    expected = sorted(
        (label, (image * 255 / 16).round().astype("uint8").tobytes())
        for label, image in zip(digits.target.tolist(), digits.images, strict=True)
    )
    splits = [load_split("digits", "train", image_size=8), load_split("digits", "test", image_size=8)]
    found = sorted(
        (label, image.numpy().tobytes())
        for split in splits
        for label, image in zip(split.labels.tolist(), split.images, strict=True)
    )
    assert found == expected


def test_images_are_interpolated_bilinearly_to_16x16() -> None:
    small = load_split("digits", "test", image_size=8).images
    expected = torch.nn.functional.interpolate(
        small.float(), size=(16, 16), mode="bilinear", align_corners=False
    ).round()
    assert torch.equal(load_split("digits", "test").images, expected.to(torch.uint8))


def test_size_and_channels_can_be_chosen() -> None:
    images = load_split("digits", "test", image_size=20, channels=3).images
    assert images.shape == (450, 3, 20, 20)
    assert torch.equal(images[:, 0], images[:, 2])
