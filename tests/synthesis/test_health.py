from __future__ import annotations

import pytest
import torch

from gapssg.synthesis.health import synthesis_health


def healthy(count=160, classes=4):
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(count) % classes
    images = torch.rand(count, 1, 8, 8, generator=generator)
    return images, targets, 10.0 * torch.nn.functional.one_hot(targets, classes)


def test_balanced_varied_images_that_the_teacher_recognises_are_healthy():
    health = synthesis_health(*healthy())
    assert health.target_agreement == 1.0
    assert health.class_entropy == pytest.approx(1.0, abs=1e-6)
    # The standard deviation of a uniform variable is 1 / sqrt(12) = 0.289.
    assert health.diversity == pytest.approx(0.289, abs=0.03)
    # 3 of 255 steps are within a step and a half of an end.
    assert health.saturation == pytest.approx(3 / 255, abs=0.01)
    assert health.warnings(4, 160) == []


def test_a_collapse_to_one_class_is_a_warning():
    images, targets, _ = healthy()
    logits = torch.zeros(160, 4)
    logits[:, 2] = 20.0
    health = synthesis_health(images, targets, logits)
    assert health.class_entropy < 0.01
    assert "collapsed to few classes" in str(health.few_classes())


def test_identical_images_within_a_class_are_a_warning():
    images, targets, logits = healthy()
    one_a_class = images[:4].repeat(40, 1, 1, 1)
    health = synthesis_health(one_a_class, targets, logits)
    assert health.diversity == 0
    assert any("nearly identical" in sentence for sentence in health.warnings(4, 160))


def test_a_target_agreement_below_chance_is_a_warning():
    images, targets, logits = healthy()
    health = synthesis_health(images, targets, logits.roll(1, dims=1))
    assert health.target_agreement == 0
    assert any("less than chance" in sentence for sentence in health.warnings(4, 160))


def test_black_and_white_images_are_a_warning():
    images, targets, logits = healthy()
    health = synthesis_health(images.round(), targets, logits)
    assert health.saturation == 1.0
    assert any("black or white" in sentence for sentence in health.warnings(4, 160))


def test_a_class_with_a_single_image_does_not_break_the_diversity():
    images, _, logits = healthy(count=4)
    health = synthesis_health(images, torch.arange(4), logits)
    assert 0.1 < health.diversity < 0.5
