"""The whole loss of a step, gradients included, against its formula written out in float64 without shared code."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gapssg.synthesis import method_classes
from gapssg.synthesis.base import GeneratorMethodSettings
from gapssg.synthesis.cmi import CMISettings
from gapssg.synthesis.contrastive_inversion import ContrastiveInversion, resized_crop
from gapssg.synthesis.deepinversion import DeepInversionSettings
from gapssg.synthesis.fast import FastSettings
from gapssg.synthesis.generator_training import GeneratorTraining
from gapssg.synthesis.meta_inversion import MetaInversion
from gapssg.synthesis.pixel_inversion import PixelInversion
from tests.synthesis.context import make_context, make_student
from tests.synthesis.formulas import (
    COUNT,
    TARGETS,
    Networks,
    assert_follows,
    cross_entropy,
    leaning_student,
    make_networks,
    masked_divergence,
    normalized,
    shifted,
    step,
    stream,
)
from tests.tiny import tiny_model

GENERATOR: dict[str, Any] = {"synthesis_batch_size": COUNT, "generator_width": 8, "latent_size": 16}


@pytest.fixture(autouse=True)
def tiny_networks() -> Iterator[None]:
    with tiny_model():
        yield


def generated(inversion: Any) -> tuple[nn.Module, Tensor, Tensor]:
    """The generator in float64, its latent, and its images."""
    with torch.no_grad():
        inversion.latent.normal_(generator=stream(3))
        inversion.generator.reset_parameters(stream(5))
    generator, latent = copy.deepcopy(inversion.generator).double(), inversion.latent.detach().double()
    latent.requires_grad_()
    return generator, latent, generator(latent)


def test_deepinversion_follows_its_formula(runtime):
    # Weights that make each term large enough to matter in float32.
    weights = {"statistics_weight": 2.0, "target_weight": 3.0, "adversarial_weight": 500.0}
    weights |= {"variation_weight": 0.7, "norm_weight": 0.05}
    settings = DeepInversionSettings(synthesis_batch_size=COUNT, pixel_steps=2, **weights)
    inversion = PixelInversion(settings, make_context(runtime, "tiny"))
    networks = make_networks(inversion, runtime)
    with torch.no_grad():
        inversion.pixels.normal_(generator=stream(3))
    rows, columns = torch.arange(16).roll(2), torch.arange(16).roll(-1).flip(0)
    outputs = step(inversion, (rows, columns))

    pixels = inversion.pixels.detach().double().requires_grad_()
    teacher, student = networks.logits(pixels[:, :, rows][:, :, :, columns])
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    middle = (p + q) / 2
    divergence = sum((middle * (middle / each).log()).sum(1).mean() for each in (p, q)) / 2
    variation = (pixels[..., 1:] - pixels[..., :-1]).abs().mean() + (
        pixels[..., 1:, :] - pixels[..., :-1, :]
    ).abs().mean()
    variation += (pixels[..., 1:, 1:] - pixels[..., :-1, :-1]).abs().mean()
    variation += (pixels[..., 1:, :-1] - pixels[..., :-1, 1:]).abs().mean()
    expected = 2 * networks.statistics_loss(networks.moments()) + 3 * cross_entropy(teacher)
    expected = expected - 500 * divergence + 0.7 * variation + 0.05 * (pixels**2).sum().sqrt()
    assert_follows(outputs, expected, [(inversion.pixels, pixels)])


def test_the_meta_generator_of_fast_starts_and_restarts_as_published(runtime):
    """It starts as torch initialises layers; later the first ones are redrawn, the scale of the norm around 0."""
    settings = FastSettings(**GENERATOR, generator_steps=2, restart=0.5)
    inversion = MetaInversion(settings, make_context(runtime, "tiny"))
    epoch = settings.restart_epoch(inversion.context.epochs)
    assert epoch is not None
    meta = inversion.meta
    bound = meta.linear.in_features**-0.5
    assert 0.9 * bound < meta.linear.weight.abs().max() <= bound  # uniform in +- 1 / sqrt(inputs)
    assert torch.equal(meta.first_norm.weight, torch.ones_like(meta.first_norm.weight))
    before = {name: tensor.clone() for name, tensor in meta.state_dict().items()}
    inversion._begin(epoch - 1)
    for name, tensor in meta.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    inversion._begin(epoch)
    for name, tensor in meta.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.startswith(("linear.", "first_norm.weight")), name
    assert meta.first_norm.weight.abs().max() < 0.1  # five deviations of 0.02
    for name, tensor in inversion.generator.state_dict().items():
        assert torch.equal(tensor, meta.state_dict()[name]), name


def test_fast_follows_its_formula_with_a_running_average(runtime):
    settings = FastSettings(**GENERATOR, generator_steps=2, adversarial_weight=50.0)
    inversion = MetaInversion(settings, make_context(runtime, "tiny"))
    networks = make_networks(inversion, runtime)
    generator, latent, images = generated(inversion)
    with torch.no_grad():
        inversion._earlier.uniform_(0.5, 2, generator=stream(6))
        inversion._share_of_earlier.fill_(0.9)
        inversion._adversarial.fill_(1)
    draws = inversion.context.augmentation.draw(COUNT, stream(4))
    outputs = step(inversion, draws)

    teacher, student = networks.logits(normalized(shifted(images, *draws)))
    earlier = iter(torch.split(inversion._earlier.double(), inversion._sizes))
    mixed: Any = [tuple(0.1 * now + 0.9 * next(earlier) for now in pair) for pair in networks.moments()]
    expected = 10 * networks.statistics_loss(mixed) + 0.4 * cross_entropy(teacher)
    expected = expected - 50 * masked_divergence(teacher, student)
    pairs = zip([inversion.latent, *inversion.generator.parameters()], [latent, *generator.parameters()], strict=True)
    assert_follows(outputs, expected, list(pairs))


def test_the_running_average_takes_a_tenth_of_each_synthesis(runtime):
    settings = FastSettings(**GENERATOR, generator_steps=2)
    inversion, student = MetaInversion(settings, make_context(runtime, "tiny")), make_student(runtime, "tiny").eval()
    averages, latest = [], []
    for epoch in range(3):
        for _ in inversion.synthesise(student, TARGETS, epoch):
            pass
        averages.append(inversion._earlier.double())
        latest.append(inversion._latest.double())
    expected = latest[0]  # there is nothing earlier
    torch.testing.assert_close(averages[0], expected, rtol=0, atol=0)
    for found, now in zip(averages[1:], latest[1:], strict=True):
        expected = 0.1 * now + 0.9 * expected
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(found, now, rtol=1e-3)


def test_cmi_follows_its_formula_with_a_bank(runtime):
    weights = {"adversarial_weight": 50.0, "contrast_weight": 4.0}
    settings = CMISettings(**GENERATOR, generator_steps=2, bank_size=20, negatives=12, head_size=6, **weights)
    inversion = ContrastiveInversion(settings, make_context(runtime, "tiny"))
    networks = make_networks(inversion, runtime)
    generator, latent, images = generated(inversion)
    with torch.no_grad():
        inversion.bank.uniform_(-1, 2, generator=stream(6))
    draws = inversion._draw(stream(4), 1)  # one batch is in the bank
    shifts, box, rows = draws[:3], draws[3:8], draws[8][:COUNT]
    outputs = step(inversion, draws)

    teacher, student = networks.logits(normalized(shifted(images, *shifts)))
    expected = networks.statistics_loss(networks.moments()) + cross_entropy(teacher)
    expected = expected - 50 * masked_divergence(teacher, student)
    whole = networks.features()
    networks.logits(
        normalized(resized_crop(images, *(each.double() if each.is_floating_point() else each for each in box)))
    )
    local = networks.features()
    banked = inversion.bank.double()[rows]
    width = whole.shape[1]
    head = copy.deepcopy(inversion.head).double()
    directions = []
    for features in (torch.cat([local, banked[:, :width]]), torch.cat([whole, banked[:, width:]])):
        mapped = head(features)
        directions.append(mapped / (mapped**2).sum(1, keepdim=True).sqrt())
    similar = directions[0] @ directions[1].detach().T / 0.2
    losses = -similar.log_softmax(1).diagonal()
    expected = expected + 4 * (losses[:COUNT].mean() + losses[COUNT:].mean())
    pairs = zip(
        [inversion.latent, *inversion.generator.parameters(), *inversion.head.parameters()],
        [latent, *generator.parameters(), *head.parameters()],
        strict=True,
    )
    assert_follows(outputs, expected, list(pairs))


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    return temperature**2 * (p * (p / q).log()).sum(1).mean()


def confidence(teacher: Tensor) -> Tensor:
    return -teacher.log_softmax(1).max(1).values.mean()


def balance(teacher: Tensor) -> Tensor:
    mean = teacher.softmax(1).mean(0)
    return (mean * mean.log()).sum()


Formula = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""The loss, of teacher's logits, student's logits, teacher's features and statistics loss."""
FORMULAS: dict[str, tuple[dict[str, float], Formula]] = {
    "dafl": (
        {"confidence_weight": 2.0, "activation_weight": 3.0, "balance_weight": 5.0},
        lambda t, s, f, bn: 2 * confidence(t) - 3 * f.abs().mean() + 5 * balance(t),
    ),
    "zskt": ({"adversarial_weight": 50.0}, lambda t, s, f, bn: -50 * divergence(t, s, 0.5)),
    "dfad": ({}, lambda t, s, f, bn: -(s - t).abs().mean()),
    "mad": (
        {"statistics_weight": 2.0, "confidence_weight": 3.0, "adversarial_weight": 50.0},
        lambda t, s, f, bn: 2 * bn + 3 * confidence(t) - 50 * divergence(t, s, 0.5),
    ),
    "dfq": (
        {"statistics_weight": 2.0, "confidence_weight": 3.0, "adversarial_weight": 50.0, "balance_weight": 5.0},
        lambda t, s, f, bn: 2 * bn + 3 * confidence(t) - 50 * divergence(t, s, 0.5) + 5 * balance(t),
    ),
}


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("name", FORMULAS)
def test_methods_that_sample_their_generator_follow_their_formulas(runtime, name: str, augment: bool):
    weights, formula = FORMULAS[name]
    (kind,) = (each for each in method_classes() if each.model_fields["name"].default == name)
    given = {**GENERATOR, **weights, "generator_steps": 1, "temperature": 0.5, "augment": augment}
    settings = kind.model_validate(given)
    assert isinstance(settings, GeneratorMethodSettings)
    context = make_context(runtime, "wrn10_half")  # with several batch norms
    training, student = GeneratorTraining(settings, context), leaning_student(context.teacher, runtime)
    networks, generator = Networks(context.teacher, student), copy.deepcopy(training.generator).double()
    latents, *shifts = training._draw(runtime.random_stream("generator-steps", 0, 0, 0))
    ((_, terms),) = training.synthesis_steps(student, 0, 0)

    features: list[Tensor] = []
    networks.teacher.get_submodule("classifier").register_forward_pre_hook(lambda _, given: features.append(given[0]))
    images = generator(latents.double())
    logits = networks.logits(normalized(shifted(images, *shifts) if augment else images))
    expected = formula(*logits, features[0], networks.statistics_loss(networks.moments()))
    # The gradients of the step are still there.
    pairs = list(zip(training.generator.parameters(), generator.parameters(), strict=True))
    assert_follows({"loss": terms["synthesis_loss"]}, expected, pairs)
