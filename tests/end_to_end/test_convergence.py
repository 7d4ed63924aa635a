"""What the program is for, on a tiny budget: a student learns the digits without having seen one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gapssg import DistillSettings, PretrainSettings, distill, pretrain_teacher
from gapssg.runs.results.distillation import DistillResult
from tests.run_fixtures import events

pytestmark = pytest.mark.slow

RUNTIME = {"device": "cpu", "precision": "fp32"}


def distilled(teacher: Path, output: Path, method: dict[str, Any]) -> DistillResult:
    settings = {
        "teacher": teacher,
        "student": {"name": "wrn10_half"},
        "eval_data": {"name": "digits"},
        "epochs": 5,
        "batch_size": 32,
        "evaluate_every": 5,
        "optimizer": {"learning_rate": 0.1, "weight_decay": 1e-4, "nesterov": False, "schedule": "cosine"},
        "method": {"synthesis_batch_size": 64, "passes": 6, **method},
        "runtime": RUNTIME,
    }
    return distill(DistillSettings.model_validate(settings), output)


def test_gapssg_and_the_default_teach_a_student_far_more_than_noise_does_and_only_noise_fails(tmp_path: Path):
    teacher = PretrainSettings.model_validate(
        {
            "data": {"name": "digits"},
            "model": {"name": "wrn10_half"},
            "epochs": 6,
            "batch_size": 64,
            "runtime": RUNTIME,
        }
    )
    result = pretrain_teacher(teacher, tmp_path / "teacher")
    assert result.model.top1 > 0.9
    file = tmp_path / "teacher" / "model.safetensors"
    noise = distilled(file, tmp_path / "noise", {"name": "noise"})
    gapssg = distilled(file, tmp_path / "gapssg", {"name": "gapssg", "generator_steps": 20, "generator_width": 16})
    # As many distillation steps in all as the other two, whose epochs grow with the pool.
    fast = {"name": "gapssg-fast", "generator_width": 16, "distillation_steps": 36}
    default = distilled(file, tmp_path / "default", fast)
    for name, found in (("gapssg", gapssg), ("default", default)):
        assert found.student.top1 > noise.student.top1 + 0.3
        assert found.failures == ()
        assert found.missing_classes == ()
        assert [event for event in events(tmp_path / name) if event["event"] == "warning"] == []
    assert noise.failures != ()
