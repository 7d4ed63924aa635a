"""The fast training steps do what the formulas say: float32 against float64, bf16 and compiled against float32."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gapssg import PretrainSettings
from gapssg.core.augment import Shifts, crop_and_flip
from gapssg.core.runtime import Runtime
from gapssg.data.image_set import ImageSet
from gapssg.training.pretrain_teacher import _Pretraining, make_model
from tests.numerics import OF_BF16, OF_FLOAT32, distance, distil_once, gradients_of, make_distillation
from tests.tiny import tiny_model, write_tiny_teacher

CPU = torch.device("cpu")
PLAIN = Runtime(CPU, "fp32", compiled=False, seed=0)
COMPILED = Runtime(CPU, "fp32", compiled=True, seed=0)
BF16 = Runtime(CPU, "bf16", compiled=False, seed=0)
TEMPERATURE = 20.0

# The divergence is a sum of p (log p - log q), where both logarithms are about -2: each is rounded by 2**-23, and the
# loss is 400 times the sum. A cross-entropy is not multiplied.
OF_A_DIVERGENCE = TEMPERATURE**2 * 2**-23
OF_A_CROSS_ENTROPY = 4 * 2**-23


@pytest.fixture
def tiny_teacher(tmp_path: Path) -> Iterator[Path]:
    """A teacher of one convolution and an architecture `tiny`, which compile in seconds."""
    with tiny_model():
        yield write_tiny_teacher(tmp_path / "tiny.safetensors")


def pretrain_once(model: str, runtime: Runtime) -> tuple[float, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (32, 1, 16, 16), dtype=torch.uint8, generator=draw)
    images = ImageSet(pixels, torch.randint(0, 4, (32,), generator=draw), tuple("abcd"))
    values = {"data": {"name": "digits"}, "model": {"name": model}, "batch_size": 32, "label_smoothing": 0.1}
    settings = PretrainSettings.model_validate({**values, "runtime": {"compile": runtime.compiled}})
    pretraining = _Pretraining(settings, runtime, images, images, make_model(settings, runtime, images))
    shifts = pretraining.trainee.augmentation.draw(32, draw)
    pretraining.model.train()
    loss = pretraining.trainee.step(images.images, images.labels, *shifts)["loss"].item()
    return loss, gradients_of(pretraining.model)


def test_a_distillation_step_is_the_formula_in_float64(teacher_file: Path):
    distillation = make_distillation(teacher_file, "wrn10_half", PLAIN)
    student = copy.deepcopy(distillation.student).double().train()
    loss, gradients, images, shifts = distil_once(distillation)
    mean, deviation = distillation.card.mean[0], distillation.card.deviation[0]
    views = (crop_and_flip(images, shifts).double() - mean) / deviation
    teacher_probabilities = F.softmax(copy.deepcopy(distillation.teacher).double()(views) / TEMPERATURE, dim=1)
    student_probabilities = F.softmax(student(views) / TEMPERATURE, dim=1)
    divergence = (teacher_probabilities * (teacher_probabilities / student_probabilities).log()).sum(1).mean()
    (TEMPERATURE**2 * divergence).backward()
    assert loss == pytest.approx(TEMPERATURE**2 * divergence.item(), abs=OF_A_DIVERGENCE)
    assert distance(gradients, gradients_of(student)) < OF_FLOAT32


def test_a_distillation_step_on_blended_images_is_the_formula_in_float64(teacher_file: Path):
    distillation = make_distillation(teacher_file, "wrn10_half", PLAIN, mixup=0.5)
    student = copy.deepcopy(distillation.student).double().train()
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(32, *distillation.card.input_shape, generator=draw)
    *shifts, partners, shares = distillation.student_steps.draw(draw)
    distillation.student.train()
    loss = distillation.trainee.step(images, *shifts, partners, shares)["loss"].item()
    crops, mixture = crop_and_flip(images, Shifts(*shifts)).double(), shares.double()
    assert 0 < mixture.count_nonzero() < 32
    blended = (1 - mixture) * crops + mixture * crops[partners]
    views = (blended - distillation.card.mean[0]) / distillation.card.deviation[0]
    teacher_probabilities = F.softmax(copy.deepcopy(distillation.teacher).double()(views) / TEMPERATURE, dim=1)
    student_probabilities = F.softmax(student(views) / TEMPERATURE, dim=1)
    divergence = (teacher_probabilities * (teacher_probabilities / student_probabilities).log()).sum(1).mean()
    (TEMPERATURE**2 * divergence).backward()
    assert loss == pytest.approx(TEMPERATURE**2 * divergence.item(), abs=OF_A_DIVERGENCE)
    assert distance(gradients_of(distillation.student), gradients_of(student)) < OF_FLOAT32


def test_without_mixup_nothing_is_drawn_but_crops_and_flips(teacher_file: Path):
    distillation = make_distillation(teacher_file, "wrn10_half", PLAIN, mixup=0.0)
    ours, theirs = (torch.Generator().manual_seed(0) for _ in range(2))
    for _ in range(2):
        found = distillation.student_steps.draw(ours)
        expected = distillation.augmentation.draw(32, theirs)
        assert len(found) == len(expected) == 3
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_batches_from_a_later_step_on_are_those_of_the_whole_epoch(teacher_file: Path, mixup: float):
    distillation = make_distillation(teacher_file, "wrn10_half", PLAIN, mixup=mixup, passes=40)
    pool = distillation.synthesizer.pool
    assert pool is not None
    pixels = torch.randint(0, 256, (64, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pool.append(pixels, torch.zeros(64, dtype=torch.int64))
    whole = list(islice(distillation.student_steps.batches(0, 0, 0), 5))
    assert len(whole[0]) == (6 if mixup else 4)
    for start in range(1, 5):
        for found, expected in zip(distillation.student_steps.batches(0, 0, start), whole[start:], strict=False):
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_distillation_step_in_bf16_equals_the_plain_one(teacher_file: Path):
    loss, gradients, *_ = distil_once(make_distillation(teacher_file, "wrn10_half", BF16))
    plain_loss, plain, *_ = distil_once(make_distillation(teacher_file, "wrn10_half", PLAIN))
    assert loss == pytest.approx(plain_loss, rel=40**0.5 * 2**-8)
    assert distance(gradients, plain) < OF_BF16


@pytest.mark.slow
def test_a_compiled_distillation_step_equals_the_plain_one(tiny_teacher: Path):
    loss, gradients, *_ = distil_once(make_distillation(tiny_teacher, "tiny", COMPILED))
    plain_loss, plain, *_ = distil_once(make_distillation(tiny_teacher, "tiny", PLAIN))
    assert loss == pytest.approx(plain_loss, abs=OF_A_DIVERGENCE)
    assert distance(gradients, plain) < OF_FLOAT32


@pytest.mark.slow
def test_a_training_step_in_bf16_equals_the_plain_one():
    (loss, gradients), (plain_loss, plain) = (pretrain_once("wrn10_half", each) for each in (BF16, PLAIN))
    assert loss == pytest.approx(plain_loss, rel=40**0.5 * 2**-8)
    assert distance(gradients, plain) < OF_BF16


def test_a_compiled_training_step_equals_the_plain_one(tiny_teacher: Path):
    (loss, gradients), (plain_loss, plain) = (pretrain_once("tiny", each) for each in (COMPILED, PLAIN))
    assert loss == pytest.approx(plain_loss, abs=OF_A_CROSS_ENTROPY)
    assert distance(gradients, plain) < OF_FLOAT32
