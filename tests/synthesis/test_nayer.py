from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gapssg.core.runtime import Runtime
from gapssg.errors import InputError
from gapssg.synthesis.nayer import NAYERSettings
from gapssg.synthesis.noisy_inversion import NoisyInversion, groups_of, label_embeddings, noisy_layers
from gapssg.synthesis.requirements import missing_for
from tests.synthesis.context import make_context, make_student
from tests.synthesis.formulas import (
    COUNT,
    TARGETS,
    assert_follows,
    cross_entropy,
    make_networks,
    masked_divergence,
    normalized,
    shifted,
    step,
    stream,
)
from tests.tiny import tiny_model

SMALL: dict[str, Any] = {"synthesis_batch_size": COUNT, "generator_width": 8, "latent_size": 16, "generator_steps": 2}


def test_each_image_passes_through_the_layer_of_its_group():
    weights, inputs = (torch.randn(size, generator=stream(1), dtype=torch.float64) for size in ((2, 3, 4), (8, 3)))
    # The first image of a class is in group 0, the second in group 1.
    groups = [0, 0, 1, 0, 0, 1, 0, 1]
    expected = torch.stack([image @ weights[group] for image, group in zip(inputs, groups, strict=True)])
    torch.testing.assert_close(noisy_layers(inputs, weights, TARGETS, groups_of(TARGETS, 5), 5), expected)


def test_a_step_follows_its_formula(runtime: Runtime):
    with tiny_model():
        inversion = NoisyInversion(NAYERSettings(**SMALL, adversarial_weight=50.0), make_context(runtime, "tiny"))
        networks = make_networks(inversion, runtime)
    with torch.no_grad():
        inversion.latent.normal_(generator=stream(3))
        inversion._earlier.uniform_(0.5, 2, generator=stream(6))
        inversion._share_of_earlier.fill_(0.9)
        inversion._adversarial.fill_(1)
    inversion._reset_generator(stream(5))
    generator: Any = copy.deepcopy(inversion.generator).double()
    noise = inversion.latent.detach().double().requires_grad_()
    draws = inversion.context.augmentation.draw(COUNT, stream(4))
    outputs = step(inversion, draws)

    rows = inversion.context.teacher.get_parameter("classifier.weight").detach().double()[TARGETS]
    mean, variance = rows.mean(0), rows.var(0, correction=0)
    embedded = (rows - mean) / (variance + 1e-5).sqrt() * generator.label_norm.weight + generator.label_norm.bias
    latents = [
        row @ noise[group, :-1] + noise[group, -1]
        for row, group in zip(embedded, [0, 0, 1, 0, 0, 1, 0, 1], strict=True)
    ]
    teacher, student = networks.logits(normalized(shifted(generator(torch.stack(latents)), *draws)))
    earlier = iter(torch.split(inversion._earlier.double(), inversion._sizes))
    mixed: Any = [tuple(0.1 * now + 0.9 * next(earlier) for now in pair) for pair in networks.moments()]
    expected = 10 * networks.statistics_loss(mixed) + 0.5 * cross_entropy(teacher)
    expected = expected - 50 * masked_divergence(teacher, student)
    pairs = zip([inversion.latent, *inversion.generator.parameters()], [noise, *generator.parameters()], strict=True)
    assert_follows(outputs, expected, list(pairs))


def test_the_generator_is_kept_for_its_life_and_the_noise_redrawn_for_each_batch(runtime: Runtime):
    settings = NAYERSettings(**SMALL, generator_life=2, warm_up=0)
    with tiny_model():
        inversion = NoisyInversion(settings, replace(make_context(runtime, "tiny"), epochs=4))
        student = make_student(runtime, "tiny").eval()
    starts: list[Tensor] = []
    noise: list[Tensor] = []
    begin = inversion._begin

    def spy(epoch: int) -> None:
        begin(epoch)
        starts.append(inversion.generator.linear.weight.detach().clone())
        noise.append(inversion.latent.detach().clone())

    inversion._begin = spy  # type: ignore[method-assign]
    ends = []
    for epoch in range(3):
        list(inversion.synthesise(student, TARGETS, epoch))
        ends.append(inversion.generator.linear.weight.detach().clone())
    assert torch.equal(starts[1], ends[0])  # kept
    assert not torch.equal(starts[2], ends[1])  # re-initialised after two batches
    assert not torch.equal(noise[0], noise[1])
    assert not noise[0][:, -1].any()  # the biases
    assert noise[0][:, :-1].std().item() == pytest.approx(1, abs=0.1)


def test_the_published_schedule_maps_to_400_epochs():
    settings = NAYERSettings()
    restarts = [epoch for epoch in range(400) if settings.restarts_generator(epoch, 400)]
    # 10 published epochs of 10 batches in the warm-up of 20, then 10 of 2.
    assert restarts == [0, 100, *range(200, 400, 20)]
    assert settings.warm_up_epochs(400) == settings.adversarial_from(400) == 200


def test_label_embeddings_may_come_from_a_file(runtime: Runtime, tmp_path: Path):
    path = tmp_path / "texts.safetensors"
    settings = NAYERSettings(**SMALL, label_embeddings=path)
    context = make_context(runtime)
    save_file({"texts": torch.eye(5, 7)}, path)
    assert torch.equal(label_embeddings(settings, context), torch.eye(5, 7))
    for tensors, sentence in (
        ({"texts": torch.eye(4, 7)}, r"must hold one tensor with a row for each of the 5 classes, not \(4, 7\)"),
        ({"a": torch.eye(5), "b": torch.ones(5, 5)}, "must hold one tensor"),
        ({"texts": torch.ones(5, 0)}, "must hold one tensor"),
        ({"texts": torch.full((5, 7), torch.nan)}, "not finite"),
        ({"texts": torch.full((5, 7), 1e300, dtype=torch.float64)}, "not finite"),
        ({"texts": torch.eye(5, 7).int()}, r"holds torch\.int32, not floating-point numbers"),
        ({"texts": torch.eye(5, 7) * 2e19}, "not finite or larger than 1e19"),  # whose squares are infinite in float32
        ({"texts": 1e-20 * torch.eye(5, 7)}, "has equal rows, or nearly so"),
        ({"texts": 1 + 1e-6 * torch.arange(5.0)[:, None].expand(5, 7).contiguous()}, "has equal rows, or nearly so"),
        ({"texts": torch.zeros(5, 7)}, "has equal rows"),
        ({"texts": torch.eye(5, 7)[[0, 1, 2, 3, 1]]}, "has equal rows"),
    ):
        save_file(tensors, path)
        with pytest.raises(InputError, match=sentence):
            label_embeddings(settings, context)
    for tensors in ({"texts": torch.arange(5.0)[:, None]}, {"texts": (100 + torch.eye(5, 512)).bfloat16()}):
        save_file(tensors, path)
        assert torch.equal(label_embeddings(settings, context), tensors["texts"].float())
    torch.save(torch.eye(5), path)
    with pytest.raises(InputError, match=r"not a safetensors file; save its tensor with safetensors\.torch\.save_file"):
        label_embeddings(settings, context)


def test_a_teacher_without_a_linear_layer_needs_a_file(runtime: Runtime):
    context = make_context(runtime)
    teacher = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    missing = missing_for(NAYERSettings, teacher, (1, 16, 16), 5)
    assert missing == "a last linear layer or method.label_embeddings"
    with pytest.raises(InputError, match=r"come from a linear layer, .*; add --set method\.label_embeddings=FILE"):
        label_embeddings(NAYERSettings(), replace(context, teacher=teacher))
