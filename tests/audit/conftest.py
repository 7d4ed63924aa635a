"""Teachers that have memorised their images or not, and a run with a pool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from gapssg import AuditSettings, DistillSettings, PretrainSettings, distill, load_model, pretrain_teacher
from gapssg.data import load_split
from gapssg.synthesis.shards import PoolOrigin, write_shard

MLP = "tests.audit.factories:mlp"
RUNTIME = {"device": "cpu", "precision": "fp32", "compile": False}
MEMBERS = 60


class Made(NamedTuple):
    """Models and runs.

    Attributes:
        overfitted: A teacher of many epochs on 60 digits, without augmentation.
        regularised: A teacher of few epochs on all digits, with crops and a high weight decay.
        run: A distillation from the overfitted teacher, of noise images.
    """

    overfitted: Path
    regularised: Path
    run: Path


def pretrain(output: Path, images: int | None, **values: Any) -> Path:
    settings = {"data": {"name": "digits", "images": images}, "model": {"name": MLP}, "runtime": RUNTIME, **values}
    pretrain_teacher(PretrainSettings.model_validate(settings), output)
    return output / "model.safetensors"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("audit")
    overfitting = {"weight_decay": 0.0, "learning_rate": 0.05}
    decay = {"weight_decay": 0.05, "learning_rate": 0.05}
    few = {"epochs": 60, "batch_size": 30, "crop_padding": 0, "checkpoint_every": 60, "optimizer": overfitting}
    all_images = {"epochs": 5, "batch_size": 64, "checkpoint_every": 5, "optimizer": decay}
    found = Made(
        pretrain(root / "overfitted", MEMBERS, **few), pretrain(root / "regularised", None, **all_images), root / "run"
    )
    values = {
        "teacher": found.overfitted,
        "student": {"name": MLP},
        "method": {"name": "noise", "synthesis_batch_size": 100},
        "epochs": 2,
        "batch_size": 50,
        "samples": False,
        "model_factories": [MLP],
        "runtime": RUNTIME,
    }
    distill(DistillSettings.model_validate(values), found.run)
    return found


@pytest.fixture
def settings() -> Callable[..., AuditSettings]:
    """Settings of an audit with the digits that the overfitted teacher was trained on, with changes."""

    def make(model: Path, **changes: Any) -> AuditSettings:
        values = {
            "model": model,
            "members": {"name": "digits", "images": MEMBERS},
            "non_members": {"name": "digits"},
            "model_factories": [MLP],
            "runtime": RUNTIME,
        }
        return AuditSettings.model_validate({**values, **changes})

    return make


def fill_pool_with_members(run: Path, teacher: Path) -> None:
    """Replace the pool of a run by its members, with some noise."""
    for shard in (run / "pool").iterdir():
        shard.unlink()
    members = load_split("digits", "train").subsample(MEMBERS)
    noise = 10 * torch.randn(members.images.shape, generator=torch.Generator().manual_seed(0))
    images = (members.images + noise).clamp(0, 255).to(torch.uint8)
    origin = PoolOrigin("noise", load_model(teacher, [MLP]).sha256)
    write_shard(run / "pool" / "shard-0001.safetensors", images, members.labels, origin)
