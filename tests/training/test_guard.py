"""Divergence is rolled back to half the learning rate, and after too many rollbacks fails with one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gapssg import DistillSettings, PretrainSettings, distill, pretrain_teacher
from gapssg.errors import RunError
from gapssg.runs.requests import Requests, Stopped
from gapssg.synthesis.inversion import GeneratorInversion
from gapssg.training.trainee import Trainee
from tests.interruptions import AskingDisplay
from tests.run_fixtures import TINY, events, files_of

CONSTANT = {"learning_rate": 0.2, "schedule": "constant"}


def settings(teacher_file: Path, **changes: Any) -> DistillSettings:
    values = {**TINY, "teacher": teacher_file, "epochs": 3, "optimizer": CONSTANT}
    return DistillSettings.model_validate({**values, **changes})


def diverge_above(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    """Make every training loss that comes after a step at a higher learning rate not a number."""
    plain = Trainee.__init__

    def make(self, model, loss, *others):
        def diverging(*tensors):
            too_fast = self._optimizer.param_groups[0]["lr"] > rate
            return {"loss": torch.where(too_fast, torch.nan, loss(*tensors)["loss"])}

        plain(self, model, diverging, *others)

    monkeypatch.setattr(Trainee, "__init__", make)


def rollbacks(run: Path) -> list[tuple[int, str, Any]]:
    found = [event for event in events(run) if event["event"] == "rollback"]
    return [(event["epoch"], event["part"], pytest.approx(event["learning_rate"])) for event in found]


@pytest.mark.slow
def test_training_that_diverges_is_rolled_back_to_half_the_learning_rate(
    teacher_file: Path, tmp_path: Path, monkeypatch
):
    diverge_above(monkeypatch, 0.06)
    result = distill(settings(teacher_file), tmp_path / "run")
    assert rollbacks(tmp_path / "run") == [(1, "training", 0.1), (1, "training", 0.05)]
    epochs = [event for event in events(tmp_path / "run") if event["event"] == "epoch"]
    assert [event["learning_rate"] for event in epochs] == pytest.approx([0.05] * 3)
    # Steps that were rolled back are not counted, and do not change the student.
    monkeypatch.undo()
    slow = settings(teacher_file, optimizer={**CONSTANT, "learning_rate": 0.05})
    expected = distill(slow, tmp_path / "slow")
    assert result.distillation_steps == expected.distillation_steps
    ours, theirs = (load_file(tmp_path / name / "student.safetensors") for name in ("run", "slow"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_pretraining_that_diverges_is_rolled_back_to_half_the_learning_rate(
    image_folder: Path, tmp_path: Path, monkeypatch
):
    diverge_above(monkeypatch, 0.15)
    values = {"data": {"name": f"folder:{image_folder}"}, "model": {"name": "wrn10_half"}, "batch_size": 16}
    given = PretrainSettings.model_validate({**values, "epochs": 2, "optimizer": CONSTANT})
    pretrain_teacher(given, tmp_path / "run")
    assert rollbacks(tmp_path / "run") == [(1, "training", 0.1)]


@pytest.mark.slow
def test_synthesis_that_diverges_restarts_at_half_the_learning_rate(teacher_file: Path, tmp_path: Path, monkeypatch):
    plain = GeneratorInversion._loss

    def loss(self, *shifts):
        outputs = plain(self, *shifts)
        too_fast = self._optimizer.param_groups[0]["lr"] > 1.5e-3
        return {**outputs, "loss": torch.where(too_fast, torch.nan, outputs["loss"])}

    monkeypatch.setattr(GeneratorInversion, "_loss", loss)
    result = distill(settings(teacher_file), tmp_path / "run")
    assert rollbacks(tmp_path / "run") == [(1, "synthesis", 1e-3)]
    assert result.images_synthesized == 3 * TINY["method"]["synthesis_batch_size"]
    monkeypatch.undo()
    slow = settings(teacher_file, method={**TINY["method"], "generator_learning_rate": 1e-3})
    distill(slow, tmp_path / "slow")
    ours, theirs = (load_file(tmp_path / name / "student.safetensors") for name in ("run", "slow"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("allowed", [0, 2])
def test_too_many_rollbacks_fail_with_one_sentence(teacher_file: Path, tmp_path: Path, monkeypatch, allowed):
    diverge_above(monkeypatch, 0.0)
    with pytest.raises(RunError, match=rf"diverged in epoch 1, {allowed + 1} times.*raise --max-rollbacks"):
        distill(settings(teacher_file, max_rollbacks=allowed), tmp_path / "run")
    assert len(rollbacks(tmp_path / "run")) == allowed


@pytest.mark.slow
def test_a_run_stopped_while_it_diverges_equals_the_uninterrupted_one(teacher_file: Path, tmp_path, monkeypatch):
    diverge_above(monkeypatch, 0.15)
    distill(settings(teacher_file), tmp_path / "whole")
    for step in (2, 6, 11):
        requests, run = Requests(), tmp_path / f"stopped-{step}"
        with pytest.raises(Stopped):
            distill(settings(teacher_file), run, display=AskingDisplay(step, requests, "stop"), requests=requests)
        distill(settings(teacher_file), run, resume=True)
        found, expected = files_of(run), files_of(tmp_path / "whole")
        assert found["events.jsonl"] == expected["events.jsonl"]
        assert found == expected
