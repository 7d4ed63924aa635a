"""Every method runs, changes only its own networks, resumes exactly, and does not synchronise with the device."""

from __future__ import annotations

import copy
import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor, nn
from typer.testing import CliRunner

from gapssg import DistillSettings, InputError, distill
from gapssg.cli.app import app
from gapssg.core.runtime import Runtime
from gapssg.models import create_model
from gapssg.models.model_file import load_model, save_model
from gapssg.models.profile import batch_norm_layers
from gapssg.runs.requests import Requests, Stopped
from gapssg.synthesis import method_classes
from gapssg.synthesis.base import RunSize, Work
from gapssg.synthesis.cmi import CMISettings
from gapssg.synthesis.fast import FastSettings
from gapssg.synthesis.gapssg_fast import GapSSGFastSettings
from gapssg.training.distillation import Distillation
from gapssg.training.distillation_setup import step_memory
from gapssg.training.memory import saved_bytes
from tests.conftest import make_card
from tests.interruptions import AskingDisplay
from tests.methods import ALONG, METHODS
from tests.no_waiting import NoWaiting
from tests.run_fixtures import events, files_of, run_epoch
from tests.tiny import tiny_model

CPU = Runtime(torch.device("cpu"), "fp32", False, 0)
every_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(autouse=True)
def tiny_networks() -> Iterator[None]:
    with tiny_model():
        yield


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A teacher with one convolution whose batch-norm statistics are not those of an untouched layer."""
    card = make_card(architecture="tiny", flip=True)
    model = create_model("tiny", num_classes=10, input_shape=card.input_shape, seed=1)
    with torch.no_grad():
        model.train()(torch.randn(64, *card.input_shape, generator=torch.Generator().manual_seed(0)))
    save_model(tmp_path / "teacher.safetensors", model.eval(), card)
    return tmp_path / "teacher.safetensors"


def make_settings(teacher: Path, name: str, **changes: Any) -> DistillSettings:
    values = {"student": {"name": "tiny"}, "epochs": 3, "batch_size": 8, "teacher": teacher}
    runtime = {"device": "cpu", "precision": "fp32", "compile": False}
    method = {"name": name, **METHODS[name]}
    return DistillSettings.model_validate({**values, "runtime": runtime, "method": method, **changes})


def make_distillation(teacher: Path, name: str, runtime: Runtime = CPU) -> Distillation:
    return Distillation(make_settings(teacher, name), runtime, load_model(teacher))


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def synthesise(distillation: Distillation, epoch: int = 0, index: int = 0) -> list[dict[str, float]]:
    steps = distillation.synthesizer.synthesis_steps(distillation.student, epoch, index)
    return [{name: term.item() for name, term in terms.items()} for _, terms in steps]


def test_every_method_is_tested_here():
    assert {method.model_fields["name"].default for method in method_classes()} == METHODS.keys()


@pytest.mark.slow
@every_method
def test_a_run_stopped_between_any_two_steps_equals_the_uninterrupted_one(teacher: Path, tmp_path: Path, name):
    # Without a pool a checkpoint is enough, whatever `keep_pool` says.
    settings = make_settings(teacher, name)
    settings = settings.model_copy(update={"keep_pool": settings.method.has_pool})
    result = distill(settings, tmp_path / "whole")
    assert result.distillation_steps > 0
    for event in events(tmp_path / "whole"):
        if event["event"] == "epoch":
            assert all(isinstance(value, float) for value in event["synthesis"].values())
            assert 0 <= event["reality_gap_after"] <= 1
    run, stops = tmp_path / "run", 0
    while True:
        requests = Requests()
        display = AskingDisplay(1 + (2 * stops) % 7, requests, "stop")
        try:
            distill(settings, run, resume=stops > 0, display=display, requests=requests)
        except Stopped:
            stops += 1
        else:
            break
    assert stops >= 3
    assert files_of(run) == files_of(tmp_path / "whole")


@every_method
def test_synthesis_changes_neither_teacher_nor_student_and_distillation_only_the_student(
    teacher: Path, tmp_path: Path, name
):
    distillation = make_distillation(teacher, name)
    networks = (distillation.teacher, distillation.student)
    before = [snapshot(network) for network in networks]
    for terms in synthesise(distillation):
        assert all(torch.tensor(value).isfinite() for value in terms.values())
    for network, weights in zip(networks, before, strict=True):
        assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())
        assert not any(module._forward_pre_hooks for module in network.modules())
    assert distillation.synthesizer.fresh.min() >= 0
    assert distillation.synthesizer.fresh.max() <= 1
    if distillation.synthesizer.pool is None:
        synthesizer: Any = distillation.synthesizer
        generator = snapshot(synthesizer.generator)
        distillation.synthesizer.start_sampling(0, 0, 0)
        images = distillation.synthesizer.sample(8)
        assert not images.requires_grad
        assert images.shape == (8, 1, 16, 16)
        for key, value in synthesizer.generator.named_parameters():
            assert torch.equal(value, generator[key])


@every_method
def test_no_step_waits_for_the_device(teacher: Path, name):
    distillation = make_distillation(teacher, name)
    if METHODS[name].keys() & {"generator_steps", "pixel_steps"}:
        steps = distillation.synthesizer.synthesis_steps(distillation.student, 0, 0)
        next(steps)
        with NoWaiting():
            next(steps)
        list(steps)
    else:
        synthesise(distillation)
    inputs = distillation.student_steps.batches(0, 0, 0)
    next(inputs)
    with NoWaiting():
        distillation.trainee.step(*next(inputs))


@every_method
def test_bf16_follows_float32(teacher: Path, name):
    plain = synthesise(make_distillation(teacher, name))
    fast = synthesise(make_distillation(teacher, name, replace(CPU, precision="bf16")))
    for term, value in (plain[0] if name != "noise" else {}).items():
        # bfloat16 keeps 8 bits; there are five layers. A difference of close logits, which they share, counts from 1.
        assert fast[0][term] == pytest.approx(value, rel=5 / 2**8, abs=5 / 2**8), term


def assert_compiled_follows_eager(teacher: Path, name: str) -> None:
    torch.compiler.reset()
    eager, compiled = (make_distillation(teacher, name, replace(CPU, compiled=each)) for each in (False, True))
    for epoch in range(2):
        for plain, fast in zip(synthesise(eager, epoch), synthesise(compiled, epoch), strict=True):
            # float32 in another order. The divergence of a student that agrees is a difference of close numbers.
            assert fast == pytest.approx(plain, rel=1e-4, abs=1e-6)
    if eager.synthesizer.pool is None:
        for each in (eager, compiled):
            each.synthesizer.start_sampling(0, 0, 0)
        torch.testing.assert_close(compiled.synthesizer.sample(8), eager.synthesizer.sample(8), rtol=0, atol=1e-4)


# Generating machine code takes ten seconds per method: one without a pool, and the default. All are traced below.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["zskt", "gapssg-fast"])
def test_a_compiled_synthesis_follows_an_eager_one(teacher: Path, name):
    assert_compiled_follows_eager(teacher, name)


@pytest.mark.slow
@every_method
def test_the_traced_step_of_every_method_follows_the_eager_one(teacher: Path, monkeypatch: pytest.MonkeyPatch, name):
    """Compilation without machine code: the traced step and its gradients."""
    compile_by = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, **options: compile_by(step, **options, backend="aot_eager"))
    assert_compiled_follows_eager(teacher, name)


@every_method
def test_methods_that_need_batch_norm_refuse_a_teacher_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    for function in ("create_model", "empty_model"):
        monkeypatch.setattr(f"gapssg.models.model_file.{function}", lambda *_, **__: copy.deepcopy(plain))
    file = tmp_path / "plain.safetensors"
    save_model(file, plain, make_card())
    method = next(each for each in method_classes() if each.model_fields["name"].default == name)
    if method.needs_batch_norm:
        with pytest.raises(InputError, match=rf"no batch-norm layers, whose statistics {name} needs; methods that do"):
            make_distillation(file, name)
    else:
        synthesise(make_distillation(file, name))


def test_a_pool_is_refused_by_a_method_that_samples_its_generator(teacher: Path, tmp_path: Path):
    distill(make_settings(teacher, "noise"), tmp_path / "run")
    with pytest.raises(InputError, match="dafl samples its generator"):
        distill(make_settings(teacher, "dafl", pool=tmp_path / "run"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_features_need_a_linear_layer(teacher: Path):
    loaded = load_model(teacher)
    loaded.module.classifier = nn.Sequential(nn.Unflatten(1, (4, 1, 1)), nn.Conv2d(4, 10, 1), nn.Flatten())
    with pytest.raises(InputError, match="do not come from a linear layer"):
        Distillation(make_settings(teacher, "dafl"), CPU, loaded)


def test_the_state_of_a_generator_must_fit(teacher: Path):
    for name in ("dafl", "cmi", "fast", "gapssg-fast"):
        synthesizer = make_distillation(teacher, name).synthesizer
        state = synthesizer.state_dict()
        with pytest.raises(InputError, match="does not match"):
            synthesizer.load_state_dict({})
        with pytest.raises(InputError, match="does not match"):
            synthesizer.load_state_dict({key: torch.zeros(3) for key in state})


def test_fast_only_synthesises_in_the_warm_up_and_the_schedule_starts_after_it(teacher: Path, tmp_path: Path):
    optimizer = {"learning_rate": 0.2, "schedule": "cosine"}
    distill(make_settings(teacher, "fast", optimizer=optimizer), tmp_path / "run")
    epochs = [event for event in events(tmp_path / "run") if event["event"] == "epoch"]
    assert [event["distillation_loss"] is None for event in epochs] == [True, False, False]
    # A cosine over the two epochs that learn.
    assert [event["learning_rate"] for event in epochs] == pytest.approx([0.2, 0.2, 0.1])


def test_fast_raises_the_divergence_from_the_last_epoch_of_the_warm_up(teacher: Path):
    two_of_three = {"name": "fast", **METHODS["fast"], "warm_up": 0.7}
    longer = make_settings(teacher, "fast", method=two_of_three)
    distillation = Distillation(longer, CPU, load_model(teacher))
    with torch.no_grad():
        for network in (distillation.teacher, distillation.student):
            network.classifier.bias[0] += 5  # both see one class, so that no sample is masked
    found = [synthesise(distillation, epoch)[0]["masked_divergence"] for epoch in range(2)]
    assert found[0] == 0
    assert found[1] > 0


def test_fast_switches_where_the_published_code_does():
    settings = FastSettings()
    assert (settings.generator_steps, settings.generator_learning_rate, settings.latent_learning_rate) == (
        10,
        2e-3,
        0.01,
    )
    assert settings.warm_up_epochs(220) == 20
    assert settings.adversarial_from(220) == 19
    assert settings.restart_epoch(220) == 139
    assert FastSettings(restart=1).restart_epoch(220) is None


def test_fast_learns_its_start_by_the_gradients_of_all_steps(teacher: Path):
    distillation = make_distillation(teacher, "fast")
    inversion: Any = distillation.synthesizer.synthesis  # type: ignore[attr-defined]
    before, gradients, moments = snapshot(inversion.meta), [], list[Tensor]()
    plain = inversion._after_step

    def spy(outputs: dict[str, Tensor]) -> None:
        gradients.append([parameter.grad.clone() for parameter in inversion.generator.parameters()])
        moments.append(outputs["moments"].clone())
        plain(outputs)

    inversion._step._after = spy
    synthesise(distillation)
    assert len(gradients) == 2
    for (key, weight), first, second in zip(inversion.meta.named_parameters(), *gradients, strict=True):
        total = first + second
        # Adam's first step is the learning rate times the sign, but for its epsilon of 1e-8.
        expected = -2 * 2e-3 * total / (total.abs() + 1e-8)
        torch.testing.assert_close(weight.detach() - before[key], expected, rtol=1e-3, atol=1e-6)
    # The running statistics are those of the last step, and count for nine tenths from now on.
    state = inversion.state_dict()
    assert torch.equal(state["earlier"], moments[-1])
    assert state["share_of_earlier"].item() == pytest.approx(0.9)


def test_cmi_keeps_the_newest_features_in_its_bank(teacher: Path):
    distillation = make_distillation(teacher, "cmi")
    inversion: Any = distillation.synthesizer.synthesis  # type: ignore[attr-defined]
    kept = []
    for epoch in range(3):
        for _ in distillation.synthesizer.synthesis_steps(distillation.student, epoch, 0):
            state = inversion.state_dict()
        kept.append(state["best_features"].clone())
    # 20 places: 8, 8, and of the third eight the last four in the places of the first.
    assert torch.equal(inversion.bank[4:8], kept[0][4:])
    assert torch.equal(inversion.bank[8:16], kept[1])
    assert torch.equal(torch.cat([inversion.bank[16:], inversion.bank[:4]]), kept[2])


def test_a_memory_bank_that_does_not_fit_is_one_sentence(teacher: Path, monkeypatch: pytest.MonkeyPatch):
    zeros = torch.zeros

    def too_small(*size: Any, **options: Any) -> Tensor:
        if size[:1] == (20,):
            raise RuntimeError("not enough memory")
        return zeros(*size, **options)

    monkeypatch.setattr(torch, "zeros", too_small)
    with pytest.raises(InputError, match=r"memory bank for 20 images needs .* GiB on cpu, .*; lower method\.bank_size"):
        make_distillation(teacher, "cmi")


@pytest.mark.parametrize(
    ("name", "channels", "bank", "head"), [("wrn40_2", "2,704", "886 MB", 8), ("resnet34", "8,512", "2.8 GB", 75)]
)
def test_the_documented_sizes_of_cmi_are_right(name, channels, bank, head):
    model = create_model(name, num_classes=10, input_shape=(3, 32, 32))
    count = sum(int(layer.running_mean.numel()) for layer in batch_norm_layers(model))  # type: ignore[misc]
    settings = CMISettings()
    size = 8 * settings.bank_size * count
    assert f"{count:,}" == channels
    assert bank == (f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB")
    assert round((count + settings.head_size) * (count + 1) / 1e6) == head
    guide = " ".join((Path(__file__).parents[2] / "docs" / "methods.md").read_text().split())
    assert f"takes {bank}" in guide
    assert f"{head} million" in guide
    assert bank in (CMISettings.__doc__ or "")


def test_deepinversion_keeps_the_pixels_of_its_last_step(teacher: Path):
    distillation = make_distillation(teacher, "deepinversion")
    synthesise(distillation)
    pixels = distillation.synthesizer.synthesis.pixels.detach() * 0.4 + 0.3  # type: ignore[attr-defined]
    # The pool has 8 bits.
    torch.testing.assert_close(distillation.synthesizer.fresh, pixels, rtol=0, atol=0.5 / 255 + 1e-6)


def test_mad_samples_half_from_a_moving_average(teacher: Path):
    distillation = make_distillation(teacher, "mad")
    synthesizer: Any = distillation.synthesizer
    average = snapshot(synthesizer.average)
    for _ in synthesizer.synthesis_steps(distillation.student, 0, 0):
        for key, weight in synthesizer.generator.named_parameters():
            average[key] = 0.95 * average[key] + 0.05 * weight.detach()
    for key, weight in synthesizer.average.named_parameters():
        torch.testing.assert_close(weight.detach(), average[key])
    synthesizer.start_sampling(0, 0, 0)
    images = synthesizer.sample(8)
    latents = synthesizer._draw_latents(8, CPU.random_stream("samples", 0, 0))
    assert torch.equal(images[:4], synthesizer.generator(latents[4:]))
    assert torch.equal(images[4:], synthesizer.average(latents[:4]))


def test_a_generator_that_diverges_retries_with_other_latents_and_resumes_exactly(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from gapssg.synthesis.generator_training import GeneratorTraining

    plain = GeneratorTraining._loss

    def loss(self: Any, *draws: Tensor) -> dict[str, Tensor]:
        outputs = plain(self, *draws)
        too_fast = self._optimizer.param_groups[0]["lr"] > 6e-4
        return {**outputs, "loss": torch.where(too_fast, torch.nan, outputs["loss"])}

    monkeypatch.setattr(GeneratorTraining, "_loss", loss)
    settings = make_settings(teacher, "dafl")
    distill(settings, tmp_path / "whole")
    found = [event for event in events(tmp_path / "whole") if event["event"] == "rollback"]
    assert [(event["part"], event["learning_rate"]) for event in found] == [("synthesis", pytest.approx(5e-4))]
    requests = Requests()
    with pytest.raises(Stopped):
        display = AskingDisplay(4, requests, "stop")
        distill(settings, tmp_path / "run", display=display, requests=requests)
    distill(settings, tmp_path / "run", resume=True)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


def test_a_fixed_schedule_makes_as_many_steps_in_every_epoch(teacher: Path, tmp_path: Path):
    method = {"name": "gapssg", **METHODS["gapssg"], "distillation_steps": 5}
    result = distill(make_settings(teacher, "gapssg", method=method), tmp_path / "run")
    assert result.distillation_steps == 3 * 5


@every_method
@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "balanced"])
def test_the_planned_work_of_a_run_is_what_it_does(teacher: Path, name, fixed):
    settings = make_settings(teacher, name, batch_size=6)  # which does not divide the pool
    if not fixed and settings.method.has_pool:  # sample-balanced, in the epochs after a warm-up
        settings = settings.model_copy(update={"method": settings.method.model_copy(update={"distillation_steps": 0})})
    synthesizer = Distillation(settings, CPU, load_model(teacher)).synthesizer
    plans = [synthesizer.plan(epoch) for epoch in range(3)]
    work = settings.method.work(RunSize(3, 6))
    assert work.distillation == sum(plan.rounds * plan.distillation_steps * 6 for plan in plans)
    if name != "noise":  # which passes nothing through the networks
        passed = sum(plan.rounds * plan.synthesis_steps * 8 for plan in plans)
        assert passed in (work.synthesis, work.teacher_alone)


@every_method
def test_the_planned_work_has_each_pass_of_a_synthesis(teacher: Path, name):
    distillation, passed = make_distillation(teacher, name), {"teacher": 0, "student": 0}
    for network in passed:

        def count(_: nn.Module, given: tuple[Tensor, ...], network: str = network) -> None:
            passed[network] += len(given[0])

        getattr(distillation, network).register_forward_pre_hook(count)
    assert len(synthesise(distillation)) > 0  # of one round
    work, rounds = distillation.settings.method.work(RunSize(1, 8)), distillation.synthesizer.plan(0).rounds
    assert passed["student"] * rounds == work.synthesis
    assert passed["teacher"] * rounds == work.synthesis + work.teacher_alone


def test_the_memory_of_a_synthesis_has_the_networks_that_it_passes(teacher: Path):
    def kept(name: str) -> int:
        distillation = make_distillation(teacher, name)
        file, student, synthesizer = distillation.teacher_file, distillation.student, distillation.synthesizer
        return step_memory(distillation.settings, CPU, file, student, synthesizer)["synthesis"].bytes_per_image

    example = make_distillation(teacher, "zskt")
    of_student = saved_bytes(example.student, example.card.input_shape, "fp32", trains=False)
    assert kept("zskt") - kept("dafl") == of_student > 0


def test_the_operations_of_a_run_are_counted_by_hand():
    # Of images through a teacher of 5 and a student of 3 multiply-adds, 7 forward and backward through both, and 11
    # forward through the teacher and forward and backward through the student: 7 * 4 * (5 + 3) + 11 * 2 * (5 + 3 * 3).
    assert Work(synthesis=7, distillation=11).flops(5, 3) == 224 + 308
    assert Work(0, 11).flops(5, 3) == 308
    assert Work(0, 11, labelled=2).flops(5, 3) == 2 * 2 * 5 + 11 * 2 * 9
    assert Work(0, 0, teacher_alone=7).flops(5, 3) == 7 * 4 * 5
    # 128 images in 12 steps of 32 epochs, 16 views of each, and 64 images in 60 steps.
    assert GapSSGFastSettings().work(RunSize(32, 64)) == Work(128 * 12 * 32, 64 * 60 * 32, 128 * 32 * 16)
    assert GapSSGFastSettings().work(RunSize(32, 64)).flops(1, 1) == 8 * 49_152 + 6 * 122_880 + 2 * 65_536


def test_methods_are_listed_with_what_they_need():
    listed = json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)["methods"]
    without = [method["name"] for method in listed if not method["needs_batch_norm"]]
    assert without == ["gapssg-fast", "gapssg", "dafl", "zskt", "dfad", "noise"]
    sampled = [method["name"] for method in listed if method["samples_from"] == "generator"]
    assert sampled == ["dafl", "zskt", "dfad", "dfq", "mad"]
    assert all(method["paper"] and method["summary"] and method["defaults"] for method in listed)
    fast = next(method for method in listed if method["name"] == "fast")
    assert fast["published"] == {"epochs": 220, "batch_size": 256, "optimizer.learning_rate": 0.2}
    assert fast["published_for_teacher"]["resnet34"] == {"method.adversarial_weight": 1.33, "method.target_weight": 0.5}
    needs = {method["name"]: method["needs"] for method in listed}
    assert (needs["dafl"], needs["mad"], needs["zskt"]) == (["a last linear layer"], ["batch-norm layers"], [])
    unpublished = [method["name"] for method in listed if method["year"] is None]
    assert unpublished == ["gapssg-fast", "noise"]
    assert all(method["paper"].endswith(str(method["year"])) for method in listed if method["name"] not in unpublished)
    assert [method["name"] for method in listed if method["departs_for_teacher"]] == ["cmi"]
    shown = CliRunner().invoke(app, ["methods"]).stdout
    assert "a last linear layer" in shown
    assert "mad departs from the published method: " in shown
    assert "they are the defaults" not in shown


def test_every_name_in_a_formula_of_the_guide_is_a_term_or_a_setting(teacher: Path):
    names = {"synthesis_loss"}
    for method in method_classes():
        names |= method.model_fields.keys()
        names |= synthesise(make_distillation(teacher, method.model_fields["name"].default))[0].keys()
    guide = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    formulas = guide.partition("Symbols:")[2].partition("## Where this differs")[0]
    symbols = dict(re.findall(r"`([^`]+)`\s+is\s+`(\w+)`", formulas))
    assert symbols == {
        "L_bn": "batch_norm_statistics_loss",
        "L_rel": "relative_statistics_loss",
        "a": "regulatory_factor",
        "KL_T": "divergence",
        "CE(z_t, y)": "target_loss",
    }
    texts = [text for text in re.findall(r"`([^`]+)`", formulas) if not re.fullmatch(r"[\w/]+\.\w+", text)]
    words = {word for text in texts for word in re.findall(r"[a-z]+(?:_[a-z]{3,})+", text)}
    assert len(words) > 20
    assert words | set(symbols.values()) <= names


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # it is not in the union
def test_the_method_that_the_guide_adds_runs(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    guide = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert len(code.splitlines()) <= 40
    (tmp_path / "entropy_method.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    method = importlib.import_module("entropy_method").EntropySettings(**ALONG)
    # Unchecked, because the method is not in the union of the methods.
    settings = BaseModel.model_copy(make_settings(teacher, "dafl"), update={"method": method})
    distillation = Distillation(settings, CPU, load_model(teacher))
    event = run_epoch(distillation, tmp_path / "run")
    assert event.synthesis.keys() == {"synthesis_loss", "entropy"}
    assert event.synthesis["synthesis_loss"] == pytest.approx(-event.synthesis["entropy"])
