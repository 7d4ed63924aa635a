"""`--estimate` times a few steps, reports the cost of the whole run, and writes nothing."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import torch

from gapssg import DistillSettings, InputError, distill, estimate_distillation
from gapssg.core.runtime import Runtime
from gapssg.runs.results.cost import Part
from gapssg.training.estimate import time_steps
from tests.program import gapssg, refusal
from tests.run_fixtures import TINY

SHORT = ("--student", "wrn10_half", "--epochs", 3, "--batch-size", 8, "--device", "cpu")
STEPS = ("--set", "method.generator_steps=4", "--set", "method.distillation_steps=8")
SYNTHESIS = ("--set", "method.synthesis_batch_size=16", *STEPS)


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("steps", [0, 1, 3, 100])
def test_one_step_warms_up_and_no_more_are_made_than_the_run_has(runtime: Runtime, monkeypatch, steps: int):
    now = [0.0]
    monkeypatch.setattr("gapssg.training.estimate.time.perf_counter", lambda: now[0])
    made = []

    def step() -> None:
        made.append(1)
        now[0] += 10.0 if len(made) == 1 else 2.0

    part = time_steps(step, runtime, steps, 5)
    assert len(made) == min(steps, 6)
    assert part.seconds == pytest.approx({0: 0.0, 1: 10.0, 3: 14.0, 100: 208.0}[steps])
    if steps > 1:
        assert part == Part(steps, 2.0, 8.0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gapssg-fast", "gapssg", "fast", "cmi", "deepinversion", "zskt", "noise"])
def test_the_steps_of_every_kind_of_method_are_those_of_its_run(teacher_file: Path, tmp_path: Path, method: str):
    small = {"name": method, "synthesis_batch_size": 16}
    if method == "deepinversion":
        small |= {"pixel_steps": 3, "distillation_steps": 4}
    elif method != "noise":
        small |= {"generator_steps": 3, "generator_width": 8, "latent_size": 16}
    if method == "zskt":
        small["rounds"] = 2
    if method == "cmi":
        small |= {"bank_size": 64, "negatives": 16, "head_size": 16}
    data = {"name": "digits", "images": 32}
    values = {**TINY, "teacher": teacher_file, "epochs": 3, "method": small, "eval_data": data}
    if method in ("gapssg-fast", "fast", "cmi"):
        small["distillation_steps"] = 0  # grows with the pool, and there is none in the first epochs
    settings = DistillSettings.model_validate({**values, "evaluate_every": 2})
    before = files_in(tmp_path)
    estimate = estimate_distillation(settings)
    assert files_in(tmp_path) == before
    result = distill(settings, tmp_path / "run")
    assert estimate.parts["distillation"].steps == result.distillation_steps
    assert estimate.parts["evaluation"].steps == 2
    assert all(part.seconds > 0 for part in estimate.parts.values())
    assert estimate.seconds == sum(part.seconds for part in estimate.parts.values())
    assert estimate.memory_bytes > 2**20
    assert estimate.flops == result.flops


def test_the_pool_of_an_earlier_run_needs_no_synthesis(teacher_file: Path, tmp_path: Path):
    values = {**TINY, "teacher": teacher_file}
    distill(DistillSettings.model_validate(values), tmp_path / "run")
    before = files_in(tmp_path)
    estimate = estimate_distillation(DistillSettings.model_validate({**values, "pool": tmp_path / "run"}))
    assert files_in(tmp_path) == before
    assert estimate.parts["synthesis"] == Part(0, 0.0)
    assert estimate.parts["distillation"].steps == 2 * 8


def test_estimating_restores_torchs_random_state(teacher_file: Path):
    before = torch.get_rng_state()
    estimate_distillation(DistillSettings.model_validate({**TINY, "teacher": teacher_file}))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_command_prints_time_steps_and_memory_and_writes_nothing(teacher_file: Path, tmp_path: Path):
    before = files_in(tmp_path)
    run = ("distill", "--teacher", teacher_file, *SHORT, *SYNTHESIS, "--eval-data", "digits", "--estimate")
    first, *others, last = gapssg(*run, "--output", tmp_path / "out").stdout.splitlines()
    assert first.startswith("estimated time: ")
    assert [line.split(" of ")[0] for line in others] == [
        "synthesis: 12 steps",
        "labelling: 48 steps",
        "distillation: 24 steps",
        "evaluation: 3 steps",
    ]
    assert last.startswith("memory: ")
    assert files_in(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_json_is_one_object(teacher_file: Path, image_folder: Path):
    run = ("distill", "--teacher", teacher_file, *SHORT, *SYNTHESIS, "--estimate", "--json")
    found = json.loads(gapssg(*run).stdout)
    assert found["command"] == "distill"
    assert found["steps"] == {"synthesis": 12, "labelling": 48, "distillation": 24, "evaluation": 0}
    assert found["timing"]["total"] > 0
    assert found["memory_bytes"] > 0
    assert found["flops"] > 0
    both = json.loads(gapssg(*run, "--dry-run").stdout)
    assert both["settings"]["epochs"] == 3
    assert both["estimate"]["steps"] == found["steps"]
    data = ("--data", f"folder:{image_folder}", "--model", "wrn10_half", "--epochs", 3, "--batch-size", 8)
    found = json.loads(gapssg("pretrain-teacher", *data, "--device", "cpu", "--estimate", "--json").stdout)
    assert found["steps"] == {"training": 18, "evaluation": 3}


def test_a_dry_run_prints_the_estimate_as_a_comment(teacher_file: Path, image_folder: Path, tmp_path: Path):
    data = ("--data", f"folder:{image_folder}", "--model", "wrn10_half", "--batch-size", 8)
    for command in (("distill", "--teacher", teacher_file, *SHORT, *SYNTHESIS), ("pretrain-teacher", *data)):
        plain = gapssg(*command, "--dry-run").stdout
        printed = gapssg(*command, "--dry-run", "--estimate").stdout
        assert printed.startswith(plain)
        assert "\n# estimated time: " in printed
        assert tomllib.loads(printed) == tomllib.loads(plain)
        (tmp_path / "settings.toml").write_text(printed)
        assert gapssg(command[0], "--config", tmp_path / "settings.toml", "--dry-run").stdout == plain


def test_bad_input_is_one_sentence_with_a_hint(teacher_file: Path, tmp_path: Path):
    run = ("distill", "--teacher", tmp_path / "none.safetensors", "--student", "wrn10_half", "--dry-run", "--estimate")
    assert "none.safetensors" in refusal(*run)
    distill(DistillSettings.model_validate({**TINY, "teacher": teacher_file}), tmp_path / "run")
    sentence = refusal("distill", "--resume", tmp_path / "run", "--estimate")
    assert sentence.startswith("--estimate times a new run; leave --resume out")
    with pytest.raises(InputError):
        estimate_distillation(DistillSettings.model_validate({**TINY, "teacher": tmp_path / "none.safetensors"}))


@pytest.mark.parametrize("method", ["gapssg", "gapssg-fast"])
def test_procedural_images_are_estimated_with_the_run(teacher_file: Path, tmp_path: Path, method: str):
    """With more generator steps than are timed, so that no synthesis is completed."""
    size = {"synthesis_batch_size": 16, "procedural_share": 0.6, "generator_width": 4, "latent_size": 8}
    values = {**TINY, "teacher": teacher_file, "batch_size": 16, "method": {"name": method, **size}}
    long = DistillSettings.model_validate({**values, "method": {**values["method"], "generator_steps": 200}})
    short = DistillSettings.model_validate({**values, "method": {**values["method"], "generator_steps": 2}})
    estimate, result = estimate_distillation(long), distill(short, tmp_path / "run")
    assert estimate.parts["distillation"].steps == result.distillation_steps
    assert result.images_procedural == 2 * 24 and result.images_synthesized == 2 * 16
    assert estimate_distillation(short).flops == result.flops


def test_a_pool_that_grows_is_estimated_with_its_images(teacher_file: Path, tmp_path: Path):
    values = {**TINY, "teacher": teacher_file}
    distill(DistillSettings.model_validate(values), tmp_path / "run")
    growing = DistillSettings.model_validate({**values, "pool": tmp_path / "run", "grow_pool": True, "batch_size": 16})
    result = distill(growing, tmp_path / "grown")
    assert estimate_distillation(growing).parts["distillation"].steps == result.distillation_steps
