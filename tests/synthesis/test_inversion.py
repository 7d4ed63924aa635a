from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gapssg.core.runtime import Runtime
from gapssg.errors import RunError
from gapssg.synthesis.batch_norm import observed_statistics
from gapssg.synthesis.gapssg import GapSSGSettings
from gapssg.synthesis.inversion import GeneratorInversion
from gapssg.synthesis.synthesizer import Synthesizer
from tests.synthesis.context import make_context, make_student, snapshot

SETTINGS = GapSSGSettings(synthesis_batch_size=16, generator_steps=4, generator_width=8, latent_size=16)


def synthesise(runtime: Runtime, settings: GapSSGSettings = SETTINGS) -> tuple[Synthesizer, list[dict[str, float]]]:
    synthesizer = settings.build(make_context(runtime))
    steps = synthesizer.synthesis_steps(make_student(runtime), 0, 0)
    return synthesizer, [{name: term.item() for name, term in terms.items()} for _, terms in steps]


def assert_unchanged(module: nn.Module, before: dict[str, Tensor]) -> None:
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_synthesis_changes_neither_teacher_nor_student(runtime):
    context = make_context(runtime)
    student = make_student(runtime)
    student.train()
    teacher_before, student_before = snapshot(context.teacher), snapshot(student)
    synthesizer = SETTINGS.build(context)
    for _ in synthesizer.synthesis_steps(student, 0, 0):
        assert not student.training
    assert_unchanged(context.teacher, teacher_before)
    assert_unchanged(student, student_before)
    assert student.training
    assert all(p.requires_grad and p.grad is None for p in student.parameters())
    assert all(p.grad is None for p in context.teacher.parameters())


def test_the_generators_gradient_equals_the_plain_formula_in_float64(runtime):
    """The optimised step against the formulas of the paper, written out without shared code."""
    synthesizer = GeneratorInversion(SETTINGS, make_context(runtime))
    context, student = synthesizer.context, make_student(runtime)
    with torch.no_grad():
        synthesizer.latent.normal_(generator=torch.Generator().manual_seed(3))
    targets = torch.arange(16) % 5
    shifts = context.augmentation.draw(16, torch.Generator().manual_seed(4))
    synthesizer._student = student.eval()
    synthesizer._targets.copy_(targets)
    with observed_statistics(context.teacher, synthesizer._distances):
        terms = synthesizer._loss(*shifts)
    loss = terms["loss"]
    torch.autograd.backward(loss)

    generator, latent = copy.deepcopy(synthesizer.generator).double(), synthesizer.latent.detach().double()
    generator.zero_grad()
    latent.requires_grad_()
    teacher, student = copy.deepcopy(context.teacher).double(), copy.deepcopy(student).double()
    images = generator(latent)
    views = []
    for image, row, column, flip in zip(images, *shifts, strict=True):
        padded = nn.functional.pad(image, (2, 2, 2, 2))
        view = padded[:, 2 + row : 18 + row, 2 + column : 18 + column]
        views.append(view.flip(2) if flip else view)
    inputs: list[tuple[nn.Module, Tensor]] = []
    handles = [
        layer.register_forward_hook(lambda layer, args, _: inputs.append((layer, args[0])))
        for layer in teacher.modules()
        if isinstance(layer, nn.BatchNorm2d)
    ]
    view_batch = (torch.stack(views) - 0.3) / 0.4
    teacher_logits, student_logits = teacher(view_batch), student(view_batch)
    for handle in handles:
        handle.remove()
    statistics_loss = torch.zeros((), dtype=torch.float64)
    for layer, value in inputs:
        mean = value.mean(dim=(0, 2, 3))
        variance = ((value - mean[:, None, None]) ** 2).mean(dim=(0, 2, 3))
        statistics_loss = statistics_loss + ((mean - layer.running_mean) ** 2).sum().sqrt()
        statistics_loss = statistics_loss + ((variance - layer.running_var) ** 2).sum().sqrt()
    rows = torch.arange(16)
    disagreement = -((teacher_logits - student_logits) / 2).log_softmax(1)[rows, targets].mean()
    agreement = -(teacher_logits + student_logits).log_softmax(1)[rows, targets].mean()
    gap = (teacher_logits.softmax(1) - student_logits.softmax(1)).abs().max(1).values.mean()
    factor = torch.exp(-gap).item()
    expected = statistics_loss + 0.5 * (1 - factor) * (disagreement + 0.2 * agreement)
    expected.backward()

    # float32 has 24 bits; two networks of 20 layers lose about 8 of them.
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["regulatory_factor"].item() == pytest.approx(factor, rel=1e-5)
    for ours, theirs in zip(
        [synthesizer.latent, *synthesizer.generator.parameters()],
        [latent, *generator.parameters()],
        strict=True,
    ):
        assert ours.grad is not None
        assert theirs.grad is not None
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=5e-5 * scale)


def test_the_images_of_the_step_with_the_lowest_loss_are_kept(runtime, monkeypatch):
    """An excessive learning rate makes the loss rise again, so that the last images are not the best."""
    seen: list[tuple[float, Tensor]] = []
    plain = GeneratorInversion._loss

    def spy(self, *shifts):
        outputs = plain(self, *shifts)
        seen.append((outputs["loss"].item(), outputs["images"].detach().clone()))
        return outputs

    monkeypatch.setattr(GeneratorInversion, "_loss", spy)
    settings = SETTINGS.model_copy(update={"generator_steps": 12, "generator_learning_rate": 0.5})
    synthesizer, _ = synthesise(runtime, settings)
    losses = [loss for loss, _ in seen]
    best = losses.index(min(losses))
    assert best < len(losses) - 1
    assert torch.equal(synthesizer.pool.images, (seen[best][1] * 255).round().to(torch.uint8))


def test_targets_are_sorted_and_cover_the_classes(runtime):
    synthesizer, _ = synthesise(runtime, SETTINGS.model_copy(update={"synthesis_batch_size": 64}))
    targets = synthesizer.fresh_targets
    assert torch.equal(targets, targets.sort().values)
    assert set(targets.tolist()) == set(range(5))


def test_each_epoch_initialises_a_new_generator_from_the_seed(runtime):
    first, again, other = (synthesise(each)[0].pool.images for each in (runtime, runtime, replace(runtime, seed=1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    synthesizer = SETTINGS.build(make_context(runtime))
    student = make_student(runtime)
    for epoch in (0, 1):
        list(synthesizer.synthesis_steps(student, epoch, 0))
    assert not torch.equal(synthesizer.pool.images[:16], synthesizer.pool.images[16:])


def test_a_synthesis_without_a_finite_loss_raises_a_run_error(runtime):
    with pytest.raises(RunError, match="diverged"):
        context = make_context(runtime)
        next(context.teacher.buffers()).fill_(float("nan"))
        list(SETTINGS.build(context).synthesis_steps(make_student(runtime), 0, 0))


def test_bf16_synthesis_follows_float32(runtime):
    _, plain = synthesise(runtime)
    _, fast = synthesise(replace(runtime, precision="bf16"))
    for name, value in plain[0].items():
        # bfloat16 keeps 8 bits; rounding errors of 20 layers add up like a random walk: sqrt(20) / 2**8.
        assert fast[0][name] == pytest.approx(value, rel=20**0.5 / 2**8), name
