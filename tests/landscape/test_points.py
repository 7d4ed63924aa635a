from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gapssg.core.augment import Normalization
from gapssg.core.runtime import Runtime
from gapssg.data import load_split
from gapssg.landscape.directions import directions_through, random_directions
from gapssg.landscape.layout import Layout
from gapssg.landscape.points import Plane, PointEvaluator
from gapssg.landscape.samples import Samples
from gapssg.models.model_file import load_model
from gapssg.synthesis.losses import distillation_divergence

COUNT = 50
MEAN, DEVIATION = 0.3, 0.4
NORMALIZATION = Normalization.from_statistics((MEAN,), (DEVIATION,), torch.device("cpu"))


@pytest.fixture
def samples() -> Samples:
    images = load_split("digits", "test")
    return Samples(images.images[:COUNT], images.labels[:COUNT])


def plane_around(module: torch.nn.Module) -> Plane:
    layout = Layout.of(module)
    origin = layout.flatten(module.state_dict())
    return Plane(origin, random_directions(origin, layout, [1, 2], biases_and_norms=True), layout)


@pytest.mark.parametrize("soft", [False, True])
def test_points_are_those_of_a_plain_loop(teacher_file: Path, runtime: Runtime, samples, soft):
    module = load_model(teacher_file).module
    if soft:
        logits = torch.randn(COUNT, 10)
        samples = Samples(samples.images, logits.argmax(dim=1), logits, temperature=4.0)
    plane = plane_around(module)
    points = [(0.0, 0.0), (0.3, -0.2), (-0.5, 0.5)]
    losses, accuracies = PointEvaluator(module, NORMALIZATION, samples, runtime, batch_size=16).measure(plane, points)
    for index, (first, second) in enumerate(points):
        plain = copy.deepcopy(module).double()
        weights = plane.origin.double() + first * plane.directions[0] + second * plane.directions[1]
        plain.load_state_dict(plane.layout.split(weights), strict=False)
        with torch.no_grad():
            logits = plain((samples.images.double() / 255 - MEAN) / DEVIATION)
        expected = F.cross_entropy(logits, samples.labels)
        if soft:
            expected = distillation_divergence(logits, samples.teacher_logits.double(), 4.0)
        # A float32 layer of n products is off by about sqrt(n) roundings, 16 layers in a row by 16 times that; both
        # losses change by at most (times T = 4) twice the largest change of a logit.
        roundings = 16 * (64 * 9) ** 0.5 * torch.finfo(torch.float32).eps
        tolerance = 2 * (4 if soft else 1) * roundings * logits.abs().max().item()
        assert losses[index].item() == pytest.approx(expected.item(), abs=tolerance)
        hits = (logits.argmax(dim=1) == samples.labels).double().mean().item()
        assert accuracies[index].item() == pytest.approx(hits, abs=1.5 / COUNT)  # a tie may break the other way


def test_a_point_does_not_depend_on_earlier_points_and_the_model_is_unchanged(teacher_file, runtime, samples):
    module = load_model(teacher_file).module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    plane = plane_around(module)
    for recalibrate in (False, True):
        evaluator = PointEvaluator(module, NORMALIZATION, samples, runtime, recalibrate=recalibrate)
        first = evaluator.measure(plane, [(0.0, 0.0)])[0]
        again = evaluator.measure(plane, [(0.4, 0.4), (0.0, 0.0)])[0]
        assert torch.equal(first[0], again[1])
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_bfloat16_is_close_to_float32(teacher_file, runtime, samples):
    module = load_model(teacher_file).module
    plane = plane_around(module)
    points = [(0.0, 0.0), (0.3, -0.2)]
    exact, _ = PointEvaluator(module, NORMALIZATION, samples, runtime).measure(plane, points)
    coarse, _ = PointEvaluator(module, NORMALIZATION, samples, replace(runtime, precision="bf16")).measure(
        plane, points
    )
    assert not torch.equal(exact, coarse)
    # 16 layers, each rounded to 8 bits (2**-9 on average, of either sign), leave logits off by about 4 * 2**-9.
    torch.testing.assert_close(coarse, exact, rtol=0.05, atol=0.02)


def test_a_line_passes_through_its_models_including_batch_norm_statistics(teacher_file, runtime, samples):
    first, second = (load_model(teacher_file).module for _ in range(2))
    with torch.no_grad():
        for value in second.state_dict().values():
            if value.is_floating_point():
                value.mul_(1.1)
    layout = Layout.of(first, statistics=True)
    directions, _ = directions_through(torch.stack([layout.flatten(m.state_dict()) for m in (first, second)]))
    plane = Plane(layout.flatten(first.state_dict()), directions, layout)
    losses, _ = PointEvaluator(first, NORMALIZATION, samples, runtime).measure(plane, [(0.0,), (1.0,)])
    for loss, module in zip(losses, (first, second), strict=True):
        own, _ = PointEvaluator(module, NORMALIZATION, samples, runtime).measure(plane_around(module), [(0.0, 0.0)])
        assert loss.item() == pytest.approx(own[0].item(), rel=1e-4)


def test_a_plane_does_not_go_below_its_lowest_statistics(teacher_file, runtime, samples):
    module = load_model(teacher_file).module
    layout = Layout.of(module, statistics=True)
    origin = layout.flatten(module.state_dict())
    down = torch.zeros_like(origin)
    for name, part in layout.split(down).items():
        if name.endswith("running_var"):
            part.fill_(-1e6)
    evaluator = PointEvaluator(module, NORMALIZATION, samples, runtime)
    free, _ = evaluator.measure(Plane(origin, down[None], layout), [(1.0,)])
    held, _ = evaluator.measure(Plane(origin, down[None], layout, lowest=origin), [(1.0,)])
    assert free.isnan().all()
    assert torch.equal(held, evaluator.measure(Plane(origin, down[None], layout), [(0.0,)])[0])


def test_recalibration_gives_the_statistics_of_the_samples(teacher_file, runtime, samples):
    module = load_model(teacher_file).module
    plane = plane_around(module)
    stale = copy.deepcopy(module)
    for name, buffer in stale.named_buffers():
        if name.endswith("running_var"):
            buffer.mul_(7)
    options: dict[str, Any] = {"batch_size": COUNT, "recalibrate": True}
    fresh, _ = PointEvaluator(stale, NORMALIZATION, samples, runtime, **options).measure(plane, [(0.1, 0.1)])
    plain = copy.deepcopy(stale)
    plain.load_state_dict(
        plane.layout.split(plane.origin + 0.1 * plane.directions[0] + 0.1 * plane.directions[1]), strict=False
    )
    for part in plain.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0  # the last batch's statistics alone
    images = (samples.images / 255 - MEAN) / DEVIATION
    with torch.no_grad():
        plain.train()(images)
        expected = F.cross_entropy(plain.eval()(images), samples.labels)
    assert fresh[0].item() == pytest.approx(expected.item(), rel=1e-4)
    unchanged, _ = PointEvaluator(stale, NORMALIZATION, samples, runtime).measure(plane, [(0.1, 0.1)])
    assert abs(unchanged[0].item() - expected.item()) > 1e-2
