"""Steps that do not fit in the memory are refused or reported with a batch size that would fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from gapssg import (
    InputError,
    PretrainSettings,
    RunError,
    distill,
    estimate_distillation,
    estimate_pretraining,
    pretrain_teacher,
)
from gapssg.core.runtime import Runtime
from gapssg.core.training_step import TrainingStep
from gapssg.models import create_model
from gapssg.models.generator import Generator
from gapssg.training import memory
from gapssg.training.memory import StepMemory, advice_without_memory, available_memory, check_memory, saved_bytes
from tests.run_fixtures import settings
from tests.tiny import TINY_NOISE, tiny_model, write_tiny_teacher


def really_saved(module: nn.Module, inputs: Tensor) -> int:
    """The bytes that a forward pass on the processor keeps."""
    weights = {each.untyped_storage().data_ptr() for each in (*module.parameters(), *module.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(inputs)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)


@pytest.mark.parametrize("trains", [True, False])
def test_what_a_forward_pass_keeps_is_known_without_making_it(trains: bool):
    model = create_model("wrn10_half", num_classes=10, input_shape=(3, 12, 20)).train(trains).requires_grad_(trains)
    images = torch.rand(2, 3, 12, 20, requires_grad=True)
    found = saved_bytes(model, (3, 12, 20), "fp32", trains=trains)
    # The meta device also counts the mean and the deviation of a batch norm in evaluation mode.
    statistics = sum(2 * 4 * norm.num_features for norm in model.modules() if isinstance(norm, nn.BatchNorm2d))
    assert 0 <= found - really_saved(model, images) // 2 <= statistics // 2
    assert saved_bytes(model, (3, 12, 20), "bf16", trains=trains) == found // 2
    assert model.training == trains
    generator = Generator((3, 12, 20), latent_size=8, width=4).train(trains).requires_grad_(trains)
    latent = torch.rand(2, 8, requires_grad=True)
    found = saved_bytes(generator, (8,), "fp32", trains=trains)
    assert 0 <= found - really_saved(generator, latent) // 2 <= 4 * (8 + 8 + 4)


def test_a_model_that_depends_on_values_is_not_known():
    class Branching(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images if images.sum() > 0 else -images

    assert saved_bytes(Branching(), (3, 8, 8), "fp32", trains=True) == 0


def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(runtime: Runtime, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 2**30)
    check_memory({"training": StepMemory("--batch-size ", 64, 2**24)}, runtime)
    with pytest.raises(InputError) as error:
        check_memory({"training": StepMemory("--batch-size ", 65, 2**24)}, runtime)
    assert str(error.value) == (
        "a step of training with 65 images needs at least 1.0 GiB of memory, more than the 1.0 GiB that are "
        "available; --batch-size 38 would fit"
    )
    with pytest.raises(InputError, match="use smaller images or models, or a machine with more memory"):
        check_memory({"training": StepMemory("--batch-size ", 64, 2**30)}, runtime)
    compiled = replace(runtime, compiled=True)  # keeps at least a third
    check_memory({"training": StepMemory("--batch-size ", 192, 2**24)}, compiled)
    with pytest.raises(InputError, match=r"with 195 images needs at least 1\.0 GiB .*; --batch-size 115 would fit"):
        check_memory({"training": StepMemory("--batch-size ", 195, 2**24)}, compiled)
    check_memory({"training": StepMemory("--batch-size ", 64, 0)}, runtime)
    with pytest.raises(InputError, match=r"more than the 0\.5 GiB that are available; --batch-size 19 would fit"):
        check_memory({"training": StepMemory("--batch-size ", 64, 2**24)}, runtime, pool=2**29)
    with pytest.raises(InputError, match=r"the sample pool needs 2\.0 GiB of memory, more than the 1\.0 GiB"):
        check_memory({}, runtime, pool=2**31)
    with pytest.raises(
        InputError, match=r"the labelled views need 0\.6 GiB .* the 0\.5 GiB .*; lower method\.labelled_"
    ):
        check_memory({}, runtime, pool=2**29, views=2**29 + 2**27)
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    check_memory({"training": StepMemory("--batch-size ", 64, 2**40)}, runtime)


def test_advice_after_a_failure_is_a_smaller_batch(runtime: Runtime, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 2**30)
    # The lower bound of a step that failed would have fitted.
    assert advice_without_memory(StepMemory("--batch-size ", 64, 1), runtime) == "--batch-size 38 would fit"
    assert advice_without_memory(StepMemory("--batch-size ", 64, 2**26), runtime) == "--batch-size 9 would fit"
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    assert advice_without_memory(StepMemory("--batch-size ", 64, 1), runtime) == (
        "lower the batch size with --batch-size N, or use smaller images"
    )


def test_the_available_memory_is_that_of_the_machine_or_of_the_container(tmp_path: Path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable: 6 kB\nHugePages: 0\nSwapFree: 1 kB\n")
    assert available_memory(tmp_path / "none", tmp_path) is None
    assert available_memory(meminfo, tmp_path) == 7 * 1024
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 2000\ninactive_file 1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(meminfo, tmp_path) == 7 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    assert available_memory(meminfo, tmp_path) == 3000


def test_a_run_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    run = tmp_path / "run"
    with tiny_model():
        teacher = write_tiny_teacher(tmp_path / "teacher.safetensors")
        monkeypatch.setattr(memory, "available_memory", lambda: 2 * 3 * 256 * 16 + 1000)
        with pytest.raises(InputError, match=r"^a step of distillation with 8 images needs at least .*available; use"):
            distill(settings(teacher, **TINY_NOISE), run)
        monkeypatch.setattr(memory, "available_memory", lambda: 1000)
        with pytest.raises(InputError, match=r"^a step of training with 16 images needs"):
            pretrain_teacher(training_on(image_folder), run)
        with pytest.raises(InputError, match=r"^a step of training with 16 images needs"):
            estimate_pretraining(training_on(image_folder))
        with pytest.raises(InputError, match=r"^the sample pool needs"):
            estimate_distillation(settings(teacher, **TINY_NOISE))
        monkeypatch.setattr(memory, "available_memory", lambda: 2**20)
        generator = {"name": "gapssg-fast", "synthesis_batch_size": 64, "generator_width": 8, "latent_size": 16}
        with pytest.raises(InputError, match=r"--set method\.synthesis_batch_size=\d+ would fit$"):
            distill(settings(teacher, **{**TINY_NOISE, "method": generator}), run)
        with pytest.raises(InputError, match=r"^the sample pool needs"):
            distill(settings(teacher, **{**TINY_NOISE, "epochs": 1000}), run)
        views = {**TINY_NOISE["method"], "labelled_views": 1000}
        with pytest.raises(InputError, match=r"^the labelled views need"):
            distill(settings(teacher, **{**TINY_NOISE, "method": views}), run)
    assert not run.exists()


def training_on(folder: Path) -> PretrainSettings:
    data, runtime = {"name": f"folder:{folder}"}, TINY_NOISE["runtime"]
    values = {"data": data, "model": {"name": "tiny"}, "batch_size": 16, "runtime": runtime}
    return PretrainSettings.model_validate(values)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()]
)
def test_a_step_that_runs_out_of_memory_names_a_batch_size_that_would_fit(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(TrainingStep, "__call__", fail)
    with tiny_model():
        teacher = write_tiny_teacher(tmp_path / "teacher.safetensors")
        with pytest.raises(RunError, match=r"^out of memory.*; --batch-size 4 would fit$"):
            distill(settings(teacher, **TINY_NOISE), tmp_path / "run")
        with pytest.raises(RunError, match=r"^out of memory.*; --batch-size 9 would fit$"):
            pretrain_teacher(training_on(image_folder), tmp_path / "trained")


def test_processes_share_a_batch_and_the_memory_of_their_machine(runtime: Runtime, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gapssg.training.memory.available_memory", lambda: 2**30)
    step = StepMemory("--batch-size ", 128, 2**24)  # 16 images of a process need a quarter of a GiB
    apart = replace(runtime, processes=Mock(world=8, local_world=1))
    check_memory({"training": step}, apart)
    together = replace(runtime, processes=Mock(world=8, local_world=8))
    with pytest.raises(InputError, match="--batch-size 32 would fit"):  # 0.6 of an eighth of a GiB: 4 images each
        check_memory({"training": step}, together)
    assert advice_without_memory(step, together) == "--batch-size 32 would fit"
