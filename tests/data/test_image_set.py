import pytest
import torch
from PIL import Image
from torch import Tensor

from gapssg.data import image_set
from gapssg.data.convert import convert_channels, resize_images
from gapssg.data.image_set import ImageSet, check_same_classes
from gapssg.errors import InputError


def random_images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def image_set_of(images: Tensor, *class_names: str) -> ImageSet:
    return ImageSet(images, torch.zeros(len(images), dtype=torch.int64), class_names or ("cat", "dog"))


def test_shape_classes_and_length() -> None:
    images = image_set_of(random_images(5, 3, 4, 6), "cat", "dog", "emu")
    assert (images.input_shape, images.num_classes, len(images)) == ((3, 4, 6), 3, 5)


def test_to_keeps_images_labels_and_names() -> None:
    images = image_set_of(random_images(5, 3, 4, 6))
    moved = images.to("cpu")
    assert torch.equal(moved.images, images.images)
    assert torch.equal(moved.labels, images.labels)
    assert moved.class_names == images.class_names


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2).long(), r"uint8 and not empty, not \(2, 1, 4, 4\) float32"),
        (random_images(2, 4, 4), torch.zeros(2).long(), r"\(N, C, H, W\) uint8"),
        (random_images(0, 1, 4, 4), torch.zeros(0).long(), "not empty"),
        (random_images(2, 1, 4, 4), torch.zeros(3).long(), r"\(2,\) int64, not \(3,\)"),
        (random_images(2, 1, 4, 4), torch.zeros(2).int(), r"\(2,\) int64, not \(2,\) int32"),
        (random_images(2, 1, 4, 4), torch.tensor([0, 2]), r"\[0, 2\)"),
        (random_images(2, 1, 4, 4), torch.tensor([0, -1]), r"\[0, 2\)"),
        (random_images(2, 1, 4, 4).to("meta"), torch.zeros(2).long(), "meta, but labels on cpu"),
    ],
)
def test_wrong_shapes_dtypes_devices_and_labels_are_refused(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSet(images, labels, ("cat", "dog"))


@pytest.mark.parametrize("values_per_chunk", [1, 500, 2**23])
def test_statistics_are_those_of_the_float64_formula(monkeypatch: pytest.MonkeyPatch, values_per_chunk: int) -> None:
    monkeypatch.setattr(image_set, "_VALUES_PER_CHUNK", values_per_chunk)
    images = random_images(37, 3, 5, 7)
    mean, deviation = image_set_of(images).channel_statistics()
    values = images.double() / 255
    assert mean == pytest.approx(values.mean(dim=(0, 2, 3)).tolist(), rel=1e-12)
    assert deviation == pytest.approx(values.std(dim=(0, 2, 3), correction=0).tolist(), rel=1e-12)


def test_a_constant_channel_has_a_small_std_instead_of_0() -> None:
    images = random_images(4, 3, 5, 7)
    images[:, 1] = 51
    mean, deviation = image_set_of(images).channel_statistics()
    assert mean[1] == 0.2
    assert deviation[1] == 1e-3
    assert min(deviation[0], deviation[2]) > 0.1


def test_splits_with_the_same_classes_pass() -> None:
    images = random_images(2, 1, 4, 4)
    check_same_classes(image_set_of(images, "cat", "dog"), image_set_of(images, "cat", "dog"))


@pytest.mark.parametrize(
    ("test_names", "message"),
    [
        (("cat", "dog"), "only the training images have 'emu'"),
        (("cat", "dog", "emu", "fox"), "only the test images have 'fox'"),
        (("cat", "dog", "fox"), "only the training images have 'emu' and only the test images have 'fox'"),
        (("cat", "emu", "dog"), "different order"),
        (("cat", "dog", "emu", *"123456789"), "have '1', '2', '3', '4', '5' and 4 more"),
    ],
)
def test_splits_with_different_classes_are_refused_by_name(test_names: tuple[str, ...], message: str) -> None:
    images = random_images(2, 1, 4, 4)
    with pytest.raises(InputError, match=message):
        check_same_classes(image_set_of(images, "cat", "dog", "emu"), image_set_of(images, *test_names))


@pytest.mark.parametrize("size", [3, 8, 19])
def test_resizing_is_rounded_bilinear_interpolation(size: int) -> None:
    images = random_images(6, 3, 8, 8)
    expected = torch.nn.functional.interpolate(
        images.double(), size=(size, size), mode="bilinear", align_corners=False, antialias=size < 8
    )
    assert (resize_images(images, (size, size)).double() - expected).abs().max() <= 0.5 + 1e-4


def test_grey_becomes_three_equal_channels_and_back() -> None:
    grey = random_images(4, 1, 8, 8)
    colour = convert_channels(grey, 3)
    assert torch.equal(colour, torch.cat([grey, grey, grey], dim=1))
    assert torch.equal(convert_channels(colour, 1), grey)


def test_rgb_becomes_the_grey_of_pillow() -> None:
    images = random_images(1, 3, 32, 32)
    expected = Image.fromarray(images[0].permute(1, 2, 0).numpy()).convert("L")
    assert convert_channels(images, 1).numpy().tobytes() == expected.tobytes()


def test_subsample_chooses_images_at_equal_distances() -> None:
    images = ImageSet(random_images(10, 1, 4, 4), torch.arange(10) // 5, ("cat", "dog"))
    few = images.subsample(4)
    assert torch.equal(few.images, images.images[[0, 2, 5, 7]])
    assert few.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(images.subsample(99).images, images.images)
