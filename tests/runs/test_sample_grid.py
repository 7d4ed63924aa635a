from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gapssg.runs.sample_grid import _LABEL, _LINE, sample_grid

HEIGHT = 14
ROW = HEIGHT + 1


def levels(targets: Tensor, channels: int = 1) -> Tensor:
    """Images that are all of one level, 100 more than their target."""
    return (100 + targets).to(torch.uint8).view(-1, 1, 1, 1).expand(len(targets), channels, HEIGHT, 6)


def rows_of(targets: Tensor, names: tuple[str, ...], channels: int = 1, top: int = 0) -> list[list[int]]:
    """Return the levels in each row of a grid, right of the labels."""
    pixels = np.asarray(sample_grid(levels(targets, channels), targets, names))
    return [sorted(set(pixels[y, _LABEL:].tolist()) - {0}) for y in range(top, len(pixels), ROW)]


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_each_row_has_the_images_of_one_class_in_class_order(channels: int):
    targets = torch.tensor([2, 0, 1, 1, 0, 2])
    assert rows_of(targets, ("a", "b", "c"), channels) == [[100], [101], [102]]


def test_each_row_has_its_classs_name_and_no_other_text():
    targets = torch.tensor([0, 1, 1])

    def label(name: str) -> list[list[int]]:
        picture = np.asarray(sample_grid(levels(targets), targets, ("", name)))
        assert not picture[:ROW, :_LABEL].any()
        return picture[ROW:, :_LABEL].tolist()

    assert label("cat") != label("dog")
    assert label("cat") == label("cat")
    assert not np.any(label(""))


def test_a_picture_without_all_classes_says_so():
    def top(targets: Tensor, classes: int) -> tuple[int, bool]:
        picture = sample_grid(levels(targets), targets, ("",) * classes)
        return picture.height, bool(np.asarray(picture)[:_LINE, :_LABEL].any())

    assert top(torch.arange(3), 3) == (3 * ROW, False)
    assert top(torch.arange(3), 4) == (_LINE + 3 * ROW, True)
    assert top(torch.arange(100), 100) == (_LINE + 16 * ROW, True)


def test_the_shown_classes_are_spread_evenly():
    shown = [level for row in rows_of(torch.arange(100), ("x",) * 100, top=_LINE) for level in row]
    assert len(shown) == 16
    assert (shown[0], shown[-1]) == (100, 199)


@pytest.mark.parametrize("name", ["\U0001f600", "\x1b[2J", "x" * 255, "\ud800", "é"])
def test_any_class_name_is_drawn_without_covering_an_image(name: str):
    targets = torch.tensor([0, 1])
    written = np.asarray(sample_grid(levels(targets), targets, (name, "b")))
    plain = np.asarray(sample_grid(levels(targets), targets, ("", "b")))
    assert (written[:, _LABEL:] == plain[:, _LABEL:]).all()


def test_colours_are_those_of_the_images():
    image = torch.randint(0, 256, (1, 3, HEIGHT, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = np.asarray(sample_grid(image, torch.tensor([0]), ("a",)))
    assert (picture[:HEIGHT, _LABEL : _LABEL + 6] == image[0].permute(1, 2, 0).numpy()).all()


def test_large_images_are_scaled_down_to_256_pixels():
    image = torch.zeros(2, 3, 512, 1024, dtype=torch.uint8)
    image[:, :, :, 512:] = 200
    picture = np.asarray(sample_grid(image, torch.tensor([0, 0]), ("a",)))
    assert picture.shape == (128 + 1, _LABEL + 2 * (256 + 1), 3)
    assert picture[:128, _LABEL : _LABEL + 256, 0].tolist() == [[0] * 128 + [200] * 128] * 128
