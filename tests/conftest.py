"""Small models and data that many tests share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gapssg.core.runtime import Runtime
from gapssg.models import create_model
from gapssg.models.description import ModelCard, Provenance
from gapssg.models.model_file import save_model
from gapssg.quality import evidence


@pytest.fixture(scope="session", autouse=True)
def few_probe_images():
    """Let runs end with few probe images, whose number matters only to `tests/quality`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "PROBE_COUNT", 8)
        yield


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(device=torch.device("cpu"), precision="fp32", compiled=False, seed=0)


def make_card(**changes: Any) -> ModelCard:
    """Describe a wrn10_half for 1x16x16 images of 10 classes, with changes."""
    values: dict[str, Any] = {
        "architecture": "wrn10_half",
        "num_classes": 10,
        "input_shape": (1, 16, 16),
        "mean": (0.3,),
        "deviation": (0.4,),
        "crop_padding": 2,
        "flip": False,
        "class_names": tuple("0123456789"),
        "provenance": Provenance(command="pretrain-teacher"),
    }
    return ModelCard(**{**values, **changes})


@pytest.fixture
def teacher_file(tmp_path: Path) -> Path:
    """A teacher as `write_teacher` makes it."""
    return write_teacher(tmp_path / "teacher.safetensors")


def write_teacher(path: Path, architecture: str = "wrn10_half") -> Path:
    """Write a teacher with random weights whose batch-norm statistics are not those of an untouched layer."""
    path.write_bytes(_teacher(architecture))
    return path


@cache
def _teacher(architecture: str) -> bytes:
    card = make_card(architecture=architecture)
    model = create_model(card.architecture, num_classes=10, input_shape=card.input_shape, seed=1)
    generator = torch.Generator().manual_seed(0)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(32, *card.input_shape, generator=generator))
    with TemporaryDirectory() as folder:
        save_model(Path(folder) / "teacher.safetensors", model.eval(), card)
        return (Path(folder) / "teacher.safetensors").read_bytes()


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Images as `write_images` makes them."""
    return write_images(tmp_path / "images")


def write_images(root: Path, test: int = 8) -> Path:
    """Write two classes of 16x16 grey images, dark and bright: 24 to train on and 8 or more to test on, each."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", test)):
        for name, level in (("dark", 60), ("bright", 190)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = draw.normal(level, 20, (16, 16)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root
