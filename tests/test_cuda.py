"""Captured steps on a GPU: their numbers, and that they do not synchronise. Skipped without a GPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gapssg import DistillSettings, distill
from gapssg.core.runtime import Runtime
from gapssg.core.training_step import EAGER_CALLS
from gapssg.models.model_file import load_model
from gapssg.runs.requests import Requests, Stopped
from gapssg.training.distillation import Distillation
from tests.conftest import write_teacher
from tests.interruptions import AskingDisplay
from tests.numerics import OF_BF16, OF_FLOAT32, distance, distil_once, make_distillation
from tests.run_fixtures import TINY, files_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

STEPS = EAGER_CALLS + 4


@pytest.fixture
def on_gpu() -> Iterator[Runtime]:
    runtime = Runtime(torch.device("cuda"), "fp32", compiled=False, seed=0, deterministic=True)
    with runtime.configured():
        yield runtime


def train(teacher_file: Path, runtime: Runtime) -> tuple[dict[str, Tensor], Tensor]:
    """Synthesise once and make some distillation steps; return the student's weights and the pool."""
    values = {**TINY, "teacher": teacher_file, "method": {**TINY["method"], "generator_steps": STEPS, "passes": 8}}
    values["student"] = {"name": "mobilenetv2"}  # has dropout
    distillation = Distillation(DistillSettings.model_validate(values), runtime, load_model(teacher_file))
    list(distillation.synthesizer.synthesis_steps(distillation.student, 0, 0))
    inputs = distillation.student_steps.batches(0, 0, 0)
    distillation.student.train()
    with runtime.seeded_globals("dropout"):
        for step in range(STEPS):
            distillation.trainee.set_learning_rate(step / STEPS)  # a replay must read the new rate
            images, *shifts = next(inputs)
            if step == STEPS - 2:
                images = images * torch.nan  # a replay must not change the weights
            distillation.trainee.step(images, *shifts)
    assert distillation.synthesizer.pool is not None
    assert all(bool(tensor.isfinite().all()) for tensor in distillation.student.parameters())
    weights = {name: tensor.cpu() for name, tensor in distillation.student.state_dict().items()}
    return weights, distillation.synthesizer.pool.images.cpu()


def test_captured_steps_equal_the_eager_ones(teacher_file: Path, on_gpu: Runtime, monkeypatch, caplog):
    weights, images = train(teacher_file, on_gpu)
    assert caplog.messages == []  # both steps were captured

    def refuse(*_: object) -> None:
        raise RuntimeError("not here")

    monkeypatch.setattr("gapssg.core.training_step.record_cuda_graph", refuse)
    plain, plain_images = train(teacher_file, on_gpu)
    assert len(caplog.messages) == 2
    # The same kernels on the same numbers.
    assert torch.equal(images, plain_images)
    # The images that were not finite left such running statistics in both.
    torch.testing.assert_close(weights, plain, rtol=0, atol=0, equal_nan=True)


def test_captured_steps_without_batch_norm_equal_the_eager_ones(tmp_path: Path, on_gpu: Runtime, monkeypatch, caplog):
    factory = "tests.models.factories:without_linear_layer"
    teacher = write_teacher(tmp_path / "teacher.safetensors", factory)
    method = {"name": "gapssg-fast", "synthesis_batch_size": 64, "generator_steps": STEPS, "distillation_steps": STEPS}
    values = {**TINY, "teacher": teacher, "model_factories": [factory], "epochs": 4, "method": method}

    def pool() -> Tensor:
        distillation = Distillation(DistillSettings.model_validate(values), on_gpu, load_model(teacher, [factory]))
        for epoch in range(4):
            list(distillation.synthesizer.synthesis_steps(distillation.student, epoch, 0))
            torch.randn(1 << 20, device="cuda")  # takes memory that the synthesis has freed
        assert distillation.synthesizer.pool is not None
        return distillation.synthesizer.pool.images.cpu()

    captured = pool()
    assert caplog.messages == []
    monkeypatch.setattr("gapssg.core.training_step.EAGER_CALLS", 1_000_000)
    assert torch.equal(captured, pool())


@pytest.mark.parametrize(("precision", "within"), [("fp32", OF_FLOAT32), ("bf16", OF_BF16)])
def test_a_distillation_step_equals_that_of_the_processor(teacher_file: Path, precision, within):
    runtime = Runtime(torch.device("cuda"), precision, compiled=False, seed=0)
    processor = Runtime(torch.device("cpu"), "fp32", compiled=False, seed=0)
    reference = make_distillation(teacher_file, "wrn10_half", processor)
    distillation = make_distillation(teacher_file, "wrn10_half", runtime)
    distillation.student.load_state_dict(copy.deepcopy(reference.student.state_dict()))
    _, expected, images, shifts = distil_once(reference)
    distillation.student.train()
    with runtime.configured():
        distillation.trainee.step(images.cuda(), *(shift.cuda() for shift in shifts))
    found = {name: weight.grad.cpu() for name, weight in distillation.student.named_parameters()}
    assert distance(found, expected) < within


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_waits_for_the_gpu(teacher_file: Path, precision, caplog):
    runtime = Runtime(torch.device("cuda"), precision, compiled=False, seed=0)
    values = {**TINY, "teacher": teacher_file, "method": {**TINY["method"], "generator_steps": 20, "passes": 8}}
    with runtime.configured():
        distillation = Distillation(DistillSettings.model_validate(values), runtime, load_model(teacher_file))
        steps = distillation.synthesizer.synthesis_steps(distillation.student, 0, 0)
        for _ in range(EAGER_CALLS + 2):
            next(steps)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(4):
                next(steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        list(steps)
        inputs = distillation.student_steps.batches(0, 0, 0)
        distillation.student.train()
        for _ in range(EAGER_CALLS + 2):
            distillation.trainee.step(*next(inputs))
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(4):
                distillation.trainee.step(*next(inputs))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert caplog.messages == []  # both steps were captured


@pytest.mark.parametrize(
    "method",
    [
        {**TINY["method"], "generator_steps": 8, "passes": 4},
        {
            **TINY["method"],
            "name": "gapssg-fast",
            "generator_steps": 8,
            "distillation_steps": 8,
            "procedural_share": 0.5,
        },
    ],
    ids=["gapssg", "gapssg-fast with procedural images"],
)
def test_a_deterministic_run_stopped_and_resumed_ends_with_the_same_files(
    method: dict[str, object], teacher_file: Path, tmp_path: Path
):
    runtime = {"device": "cuda", "precision": "bf16", "compile": False, "deterministic": True}
    values = {**TINY, "teacher": teacher_file, "epochs": 3, "runtime": runtime, "method": method}
    settings = DistillSettings.model_validate({**values, "student": {"name": "mobilenetv2"}})
    distill(settings, tmp_path / "whole")
    for step in (2, 6, 10, 15):  # before and after the capture, in synthesis and in training
        requests, run = Requests(), tmp_path / f"run-{step}"
        with pytest.raises(Stopped):
            distill(settings, run, display=AskingDisplay(step, requests, "stop"), requests=requests)
        distill(settings, run, resume=True)
        assert files_of(run) == files_of(tmp_path / "whole")
