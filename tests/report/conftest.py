"""Finished runs of every kind, made once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from gapssg import DistillSettings, LandscapeSettings, PretrainSettings, distill, measure_landscape, pretrain_teacher
from tests.conftest import write_images, write_teacher
from tests.run_fixtures import TINY

CLASSES = ("<img src=x onerror=alert(1)>", "a`|b ${c} {{ d }}")
RUNTIME = {"device": "cpu", "precision": "fp32"}
NO_INTERVAL = {"disagreement": {"value": 0.12, "low": None, "high": None}, "obstacles": ["it is unlike the others"]}
"""A prediction, as `result.json` has it."""


class Runs(NamedTuple):
    """Finished runs.

    Attributes:
        evaluated: A distillation that was evaluated on digits.
        blind: One without evaluation data.
        hostile: A training on two classes with hostile names, in a directory with one.
        landscape: Around the student of `evaluated`.
        images: The images of `hostile`.
        teacher: The teacher's file.
    """

    evaluated: Path
    blind: Path
    hostile: Path
    landscape: Path
    images: Path
    teacher: Path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("runs")
    images = write_images(root / "images")
    for split in ("train", "test"):
        for old, new in zip(("dark", "bright"), CLASSES, strict=True):
            (images / split / old).rename(images / split / new)
    runs = Runs(
        root / "evaluated",
        root / "blind",
        root / '<b onclick="x">',
        root / "landscape",
        images,
        write_teacher(root / "teacher.safetensors"),
    )
    values = {**TINY, "teacher": runs.teacher}
    distill(DistillSettings.model_validate({**values, "eval_data": {"name": "digits"}}), runs.evaluated)
    # Its disagreement on the probe images is larger than any that the predictor knows.
    distill(DistillSettings.model_validate({**values, "seed": 3}), runs.blind)
    training = {"data": {"name": f"folder:{images}"}, "model": {"name": "wrn10_half"}, "epochs": 2, "runtime": RUNTIME}
    pretrain_teacher(PretrainSettings.model_validate(training), runs.hostile)
    around = {"models": [runs.evaluated], "data": {"name": "digits"}, "samples": 10, "grid": 3, "runtime": RUNTIME}
    measure_landscape(LandscapeSettings.model_validate({**around, "curvature": {"enabled": False}}), runs.landscape)
    return runs


@pytest.fixture
def runs(made: Runs, tmp_path: Path) -> Runs:
    """A copy that a test may damage."""
    folders = ("evaluated", "blind", "hostile", "landscape")
    for name in folders:
        shutil.copytree(getattr(made, name), tmp_path / getattr(made, name).name)
    return made._replace(**{name: tmp_path / getattr(made, name).name for name in folders})
