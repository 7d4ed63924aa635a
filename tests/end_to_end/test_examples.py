"""The programs in `examples/`, of which those in Python are run."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from gapssg import ExportSettings, export_model, load_model
from gapssg.data import load_split
from tests.conftest import write_teacher

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = {"classify_onnx.py": "onnx", "classify_pytorch.py": "torch-export"}


def test_every_example_is_described():
    described = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.iterdir():
        assert path.name == "README.md" or f"[{path.name}]({path.name})" in described
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*PROGRAMS}


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_an_example_prints_the_class_that_the_model_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: str
):
    to = PROGRAMS[program]
    if to == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    model = write_teacher(tmp_path / "model.safetensors")
    export_model(ExportSettings(model=model, to=to, fold_normalization=True), tmp_path / "model")
    loaded = load_model(model)
    images = load_split("digits", "test").images[:40]
    with torch.no_grad():
        predicted = loaded.module((images / 255 - 0.3) / 0.4).argmax(1)
    for index in (0, int((predicted != predicted[0]).nonzero()[0])):  # two images of different classes
        Image.fromarray(images[index, 0].numpy()).save(tmp_path / "image.png")
        monkeypatch.setattr(sys, "argv", [program, str(tmp_path / "model"), str(tmp_path / "image.png")])
        runpy.run_path(str(EXAMPLES / program))
        assert capsys.readouterr().out.split() == [loaded.card.class_names[predicted[index]]]
