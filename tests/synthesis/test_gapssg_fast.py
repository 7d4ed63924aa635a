"""The default method: statistics relative to the teacher's own, a persistent generator, balanced targets."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from gapssg.core.augment import Augmentation, Normalization
from gapssg.core.runtime import Runtime
from gapssg.errors import Diverged
from gapssg.synthesis.base import InversionSettings
from gapssg.synthesis.batch_norm import observed_statistics
from gapssg.synthesis.context import SynthesisContext
from gapssg.synthesis.gapssg import GapSSGSettings
from gapssg.synthesis.gapssg_fast import GapSSGFastSettings
from gapssg.synthesis.inversion import GeneratorInversion
from gapssg.synthesis.pool_synthesizer import PoolSynthesizer
from tests.synthesis.context import make_context, make_student, snapshot

SMALL: dict[str, Any] = {"synthesis_batch_size": 16, "generator_steps": 3, "generator_width": 8, "latent_size": 16}
SETTINGS = GapSSGFastSettings(**SMALL)
SCALE = 128  # a power of two, by which float32 multiplies without rounding


def make_synthesizer(runtime: Runtime, **changes: Any) -> PoolSynthesizer:
    synthesizer = SETTINGS.model_copy(update=changes).build(make_context(runtime))
    assert isinstance(synthesizer, PoolSynthesizer)
    return synthesizer


def inversion_of(synthesizer: PoolSynthesizer) -> GeneratorInversion:
    assert isinstance(synthesizer.synthesis, GeneratorInversion)
    return synthesizer.synthesis


def synthesise(synthesizer: PoolSynthesizer, epoch: int) -> None:
    list(synthesizer.synthesis_steps(make_student(synthesizer.context.runtime), epoch, 0))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_the_generators_gradient_equals_the_plain_formula_in_float64(runtime):
    """The optimised step against the formulas, written out without shared code."""
    inversion = GeneratorInversion(SETTINGS, make_context(runtime))
    context, student = inversion.context, make_student(runtime).eval()
    with torch.no_grad():
        inversion.latent.normal_(generator=torch.Generator().manual_seed(3))
    targets = torch.arange(16) % 5
    shifts = context.augmentation.draw(16, torch.Generator().manual_seed(4))
    inversion._student = student
    inversion._targets.copy_(targets)
    with inversion._observing():
        terms = inversion._loss(*shifts)
    torch.autograd.backward(terms["loss"])

    generator, latent = copy.deepcopy(inversion.generator).double(), inversion.latent.detach().double()
    generator.zero_grad()
    latent.requires_grad_()
    teacher, student = copy.deepcopy(context.teacher).double(), copy.deepcopy(student).double()
    views = []
    for image, row, column, flip in zip(generator(latent), *shifts, strict=True):
        view = nn.functional.pad(image, (2, 2, 2, 2))[:, 2 + row : 18 + row, 2 + column : 18 + column]
        views.append(view.flip(2) if flip else view)
    distances: list[Tensor] = []

    def observe(layer: nn.Module, arguments: tuple[Tensor], _: object) -> None:
        inputs, deviation = arguments[0], (layer.running_var + layer.eps).sqrt()
        mean = inputs.mean(dim=(0, 2, 3))
        spread = (((inputs - mean[:, None, None]) ** 2).mean(dim=(0, 2, 3)) + layer.eps).sqrt()
        distances.append(
            (((mean - layer.running_mean) / deviation) ** 2).mean() + ((spread / deviation - 1) ** 2).mean()
        )

    for layer in teacher.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(observe)
    batch = (torch.stack(views) - 0.3) / 0.4
    teacher_logits, student_logits = teacher(batch), student(batch)
    assert len(distances) == 7
    rows = torch.arange(16)
    target_loss = -teacher_logits.log_softmax(1)[rows, targets].mean()
    disagreement = -((teacher_logits - student_logits) / 2).log_softmax(1)[rows, targets].mean()
    agreement = -(teacher_logits + student_logits).log_softmax(1)[rows, targets].mean()
    expected = torch.stack(distances).sum() + target_loss + disagreement + 0.2 * agreement
    expected.backward()

    # float32 has 24 bits; two networks of 20 layers lose about 8 of them, and the way back through them 2 more.
    loss, statistics = expected.item(), sum(each.item() for each in distances)
    assert terms["loss"].item() == pytest.approx(loss, rel=2**-16)
    assert terms["relative_statistics_loss"].item() == pytest.approx(statistics, rel=2**-16)
    for ours, theirs in zip(
        [inversion.latent, *inversion.generator.parameters()], [latent, *generator.parameters()], strict=True
    ):
        assert ours.grad is not None
        assert theirs.grad is not None
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=2**-14 * scale)


def test_each_synthesis_keeps_the_generator_and_redraws_the_latent(runtime):
    synthesizer = make_synthesizer(runtime)
    inversion = inversion_of(synthesizer)
    first = snapshot(inversion.generator)
    synthesise(synthesizer, 0)
    learned, latent = snapshot(inversion.generator), inversion.latent.detach().clone()
    assert not torch.equal(learned["linear.weight"], first["linear.weight"])
    for _ in range(200):  # the learning rates become 0 in float32, so that a step changes no weight
        synthesizer.slow_down()
    next(synthesizer.synthesis_steps(make_student(runtime), 1, 0))
    assert all(torch.equal(weight, learned[name]) for name, weight in inversion.generator.named_parameters())
    state = inversion.state_dict()
    assert not torch.equal(state["latent"], latent)
    counts = [tensor for name, tensor in state.items() if name.startswith("moments") and name.endswith("step")]
    assert counts and all(count == 1 for count in counts)  # the optimizer is reset


def test_a_diverged_synthesis_restarts_from_the_generator_it_started_with(runtime, monkeypatch):
    synthesizer = make_synthesizer(runtime)
    inversion = inversion_of(synthesizer)
    synthesise(synthesizer, 0)
    learned, plain = snapshot(inversion.generator), inversion._loss

    def loss(*draws: Tensor) -> dict[str, Tensor]:
        outputs = plain(*draws)
        return {**outputs, "loss": outputs["loss"] + (torch.nan if inversion._steps_done == 2 else 0.0)}

    monkeypatch.setattr(inversion._step, "_loss", loss)
    with pytest.raises(Diverged):
        synthesise(synthesizer, 1)
    assert not torch.equal(inversion.generator.linear.weight, learned["linear.weight"])
    monkeypatch.undo()
    inversion._begin(1)
    assert_same(snapshot(inversion.generator), learned)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_synthesis_resumes_bit_for_bit_between_and_within_batches(runtime, steps):
    whole, interrupted = make_synthesizer(runtime), make_synthesizer(runtime)
    for epoch in range(2):
        synthesise(whole, epoch)
    synthesise(interrupted, 0)
    under_way = interrupted.synthesis_steps(make_student(runtime), 1, 0)
    for _ in range(steps):
        next(under_way)
    state = {name: tensor.clone() for name, tensor in interrupted.state_dict().items()}
    assert any(name.startswith("kept.") for name in state)
    continued = make_synthesizer(runtime)
    continued.load_state_dict(state)
    synthesise(continued, 1)
    assert torch.equal(continued.fresh, whole.fresh)
    assert_same(continued.state_dict(), whole.state_dict())


@pytest.mark.parametrize("count", [2, 4, 5, 16, 63])
def test_targets_are_balanced_over_the_classes(runtime, count):
    synthesizer = make_synthesizer(runtime, synthesis_batch_size=count)
    for epoch in range(3):
        targets = synthesizer._draw_targets(epoch)
        assert targets.shape == (count,)
        assert torch.equal(targets, targets.sort().values)
        counts = torch.bincount(targets, minlength=5)
        assert len(counts) == 5
        assert counts.max() - counts.min() <= 1
        assert torch.equal(targets, make_synthesizer(runtime, synthesis_batch_size=count)._draw_targets(epoch))


def test_the_classes_with_an_extra_target_differ_between_batches(runtime):
    synthesizer = make_synthesizer(runtime, synthesis_batch_size=2)  # of five classes
    drawn = [tuple(synthesizer._draw_targets(epoch).tolist()) for epoch in range(50)]
    # The probability that one of five classes is in none of 50 pairs is below 5 * 0.6 ** 50 < 1e-10.
    assert {target for targets in drawn for target in targets} == set(range(5))
    other = make_synthesizer(replace(runtime, seed=1), synthesis_batch_size=2)
    assert [tuple(other._draw_targets(epoch).tolist()) for epoch in range(50)] != drawn


class _Net(nn.Module):
    """Two convolutions without biases, each before a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.Conv2d(16, 32, 3, 2, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(16), nn.BatchNorm2d(32)])
        self.classifier = nn.Linear(32 * 4, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norms[0](self.first(images)).relu()
        hidden = nn.functional.avg_pool2d(self.norms[1](self.second(hidden)).relu(), 2)
        logits: Tensor = self.classifier(hidden.flatten(1))
        return logits


@pytest.fixture(scope="module")
def digits_teacher() -> nn.Module:
    """A small network trained on the digits, at 16x16 pixels."""
    digits = load_digits()
    images = torch.from_numpy(np.kron(digits.images / 16, np.ones((2, 2)))).float()[:, None]
    labels, draw = torch.from_numpy(digits.target), torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _Net()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        chosen = torch.randint(len(labels), (64,), generator=draw)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model((images[chosen] - 0.3) / 0.4), labels[chosen]).backward()
        optimizer.step()
    model.eval()
    assert (model((images - 0.3) / 0.4).argmax(1) == labels).float().mean() > 0.95
    return model.requires_grad_(False)


def enlarged(model: nn.Module) -> nn.Module:
    """Return a network that computes the same function with larger activations before every batch norm."""
    larger: Any = copy.deepcopy(model)
    for convolution, norm in zip((larger.first, larger.second), larger.norms, strict=True):
        convolution.weight.mul_(SCALE)
        norm.running_mean.mul_(SCALE)
        norm.running_var.mul_(SCALE**2)
        norm.eps *= SCALE**2
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(larger(images), model(images))
    return larger


def invert(settings: InversionSettings, teacher: nn.Module, runtime: Runtime) -> tuple[float, list[dict[str, float]]]:
    """Synthesise for two epochs; return the target agreement and the loss terms of all steps."""
    context = SynthesisContext(
        teacher=runtime.place(copy.deepcopy(teacher)),
        normalization=Normalization.from_statistics((0.3,), (0.4,), runtime.device),
        augmentation=Augmentation(2, False),
        image_shape=(1, 16, 16),
        num_classes=10,
        batch_size=16,
        epochs=2,
        runtime=runtime,
    )
    synthesizer = settings.build(context)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        student = runtime.place(_Net())
    steps = [
        {name: term.item() for name, term in terms.items()}
        for epoch in range(2)
        for _, terms in synthesizer.synthesis_steps(student, epoch, 0)
    ]
    with torch.no_grad():
        answers = context.teacher(context.normalization(synthesizer.fresh)).argmax(1)
    return (answers == synthesizer.fresh_targets).float().mean().item(), steps


METHOD = {"synthesis_batch_size": 60, "generator_steps": 40, "generator_width": 16, "latent_size": 64}


@pytest.mark.slow
def test_images_match_their_targets_for_large_activations_of_the_teacher(runtime, digits_teacher):
    plain, plain_steps = invert(GapSSGFastSettings(**METHOD), digits_teacher, runtime)
    large, steps = invert(GapSSGFastSettings(**METHOD), enlarged(digits_teacher), runtime)
    assert plain > 0.9
    assert large > 0.9
    # The same loss, up to the order of float32 operations.
    assert steps[0] == pytest.approx(plain_steps[0], rel=1e-4)


@pytest.mark.slow
def test_the_published_statistics_loss_outweighs_the_targets_for_large_activations(runtime, digits_teacher):
    published = GapSSGSettings(**METHOD)
    large, steps = invert(published, enlarged(digits_teacher), runtime)
    assert steps[0]["batch_norm_statistics_loss"] > 1000
    for terms in steps:
        gap = 0.5 * (terms["disagreement_loss"] + 0.2 * terms["agreement_loss"])
        assert gap < terms["synthesis_loss"] / 50
    # Chance is one in ten.
    assert large < 0.3


def test_a_layer_is_observed_with_its_own_eps():
    layer = nn.BatchNorm2d(2, eps=3.0).eval()
    distances: list[Tensor] = []
    with observed_statistics(nn.Sequential(layer), distances, relative=True):
        layer(torch.zeros(2, 2, 3, 3))
    # The variance is 0 where 1 is expected: sqrt(3 / 4) - 1, squared.
    assert distances[0].item() == pytest.approx((1 - 0.75**0.5) ** 2, rel=1e-6)
