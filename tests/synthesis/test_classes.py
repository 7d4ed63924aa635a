from __future__ import annotations

import pytest
import torch

from gapssg.synthesis.classes import describe_missing, missing_classes


@pytest.mark.parametrize(
    ("counts", "missing"),
    [
        ([640, 0], [1]),
        ([609, 31], [1]),  # less than a tenth of 320
        ([608, 32], []),
        ([128, 128, 128, 128], []),
        ([500, 1, 10, 1], [1, 2, 3]),
    ],
)
def test_a_class_is_missing_below_a_tenth_of_an_even_share(counts: list[int], missing: list[int]):
    assert missing_classes(counts) == missing


def test_with_few_images_a_class_may_be_absent_by_chance():
    assert missing_classes([18, 0]) == [1]  # all have one class
    assert missing_classes([9, 0]) == []
    assert missing_classes([9, 9, 0]) == []
    assert missing_classes([30, 30, 0]) == [2]


@pytest.mark.parametrize("num_classes", [2, 10, 100, 1000])
def test_uniform_targets_raise_no_false_alarm_for_any_number_of_images(num_classes: int):
    generator = torch.Generator().manual_seed(0)
    alarms = 0
    for count in range(10 * num_classes, 20 * num_classes, num_classes):
        for _ in range(20):
            targets = torch.randint(num_classes, (count,), generator=generator)
            alarms += missing_classes(torch.bincount(targets, minlength=num_classes).tolist()) != []
    assert alarms <= 1


def test_missing_classes_are_named():
    names = ("cat", "dog", *(f"c{number}" for number in range(8)))
    said = describe_missing([64, 64], names, "new images")
    assert said is None
    said = describe_missing([640, 0], names, "synthetic images")
    assert said == "the teacher predicts class 'cat' for all 640 synthetic images"
    said = describe_missing([1279, 1], names, "new images")
    assert said == "the teacher predicts class 'dog' for only 1 of 1,280 new images"
    said = describe_missing([640, 640, *[0] * 8], names, "images")
    assert said == (
        "the teacher predicts 8 of the 10 classes ('c0', 'c1', 'c2', 'c3', 'c4' and 3 more) for none of 1,280 images"
    )


def test_long_names_are_shortened():
    assert len(str(describe_missing([640, 0], ("x" * 255, "y"), "images"))) < 200
