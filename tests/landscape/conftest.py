"""A run with snapshots and a pool, created without training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from gapssg import DistillSettings
from gapssg.landscape.settings import LandscapeSettings
from gapssg.landscape.surface import Surface, SurfaceCard
from gapssg.models.description import Provenance
from gapssg.models.model_file import load_model, save_model
from gapssg.runs.results.common import RESULT
from gapssg.synthesis.shards import PoolOrigin, write_shard
from tests.conftest import make_card
from tests.results import make_distill_result


@pytest.fixture
def run_folder(tmp_path: Path, teacher_file: Path) -> Path:
    """A distillation run whose snapshots lie on a bent route to its student."""
    folder = tmp_path / "run"
    (folder / "snapshots").mkdir(parents=True)
    (folder / "pool").mkdir()
    teacher = load_model(teacher_file)
    provenance = Provenance(command="distill", teacher_sha256=teacher.sha256)
    values = {"teacher": teacher_file, "student": {"name": "wrn10_half"}, "epochs": 3, "method": {"name": "gapssg"}}
    settings = DistillSettings.model_validate(values)
    (folder / "settings.toml").write_text(settings.to_toml())
    (folder / RESULT).write_text(make_distill_result().model_copy(update={"failures": ()}).model_dump_json())
    generator = torch.Generator().manual_seed(3)
    steps = [
        {name: torch.randn(value.shape, generator=generator) for name, value in teacher.module.named_parameters()}
        for _ in range(2)
    ]
    final = {name: value.clone() for name, value in teacher.module.state_dict().items()}
    for epoch, (first, second) in enumerate([(0.2, 0.0), (0.1, 0.06), (0.0, 0.0)], 1):
        with torch.no_grad():
            for name, value in teacher.module.named_parameters():
                value.copy_(final[name] + first * steps[0][name] + second * steps[1][name])
        save_model(folder / "snapshots" / f"epoch-{epoch:04d}.safetensors", teacher.module, make_card())
    save_model(folder / "student.safetensors", teacher.module, make_card(provenance=provenance))
    images = torch.randint(0, 256, (40, 1, 16, 16), dtype=torch.uint8, generator=generator)
    for shard in range(2):
        part = slice(20 * shard, 20 * shard + 20)
        origin = PoolOrigin("gapssg", teacher.sha256)
        write_shard(folder / "pool" / f"shard-{shard:04d}.safetensors", images[part], torch.zeros(20).long(), origin)
    return folder


@pytest.fixture
def second_run(run_folder: Path, tmp_path: Path) -> Path:
    other = tmp_path / "second"
    shutil.copytree(run_folder, other)
    return other


def settings(*models: Path, **changes: Any) -> LandscapeSettings:
    """Settings of a landscape that takes a second."""
    values: dict[str, Any] = {
        "models": models,
        "data": {"name": "digits"},
        "samples": 20,
        "grid": 3,
        "range": 0.5,
        "curvature": {"enabled": False},
        "runtime": {"device": "cpu", "precision": "fp32"},
    }
    return LandscapeSettings.model_validate({**values, **changes})


def make_surface(loss: torch.Tensor, **changes: Any) -> Surface:
    """A complete surface without a model, with axes from -1 to 1 and its centre in the middle."""
    labels = tuple(f"random direction {axis + 1}" for axis in range(loss.dim()))
    values: dict[str, Any] = {
        "name": "student",
        "model_file": "student.safetensors",
        "model_sha256": "0" * 64,
        "architecture": "wrn10_half",
        "directions": "random",
        "axis_labels": labels,
        "biases_and_norms": False,
        "seed": 0,
        "range": 1.0,
        "data": "digits",
        "samples": 20,
        "samples_sha256": "1" * 64,
        "loss_name": "cross-entropy",
        "accuracy_name": "accuracy",
        "recalibrated": False,
        "precision": "fp32",
        **changes,
    }
    axes = torch.linspace(-1, 1, len(loss), dtype=torch.float64).repeat(loss.dim(), 1)
    surface = Surface.empty(SurfaceCard(**values), axes)
    surface.add(loss.reshape(-1).float(), torch.full((loss.numel(),), 0.5))
    surface.centre_loss = loss[(len(loss) // 2,) * loss.dim()].float()
    return surface
