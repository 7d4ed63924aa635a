"""Images with any number of channels: arrays and TIFFs with a page for each channel."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from gapssg.data import load_split
from gapssg.data.channels import MOST_PIXELS
from gapssg.data.image_set import ImageSet
from gapssg.errors import InputError


def pixels(*shape: int, seed: int = 0, kind: Any = numpy.uint8) -> NDArray[Any]:
    return numpy.random.default_rng(seed).integers(0, numpy.iinfo(kind).max, shape, dtype=kind, endpoint=True)


def load(root: Path, **options: Any) -> ImageSet:
    return load_split(f"folder:{root}", "train", **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with an array of 9x13 pixels and 5 channels in the second of two classes."""
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
    numpy.save(tmp_path / "train/dog/a.npy", pixels(9, 13, 5))
    return tmp_path


def save_pages(file: Path, *pages: NDArray[Any]) -> None:
    first, *others = map(Image.fromarray, pages)
    first.save(file, save_all=True, append_images=others)


def refused(root: Path, array: NDArray[Any] | bytes | None = None, name: str = "a.npy", **options: Any) -> str:
    """Save an array, or bytes, as a cat, and return why it is refused, after its name."""
    file = root / "train/cat" / name
    if isinstance(array, bytes):
        file.write_bytes(array)
    elif array is not None:
        numpy.save(file, array)
    with pytest.raises(InputError) as error:
        load(root, **options)
    assert str(error.value).startswith(f"{file} ")
    return str(error.value).removeprefix(f"{file} ")


def header(shape: str, kind: str = "'|u1'", version: bytes = b"\x01\x00") -> bytes:
    """The beginning of an array file whose header has these texts."""
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_last_dimension_of_an_array_has_the_channels(root: Path, order: Any):
    numpy.save(root / "train/cat/a.npy", numpy.asarray(pixels(9, 13, 5, seed=1), order=order))
    images = load(root).images
    assert images.shape == (2, 5, 9, 13)
    assert images[0].permute(1, 2, 0).tolist() == pixels(9, 13, 5, seed=1).tolist()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pixels(9, 13, 5) > 127, numpy.where(pixels(9, 13, 5) > 127, 255, 0)),
        (pixels(9, 13, 5).astype(">u2") * 257, pixels(9, 13, 5)),
        (pixels(9, 13, 5) / 255, pixels(9, 13, 5)),
        ((pixels(9, 13, 5) / 255).astype(">f4"), pixels(9, 13, 5)),
    ],
)
def test_other_numbers_are_scaled_to_eight_bits(root: Path, array: NDArray[Any], expected: NDArray[Any]):
    numpy.save(root / "train/cat/a.npy", array)
    assert load(root).images[0].permute(1, 2, 0).tolist() == expected.tolist()


def test_arrays_with_one_and_three_channels_are_grey_and_rgb(tmp_path: Path):
    arrays = {"cat": pixels(9, 13), "dog": pixels(9, 13, 1), "emu": pixels(9, 13, 3)}
    for name, array in arrays.items():
        (tmp_path / "train" / name).mkdir(parents=True)
        numpy.save(tmp_path / "train" / name / "a.npy", array)
    images = load(tmp_path).images
    assert images.shape == (3, 3, 9, 13)
    assert images[2].permute(1, 2, 0).tolist() == arrays["emu"].tolist()
    grey = load(tmp_path, channels=1).images[:, 0]
    assert grey[0].tolist() == arrays["cat"].tolist()
    assert grey[2].tolist() == numpy.asarray(Image.fromarray(arrays["emu"]).convert("L")).tolist()


def test_grey_pages_of_a_tiff_are_channels(root: Path):
    save_pages(root / "train/cat/a.tif", *(pixels(9, 13, seed=seed, kind=numpy.uint16) for seed in range(5)))
    expected = [(pixels(9, 13, seed=seed, kind=numpy.uint16) / 257).round().tolist() for seed in range(5)]
    assert load(root).images[0].tolist() == expected
    assert load(root, channels=5).images[0].tolist() == expected


def test_three_grey_pages_are_rgb_and_one_channel_is_the_first_page(tmp_path: Path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        save_pages(tmp_path / "train" / name / "a.tif", *(pixels(9, 13, seed=seed) for seed in range(3)))
    assert load(tmp_path).images[0].tolist() == [pixels(9, 13, seed=seed).tolist() for seed in range(3)]
    assert load(tmp_path, channels=1).images[0].tolist() == [pixels(9, 13, seed=0).tolist()]


@pytest.mark.parametrize("second", [pixels(4, 6), pixels(9, 13, 3)])
def test_pages_of_another_size_or_in_colour_are_no_channels(tmp_path: Path, second: NDArray[Any]):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        save_pages(tmp_path / "train" / name / "a.tif", pixels(9, 13), second)
    assert load(tmp_path).images[0].tolist() == [pixels(9, 13).tolist()]


def test_alpha_counts_as_a_channel_if_four_are_asked_for(tmp_path: Path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(pixels(9, 13, 4)).save(tmp_path / "train" / name / "a.png")
    assert load(tmp_path, channels=4).images[0].permute(1, 2, 0).tolist() == pixels(9, 13, 4).tolist()
    assert load(tmp_path).input_shape == (3, 9, 13)


def test_every_channel_is_scaled_and_cropped_alike(root: Path):
    numpy.save(root / "train/cat/a.npy", pixels(20, 30, 5, seed=1))
    planes = [Image.fromarray(pixels(20, 30, 5, seed=1)[..., channel].copy()) for channel in range(5)]
    expected = [numpy.asarray(ImageOps.fit(plane, (12, 8), Image.Resampling.BILINEAR)).tolist() for plane in planes]
    images = load(root, image_size=(8, 12)).images
    assert images.shape == (2, 5, 8, 12)
    assert images[0].tolist() == expected


def test_arrays_with_the_channels_first_are_refused_with_the_way_to_save_them(root: Path):
    said = refused(root, pixels(5, 9, 13))
    assert said.startswith("is 5x9x13, but arrays are read as (height, width, channels): save numpy.moveaxis(array, 0")
    assert said.endswith("or set `channels` of the data to 13")
    assert refused(root, pixels(5, 9, 13), channels=5).endswith("save numpy.moveaxis(array, 0, -1)")
    assert refused(root, pixels(5, 9, 65)).endswith("save numpy.moveaxis(array, 0, -1)")
    for name in ("cat", "dog"):
        numpy.save(root / "train" / name / "a.npy", pixels(5, 9, 13))
    assert load(root, channels=13).input_shape == (13, 5, 9)


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (pixels(4, 5, 6, 2), "has the shape 4x5x6x2: save an image as (height, width, channels)"),
        (pixels(4, 0, 3), "has the shape 4x0x3: save"),
        (numpy.uint8(3), "has the shape a single number: save"),
        (numpy.zeros((9, 13, 5), numpy.int64), "holds int64: save uint8, uint16, or floating-point numbers in [0, 1]"),
        (numpy.zeros((9, 13, 5), complex), "holds complex128: save"),
        (numpy.full((9, 13, 5), 1.5), "has grey values outside [0, 1]"),
        (numpy.full((9, 13, 5), numpy.nan), "has grey values outside [0, 1]"),
    ],
)
def test_other_arrays_are_refused_with_what_to_save(root: Path, array: NDArray[Any], sentence: str):
    assert refused(root, array).startswith(sentence)


class Mark:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("unpickled"),)


def test_an_array_of_objects_is_refused_and_no_code_in_it_is_run(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    content = io.BytesIO()
    numpy.lib.format.write_array(content, numpy.array([[Mark()]], dtype=object), allow_pickle=True)
    said = refused(root, content.getvalue())
    assert said == "holds Python objects, and reading them could run code: save an array of numbers"
    assert not Path("unpickled").exists()
    pickle.loads(content.getvalue()[content.getvalue().index(b"\n") + 1 :])
    assert Path("unpickled").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not a readable array: save it with numpy.save"),
        (b"PK\x03\x04", "is not a readable array: save it with numpy.save"),
        (header("(9, 13, 5)", version=b"\x09\x00"), "is not a readable array: save it with numpy.save"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65_535, "is not a readable array: save it with numpy.save"),
        (header("(1000000, 1000000, 5)"), "has 0 bytes of pixels instead of 5,000,000,000,000: replace it"),
        (header(f"({2**70}, 1)") + bytes(9), f"has 9 bytes of pixels instead of {2**70:,}: replace it"),
        (header("(9, 13, 5)") + bytes(584), "has 584 bytes of pixels instead of 585: replace it"),
        (header("(9, 13, 5)") + bytes(586), "has 586 bytes of pixels instead of 585: replace it"),
        (header("(-3, -3)") + bytes(9), "cannot be decoded"),
        (header("(9, 13)", "[('a', '|u1')]") + bytes(117), "holds [('a', 'u1')]: save uint8"),
    ],
)
def test_damaged_and_malicious_arrays_are_refused_in_one_sentence(root: Path, content: bytes, sentence: str):
    said = refused(root, content)
    assert said.startswith(sentence)
    assert "allow_pickle" not in said


def test_an_array_with_too_many_pixels_is_refused_by_name(root: Path):
    with (root / "train/cat/a.npy").open("wb") as file:
        file.write(header(f"(2, {MOST_PIXELS})"))
        file.truncate(file.tell() + 2 * MOST_PIXELS)
    assert refused(root).startswith("has more pixels than are read")
    with (root / "train/cat/a.npy").open("wb") as file:
        file.truncate(2**28 + 1)
    assert refused(root).startswith("has more than 256 MiB")


def test_a_tiff_with_many_pages_is_refused_after_the_first_65(root: Path, monkeypatch: pytest.MonkeyPatch):
    save_pages(root / "train/cat/a.tif", *[pixels(9, 13)] * 100)
    visited, seek = [], TiffImageFile.seek

    def counting(opened: TiffImageFile, page: int) -> None:
        visited.append(page)
        seek(opened, page)

    monkeypatch.setattr(TiffImageFile, "seek", counting)
    assert refused(root, name="a.tif") == "has more than 64 pages: save at most 64 channels"
    assert visited == list(range(1, 65))


def test_pages_with_too_many_pixels_together_are_refused_by_name(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gapssg.data.channels.MOST_PIXELS", 5 * 9 * 13 - 1)
    save_pages(root / "train/cat/a.tif", *[pixels(9, 13)] * 5)
    assert refused(root, name="a.tif").startswith("has more pixels than are read")


def test_other_numbers_of_channels_than_the_first_image_or_the_options_have_are_refused(root: Path):
    Image.fromarray(pixels(9, 13, 3)).save(root / "train/cat/a.png")
    with pytest.raises(InputError, match=r"differ in their channels: .*cat/a\.png has 3 and .*dog/a\.npy has 5; use"):
        load(root)
    hint = "use a TIFF with a grey page for each channel, or a .npy array (height, width, channels)"
    assert refused(root, name="a.png", channels=5) == f"has 3 channels instead of 5: {hint}"
    Image.fromarray(pixels(9, 13)).save(root / "train/cat/a.png")
    assert refused(root, name="a.png", channels=5) == f"has 1 channel instead of 5: {hint}"
    with pytest.raises(InputError, match=r"dog/a\.npy has 5 channels instead of 1"):
        load(root, channels=1)


def test_embedded_data_is_not_read_with_other_channels():
    with pytest.raises(InputError, match=r"in grey \(1 channel\) or RGB \(3\), not with 5 channels"):
        load_split("digits", "test", channels=5)


def test_images_of_64_channels_are_read(tmp_path: Path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        numpy.save(tmp_path / "train" / name / "a.npy", pixels(8, 8, 64))
    with pytest.raises(InputError, match=r"is 8x8x64.*set `channels` of the data to 64"):
        load(tmp_path)
    images = load(tmp_path, channels=64)
    assert images.input_shape == (64, 8, 8)
    assert torch.equal(images.images[0], torch.from_numpy(pixels(8, 8, 64)).permute(2, 0, 1))
