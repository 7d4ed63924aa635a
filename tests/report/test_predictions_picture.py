"""The picture of what teacher and student predict."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from gapssg import distill, load_model
from gapssg.core.runtime import Runtime
from gapssg.data import load_split
from gapssg.report.predictions import draw_predictions
from gapssg.runs.results.distillation import DistillResult
from tests.run_fixtures import settings


def test_predictions_are_drawn_for_synthetic_and_real_images_reproducibly(
    teacher_file: Path, runtime: Runtime, tmp_path: Path
):
    distill(settings(teacher_file), tmp_path / "run")
    teacher, student = load_model(teacher_file), load_model(tmp_path / "run" / DistillResult.model_file)
    drawn = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        files = draw_predictions(
            tmp_path / name, teacher, student, tmp_path / "run", load_split("digits", "test"), runtime
        )
        assert [file.name for file in files] == ["predictions.png", "predictions.svg"]
        drawn.append([file.read_bytes() for file in files])
    assert drawn[0] == drawn[1]
    text = drawn[0][1].decode()
    assert "synthetic images, which the student learned from" in text
    assert "teacher: " in text and "student: " in text
    width, height = Image.open(tmp_path / "first" / "predictions.png").size
    assert width > 2 * height
