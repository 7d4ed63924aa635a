from __future__ import annotations

import copy
from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gapssg.core.augment import Normalization
from gapssg.models.description import Signature
from gapssg.models.signature import adapt
from gapssg.synthesis.base import InversionSettings
from gapssg.synthesis.gapssg import GapSSGSettings
from gapssg.synthesis.gapssg_fast import GapSSGFastSettings
from gapssg.synthesis.input_statistics import expected_input_statistics, observed_input_statistics
from gapssg.synthesis.inversion import GeneratorInversion
from gapssg.synthesis.losses import agreement_loss, disagreement_loss, regulatory_factor
from tests.no_waiting import NoWaiting
from tests.synthesis.context import make_context
from tests.synthesis.formulas import (
    COUNT,
    TARGETS,
    assert_follows,
    cross_entropy,
    normalized,
    shifted,
    step,
    stream,
)

WITHOUT_BATCH_NORM = "tests.models.factories:without_linear_layer"
SMALL: dict[str, Any] = {"synthesis_batch_size": COUNT, "generator_steps": 3, "generator_width": 4, "latent_size": 8}


def make_normalization(mean: tuple[float, ...], deviation: tuple[float, ...]) -> Normalization:
    return Normalization.from_statistics(mean, deviation, torch.device("cpu"))


@pytest.mark.parametrize(
    ("mean", "deviation"),
    [((0.1307,), (0.3081,)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.4914, 0.4822), (0.2470, 0.2435))],
)
def test_a_normalisation_by_the_training_images_expects_mean_0_and_variance_1(mean, deviation):
    expected = expected_input_statistics(make_normalization(mean, deviation))
    assert torch.equal(expected[0], torch.zeros(len(mean)))
    assert torch.equal(expected[1], torch.ones(len(mean)))


@pytest.mark.parametrize(("mean", "deviation"), [(0.5, 0.5), (0.0, 1.0), (0.0, 1 / 255), (127.5, 127.5)])
def test_a_normalisation_by_convention_expects_the_statistics_of_photographs(mean, deviation):
    normalization = make_normalization((mean, mean), (deviation, deviation))
    expected = expected_input_statistics(normalization)
    pixels = torch.randn(100, 2, 8, 8, generator=stream(0), dtype=torch.float64)
    pixels = (pixels - pixels.mean((0, 2, 3), keepdim=True)) / pixels.std((0, 2, 3), keepdim=True, correction=0)
    photographs = (0.45 + 0.23 * pixels - mean) / deviation
    torch.testing.assert_close(expected[0].double(), photographs.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(expected[1].double(), photographs.var((0, 2, 3), correction=0), rtol=1e-6, atol=0)


def test_one_channel_by_convention_decides_for_all():
    mean, variance = expected_input_statistics(make_normalization((0.5, 0.3), (0.5, 0.2)))
    assert mean.tolist() == pytest.approx([-0.1, 0.75])
    assert variance.tolist() == pytest.approx([0.46**2, 1.15**2])


@pytest.mark.parametrize("relative", [False, True])
def test_images_with_the_statistics_of_the_normalisation_have_distance_0(relative):
    images = torch.randn(64, 2, 8, 8, generator=stream(0))
    images = (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True, correction=0)
    teacher, distances = nn.Flatten(), list[Tensor]()
    expected = expected_input_statistics(make_normalization((0.3, 0.4), (0.2, 0.3)))
    with observed_input_statistics(teacher, distances, expected, relative):
        teacher(images)
        teacher(images + 1)
    teacher(images)  # not observed
    assert len(distances) == 2
    # 4096 numbers of about 1 per channel, summed in float32.
    assert distances[0].item() == pytest.approx(0, abs=1e-5)
    # The mean of each of two channels is 1 too high: the mean of the squares, and the norm.
    assert distances[1].item() == pytest.approx(1 if relative else 2**0.5, rel=1e-4)


@pytest.mark.parametrize("settings", [GapSSGSettings(**SMALL), GapSSGFastSettings(**SMALL)])
def test_the_generators_gradient_equals_the_plain_formula_in_float64(runtime, settings: InversionSettings):
    inversion = GeneratorInversion(settings, make_context(runtime, WITHOUT_BATCH_NORM))
    with torch.no_grad():
        inversion.latent.normal_(generator=stream(3))
    student = copy.deepcopy(make_context(runtime).teacher)
    inversion._student = student
    inversion._targets.copy_(TARGETS)
    shifts = inversion.context.augmentation.draw(COUNT, stream(4))
    outputs = step(inversion, shifts)

    generator, latent = copy.deepcopy(inversion.generator).double(), inversion.latent.detach().double()
    generator.zero_grad()
    latent.requires_grad_()
    views = normalized(shifted(generator(latent), *shifts))
    teacher_logits = copy.deepcopy(inversion.context.teacher).double()(views)
    student_logits = copy.deepcopy(student).double()(views)
    mean = views.mean()
    variance = ((views - mean) ** 2).mean()
    disagreement = disagreement_loss(teacher_logits, student_logits, TARGETS)
    agreement = agreement_loss(teacher_logits, student_logits, TARGETS)
    if isinstance(settings, GapSSGSettings):
        statistics = mean.abs() + (variance - 1).abs()
        weight = 0.5 * (1 - regulatory_factor(teacher_logits, student_logits))
        expected = statistics + weight * (disagreement + 0.2 * agreement)
    else:
        statistics = mean**2 + (((variance + 1e-5) / (1 + 1e-5)).sqrt() - 1) ** 2
        expected = statistics + cross_entropy(teacher_logits) + disagreement + 0.2 * agreement
    pairs = [(inversion.latent, latent), *zip(inversion.generator.parameters(), generator.parameters(), strict=True)]
    assert_follows(outputs, expected, pairs)


def test_a_step_waits_for_nothing(runtime):
    inversion = GeneratorInversion(GapSSGFastSettings(**SMALL), make_context(runtime, WITHOUT_BATCH_NORM))
    steps = inversion.synthesise(make_context(runtime).teacher, TARGETS, 0)
    next(steps)
    with NoWaiting():
        next(steps)


def images_of(synthesis: Generator[Any, None, Tensor]) -> Tensor:
    while True:
        try:
            next(synthesis)
        except StopIteration as end:
            images: Tensor = end.value
            return images


def test_a_synthesis_resumes_bit_for_bit(runtime):
    context, student = make_context(runtime, WITHOUT_BATCH_NORM), make_context(runtime).teacher
    whole, interrupted, resumed = (GeneratorInversion(GapSSGFastSettings(**SMALL), context) for _ in range(3))
    next(interrupted.synthesise(student, TARGETS, 0))
    resumed.load_state_dict({name: tensor.clone() for name, tensor in interrupted.state_dict().items()})
    assert torch.equal(*(images_of(inversion.synthesise(student, TARGETS, 0)) for inversion in (resumed, whole)))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor)


def test_the_layout_that_a_teacher_takes_changes_nothing():
    class ChannelsLast(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(1, 2))

    teacher = ChannelsLast()
    adapt(teacher, Signature(input_layout="NHWC"))
    expected = expected_input_statistics(make_normalization((0.3, 0.4, 0.5), (0.2, 0.2, 0.2)))
    images = torch.randn(4, 3, 5, 7, generator=stream(0))
    found: list[Tensor] = []
    for module in (teacher, nn.Flatten()):
        with observed_input_statistics(module, found, expected, relative=True):
            module(images)
    assert torch.equal(found[0], found[1])
