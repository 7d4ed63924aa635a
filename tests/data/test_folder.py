import os
import warnings
from pathlib import Path
from typing import Any, get_args

import numpy
import pytest
import torch
from PIL import Image, features
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from gapssg.data import decode, load_split
from gapssg.data.image_set import ImageSet
from gapssg.errors import InputError
from gapssg.runs.requests import Stopped
from gapssg.settings.parts import Interpolation


def grey_pixels(seed: int = 0, width: int = 6, height: int = 4) -> numpy.ndarray:
    return numpy.random.default_rng(seed).integers(0, 256, (height, width), dtype=numpy.uint8)


def colour_pixels(seed: int = 0, width: int = 6, height: int = 4) -> numpy.ndarray:
    return numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8)


def save(path: Path, image: Image.Image | numpy.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
    return path


def load(root: Path, **options: Any) -> ImageSet:
    return load_split(f"folder:{root}", "train", **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one grey training image in each of two classes, to which tests add files."""
    save(tmp_path / "train/cat/a.png", grey_pixels(1))
    save(tmp_path / "train/dog/a.png", grey_pixels(2))
    return tmp_path


def load_alone(root: Path, file_name: str, image: Image.Image | numpy.ndarray) -> torch.Tensor:
    """Save an image as the only cat and return how it is read, (C, H, W)."""
    (root / "train/cat/a.png").unlink()
    save(root / "train/cat" / file_name, image)
    return load(root).images[0]


def test_images_labels_and_class_names(root: Path) -> None:
    images = load(root)
    assert images.class_names == ("cat", "dog")
    assert images.labels.tolist() == [0, 1]
    assert images.images.numpy().tolist() == [[grey_pixels(1).tolist()], [grey_pixels(2).tolist()]]


@pytest.mark.parametrize("name", ["test", "val"])
def test_the_test_split_is_test_or_val(root: Path, name: str) -> None:
    for animal in ("cat", "dog"):
        save(root / name / animal / "a.png", grey_pixels(3))
    assert load_split(f"folder:{root}", "test").images[0, 0].tolist() == grey_pixels(3).tolist()


def test_test_takes_precedence_over_val(root: Path) -> None:
    for name, seed in (("val", 3), ("test", 4)):
        for animal in ("cat", "dog"):
            save(root / name / animal / "a.png", grey_pixels(seed))
    assert load_split(f"folder:{root}", "test").images[0, 0].tolist() == grey_pixels(4).tolist()


def test_the_test_split_has_the_classes_of_its_own_folders(root: Path) -> None:
    for animal in ("emu", "fox"):
        save(root / "test" / animal / "a.png", grey_pixels())
    assert load_split(f"folder:{root}", "test").class_names == ("emu", "fox")


def test_images_are_in_the_order_of_torchvision(root: Path) -> None:
    names = ["b.png", "B.png", "10.png", "9.png", "x/y/1.png", "x/0.png", "x-1/2.png", "z.png"]
    for seed, name in enumerate(names):
        save(root / "train/cat" / name, colour_pixels(seed))
    expected = [(numpy.asarray(image).tolist(), label) for image, label in ImageFolder(root / "train")]
    images = load(root)
    found = zip(images.images.permute(0, 2, 3, 1).tolist(), images.labels.tolist(), strict=True)
    assert list(found) == expected


def test_many_threads_keep_the_order_of_the_images(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_FILES_PER_TASK", 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    (root / "train/cat/a.png").unlink()
    for number in range(100):
        save(root / f"train/cat/{number:03}.png", numpy.full((4, 6), number, dtype=numpy.uint8))
    for _ in range(3):
        assert load(root).images[:100, 0, 0, 0].tolist() == list(range(100))


def test_hidden_files_and_other_extensions_are_ignored(root: Path) -> None:
    save(root / "train/cat/.hidden.png", grey_pixels())
    save(root / "train/.hidden/a.png", grey_pixels())
    (root / "train/cat/notes.txt").write_text("not an image")
    (root / "train/cat/figure.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0")
    (root / "train/cat/figure.pdf").write_text("%PDF-1.4")
    (root / "train/notes.png").write_text("not in a class")
    assert len(load(root)) == 2


@pytest.mark.parametrize("file_name", ["a.bmp", "a.PNG", "a.tiff", "a.ppm", "a.webp"])
def test_lossless_colour_formats_are_read_exactly(root: Path, file_name: str) -> None:
    (root / "train/cat").mkdir(exist_ok=True)
    if file_name.endswith("webp"):
        (root / "train/cat/a.png").unlink()
        Image.fromarray(colour_pixels()).save(root / "train/cat/a.webp", lossless=True)
        image = load(root).images[0]
    else:
        image = load_alone(root, file_name, colour_pixels())
    assert image.permute(1, 2, 0).tolist() == colour_pixels().tolist()


def test_jpeg_is_read_as_pillow_decodes_it(root: Path) -> None:
    image = load_alone(root, "a.JPEG", colour_pixels())
    with Image.open(root / "train/cat/a.JPEG") as expected:
        assert image.permute(1, 2, 0).tolist() == numpy.asarray(expected).tolist()


def test_the_first_frame_of_a_gif_is_read_in_rgb(root: Path) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    (root / "train/cat/a.png").unlink()
    frames[0].save(root / "train/cat/a.gif", save_all=True, append_images=frames[1:])
    image = load(root).images[0]
    assert image.flatten(1).unique(dim=1).flatten().tolist() == [255, 0, 0]


def test_the_content_decides_if_the_extension_is_that_of_another_format(root: Path) -> None:
    (root / "train/cat/a.png").unlink()
    Image.fromarray(grey_pixels(5)).save(root / "train/cat/a.jpg", format="PNG")
    assert load(root).images[0, 0].tolist() == grey_pixels(5).tolist()


def test_palettes_are_read_in_rgb_even_with_transparency(root: Path) -> None:
    palette = Image.fromarray(colour_pixels()).quantize(8)
    (root / "train/cat/a.png").unlink()
    palette.save(root / "train/cat/a.png", transparency=bytes(range(8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = load(root).images[0]
    assert image.permute(1, 2, 0).tolist() == numpy.asarray(palette.convert("RGB")).tolist()


def test_alpha_is_dropped(root: Path) -> None:
    with_alpha = Image.fromarray(colour_pixels())
    with_alpha.putalpha(Image.fromarray(grey_pixels()))
    image = load_alone(root, "a.png", with_alpha)
    assert image.permute(1, 2, 0).tolist() == colour_pixels().tolist()


def test_grey_with_alpha_stays_grey(root: Path) -> None:
    with_alpha = Image.fromarray(grey_pixels(5))
    with_alpha.putalpha(Image.fromarray(grey_pixels(6)))
    assert load_alone(root, "a.png", with_alpha).tolist() == [grey_pixels(5).tolist()]


def test_black_and_white_becomes_0_and_255(root: Path) -> None:
    image = load_alone(root, "a.png", Image.fromarray(grey_pixels() > 127))
    assert image.tolist() == [numpy.where(grey_pixels() > 127, 255, 0).tolist()]


@pytest.mark.parametrize("file_name", ["a.png", "a.tiff", "a.pgm"])
def test_16_bit_grey_is_scaled_and_not_clipped(root: Path, file_name: str) -> None:
    levels = numpy.array([[0, 128, 129, 257, 32768, 65535]], dtype=numpy.uint16).repeat(4, axis=0)
    # Older versions of Pillow write 16-bit PGM from 32-bit images only.
    pixels = levels.astype(numpy.int32) if file_name.endswith(".pgm") else levels
    assert load_alone(root, file_name, pixels)[0, 0].tolist() == [0, 0, 1, 1, 128, 255]


@pytest.mark.parametrize("depth", [numpy.uint8, numpy.uint16])
def test_a_tiff_in_which_0_is_white_is_inverted(root: Path, depth: type[numpy.unsignedinteger]) -> None:
    most = numpy.iinfo(depth).max
    levels = numpy.array([[0, 1, 2, 253, 254, 255]], dtype=depth).repeat(4, axis=0) * (most // 255)
    (root / "train/cat/a.png").unlink()
    Image.fromarray(levels).save(root / "train/cat/a.tiff", tiffinfo={262: 0})
    stored = load(root).images[0, 0, 0].tolist()
    # Pillow inverts 8 bits when it writes them, too.
    assert stored == ([0, 1, 2, 253, 254, 255] if depth is numpy.uint8 else [255, 254, 253, 2, 1, 0])


def test_floating_point_grey_in_0_to_1_is_scaled(root: Path) -> None:
    levels = numpy.array([[0, 0.2, 0.5, 0.6, 0.999, 1]], dtype=numpy.float32).repeat(4, axis=0)
    assert load_alone(root, "a.tiff", levels)[0, 0].tolist() == [0, 51, 128, 153, 255, 255]


@pytest.mark.parametrize(
    "levels",
    [
        numpy.full((4, 6), 1.5, dtype=numpy.float32),
        numpy.full((4, 6), numpy.nan, dtype=numpy.float32),
        numpy.full((4, 6), 65536, dtype=numpy.int32),
        numpy.full((4, 6), -1, dtype=numpy.int32),
    ],
)
def test_grey_values_out_of_range_are_refused_by_name(root: Path, levels: numpy.ndarray) -> None:
    with pytest.raises(InputError, match=r"cat/a\.tiff has grey values outside"):
        load_alone(root, "a.tiff", levels)


@pytest.mark.parametrize("colour_comes", ["first", "last"])
def test_one_colour_image_makes_all_images_rgb(root: Path, colour_comes: str) -> None:
    name = "cat/0.png" if colour_comes == "first" else "dog/z.png"
    save(root / "train" / name, colour_pixels())
    images = load(root).images
    colour_at = 0 if colour_comes == "first" else 2
    assert images.shape == (3, 3, 4, 6)
    assert images[colour_at].permute(1, 2, 0).tolist() == colour_pixels().tolist()
    cat = images[1 if colour_comes == "first" else 0]
    assert cat.tolist() == [grey_pixels(1).tolist()] * 3


def test_channels_can_be_chosen(root: Path) -> None:
    assert load(root, channels=3).images[0].tolist() == [grey_pixels(1).tolist()] * 3
    save(root / "train/dog/z.png", colour_pixels())
    images = load(root, channels=1).images
    assert images.shape == (3, 1, 4, 6)
    assert images[2, 0].tolist() == numpy.asarray(Image.fromarray(colour_pixels()).convert("L")).tolist()


def test_orientation_in_exif_is_applied(root: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    (root / "train/cat/a.png").unlink()
    turned = Image.fromarray(numpy.rot90(grey_pixels(5)))
    turned.save(root / "train/cat/a.png", exif=exif)
    assert load(root).images[0, 0].tolist() == grey_pixels(5).tolist()


def test_an_image_size_scales_and_crops_about_the_centre(root: Path) -> None:
    wide = numpy.zeros((4, 12), dtype=numpy.uint8)
    wide[:, 4:8] = 200
    save(root / "train/cat/wide.png", wide)
    images = load(root, image_size=2).images
    assert images.shape == (3, 1, 2, 2)
    assert images[1].min() > 150


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
def test_images_are_resized_as_by_torchvision_to_the_last_bit(root: Path, interpolation: Interpolation) -> None:
    sizes = [(61, 40), (40, 61), (33, 33), (24, 90), (20, 18)]
    for number, (width, height) in enumerate(sizes):
        save(root / f"train/dog/{number}.png", colour_pixels(number, width, height))
    mode = InterpolationMode(interpolation)
    chains: list[tuple[Any, Any]] = [(side, Compose([Resize(side, mode), CenterCrop((16, 20))])) for side in (24, 17)]
    for resize, theirs in (*chains, ("stretch", Resize((16, 20), mode))):  # 17 pads images of 17x17 to 20
        images = load(root, image_size=(16, 20), resize=resize, interpolation=interpolation).images[1:-1]
        for number, image in enumerate(images):
            with Image.open(root / f"train/dog/{number}.png") as opened:
                assert image.permute(1, 2, 0).tolist() == numpy.asarray(theirs(opened)).tolist()


def test_an_image_whose_other_side_would_become_huge_is_refused_by_name(root: Path) -> None:
    save(root / "train/cat/b.png", grey_pixels(width=10_000, height=1))
    with pytest.raises(InputError, match=r"cat/b\.png has more pixels .* once its shorter side is resized"):
        load(root, image_size=32, resize=64)


def test_images_of_different_sizes_are_refused_with_both_names_and_sizes(root: Path) -> None:
    save(root / "train/dog/b.png", grey_pixels(width=7, height=5))
    with pytest.raises(InputError, match=r"cat/a\.png is 6x4 and .*dog/b\.png is 7x5 pixels; pass --image-size"):
        load(root)


def test_progress_rises_to_the_total(root: Path) -> None:
    for number in range(40):
        save(root / f"train/cat/{number}.png", grey_pixels())
    calls: list[tuple[int, int]] = []
    load(root, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(16, 42), (32, 42), (42, 42)]


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no folder {tmp_path / 'nothing'}"):
        load(tmp_path / "nothing")


def test_a_path_that_is_a_file_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match=r"a\.png is not a folder"):
        load(root / "train/cat/a.png")


def test_a_missing_train_folder_is_refused_with_what_was_found(root: Path) -> None:
    with pytest.raises(InputError, match="'train' with one sub-folder per class; its sub-folders: 'cat' and 'dog'"):
        load(root / "train")
    with pytest.raises(InputError, match=r"'train' .*sub-folders: none"):
        load(root / "train/cat")


def test_a_missing_test_folder_is_refused_with_what_was_found(root: Path) -> None:
    with pytest.raises(InputError, match=r"'test' or 'val' .*its sub-folders: 'train'"):
        load_split(f"folder:{root}", "test")


def test_a_split_without_class_folders_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "train/a.png", grey_pixels())
    with pytest.raises(InputError, match="train has no class sub-folders"):
        load(tmp_path)


def test_a_single_class_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path / "train/cat/a.png", grey_pixels())
    with pytest.raises(InputError, match="only the class 'cat'"):
        load(tmp_path)


def test_a_class_without_images_is_refused_by_name(root: Path) -> None:
    (root / "train/emu").mkdir()
    (root / "train/emu/notes.txt").write_text("to do")
    with pytest.raises(InputError, match="train/emu has no images"):
        load(root)


@pytest.mark.parametrize("extension", ["png", "jpg", "bmp", "gif", "tiff"])
def test_a_truncated_image_is_refused_by_name(root: Path, extension: str) -> None:
    file = save(root / f"train/cat/b.{extension}", colour_pixels(width=64, height=64))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"cat/b\.{extension} (cannot be decoded \(|is not a readable image)"):
        load(root, image_size=4)


@pytest.mark.parametrize("content", [b"", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n"])
def test_a_file_that_is_no_image_is_refused_by_name(root: Path, content: bytes) -> None:
    (root / "train/cat/b.png").write_bytes(content)
    with pytest.raises(InputError, match=r"cat/b\.png is not a readable image"):
        load(root)


@pytest.mark.parametrize("times_too_large", [1.5, 3])
def test_a_decompression_bomb_is_refused_by_name(
    root: Path, monkeypatch: pytest.MonkeyPatch, times_too_large: float
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(64 * 64 / times_too_large))
    save(root / "train/cat/b.png", grey_pixels(width=64, height=64))
    with pytest.raises(InputError, match=r"cat/b\.png has more pixels than are read"):
        load(root)


@pytest.mark.slow
def test_a_photograph_of_48_megapixels_is_read_at_the_requested_size(root: Path) -> None:
    photograph = Image.linear_gradient("L").resize((8064, 6048)).convert("RGB")
    small = numpy.asarray(photograph.crop((1008, 0, 7056, 6048)).resize((32, 32), Image.Resampling.BILINEAR))
    (root / "train/cat/a.png").unlink()
    save(root / "train/cat/a.jpg", photograph)
    image = load(root, image_size=32, channels=3).images[0]
    assert numpy.abs(image.permute(1, 2, 0).numpy().astype(int) - small).max() <= 2


@pytest.mark.parametrize("is_progressive", [False, True])
def test_a_jpeg_above_the_bomb_limit_is_decoded_at_a_reduced_size(
    root: Path, monkeypatch: pytest.MonkeyPatch, is_progressive: bool
) -> None:
    for name in ("_MOST_PIXELS", "_MANY_PIXELS_OF_JPEG"):
        monkeypatch.setattr(decode, name, 100 * 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150 * 150)
    Image.linear_gradient("L").save(root / "train/cat/b.jpg", progressive=is_progressive)
    if is_progressive:  # it takes memory for its full size
        with pytest.raises(InputError, match=r"cat/b\.jpg has more pixels than are read"):
            load(root, image_size=8)
    else:
        assert load(root, image_size=8).images[1].float().diff(dim=1).mean() == pytest.approx(32, abs=1)
        with pytest.raises(InputError, match=r"cat/b\.jpg has more pixels than are read"):
            load(root)


def test_files_that_are_not_read_are_counted_and_named(root: Path) -> None:
    said: list[str] = []
    load(root, note=said.append)
    assert said == []
    for name in ("cat/b.heic", "cat/c", "dog/deep/d.txt", "loose.png"):
        (root / "train" / name).parent.mkdir(exist_ok=True)
        (root / "train" / name).touch()
    load(root, note=said.append)
    (sentence,) = said
    assert sentence.startswith(f"of 6 files in {root / 'train'}, 4 are not read, because")
    assert sentence.endswith(": loose.png, cat/b.heic, cat/c and dog/deep/d.txt")
    (root / "train/emu").mkdir()
    (root / "train/emu/a.heic").touch()
    with pytest.raises(InputError, match=r"train/emu has no images that can be read, only a\.heic: add some"):
        load(root)


def test_avif_is_read_if_pillow_reads_it(root: Path) -> None:
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = load_alone(root, "a.avif", Image.new("RGB", (6, 4), (200, 30, 30)))
    assert (image.float().mean(dim=(1, 2)) - torch.tensor([200.0, 30.0, 30.0])).abs().max() <= 3


def test_images_that_exceed_the_memory_are_refused_with_a_hint(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(numpy, "empty", fail)
    with pytest.raises(InputError, match=r"2 images of 6x4 pixels need 0 GiB .* smaller --image-size"):
        load(root)


def test_links_inside_the_folder_are_followed(root: Path) -> None:
    (root / "train/dog/link.png").symlink_to(root / "train/cat/a.png")
    (root / "train/emu").symlink_to(root / "train/dog")
    images = load(root)
    assert images.class_names == ("cat", "dog", "emu")
    assert images.labels.tolist() == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("link", ["train/cat/b.png", "train/cat/more", "train/emu", "test"])
def test_a_link_that_leads_outside_is_refused_by_name(tmp_path: Path, root: Path, link: str) -> None:
    inside = root / "inside"
    (root / "train").rename(inside.parent / "moved")
    inside.mkdir()
    (root / "moved").rename(inside / "train")
    outside = save(root / "outside/cat/a.png", grey_pixels())
    target = outside if link.endswith(".png") else root / "outside"
    (inside / link).symlink_to(target)
    with pytest.raises(InputError, match=f"link {inside / link} leads outside {inside}"):
        load_split(f"folder:{inside}", "test" if link == "test" else "train")


def test_a_link_back_to_its_own_folder_is_refused_by_name(root: Path) -> None:
    (root / "train/cat/again").symlink_to(root / "train/cat")
    with pytest.raises(InputError, match="cat/again leads back"):
        load(root)
    (root / "train/cat/again").unlink()
    (root / "train/cat/again").symlink_to(root / "train")
    with pytest.raises(InputError, match="cat/again leads back"):
        load(root)


def test_a_broken_link_is_refused_by_name(root: Path) -> None:
    (root / "train/cat/b.png").symlink_to(root / "nothing.png")
    with pytest.raises(InputError, match=r"cat/b\.png is not a file .*broken link"):
        load(root)


def test_a_link_to_itself_is_refused_by_name(root: Path) -> None:
    (root / "train/cat/b.png").symlink_to("b.png")
    with pytest.raises(InputError, match=r"cat/b\.png (is not a file|cannot be followed)"):
        load(root)


def test_a_pipe_is_refused_by_name_without_waiting(root: Path) -> None:
    os.mkfifo(root / "train/cat/b.png")
    with pytest.raises(InputError, match=r"cat/b\.png is not a file"):
        load(root)


def test_a_request_to_stop_is_not_reported_as_an_image_failure(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise Stopped(15)

    monkeypatch.setattr(decode, "channels_of_picture", stop)
    with pytest.raises(Stopped):
        load(root)


def test_warning_filters_are_restored_after_an_error(root: Path) -> None:
    filters = list(warnings.filters)
    (root / "train/cat/b.png").write_bytes(b"")
    with pytest.raises(InputError):
        load(root)
    assert warnings.filters == filters
