"""Exported files classify images as the model does from which they were made."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from gapssg import ExportSettings, PredictSettings, export_model, predict
from gapssg.export import quantize
from gapssg.models import create_model
from gapssg.models.model_file import save_model
from gapssg.runs.results.evaluation import PredictResult
from tests.conftest import make_card
from tests.models.graphs.small_models import Mobile, trained
from tests.models.graphs.written import write
from tests.program import refusal

# The same operations may be summed in another order, and batch norms are folded: some units of float32 rounding.
SOME_ROUNDING = 1e-5
pytestmark = [
    pytest.mark.usefixtures("in_process"),
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that resizes images and takes them in other ways than by default."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    names = tuple("abcdefghij")
    card = make_card(architecture="wrn10_half", class_names=names, resize=20, interpolation="bicubic")
    save_model(path, create_model("wrn10_half", num_classes=10, input_shape=(1, 16, 16)), card)
    return path


@pytest.fixture(scope="module")
def photo(model_file: Path) -> Path:
    path = model_file.parent / "photo.png"
    Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=numpy.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def torchscript(model_file: Path) -> bytes:
    path = model_file.parent / "model.pt"
    export_model(ExportSettings(model=model_file, to="torchscript"), path)
    return path.read_bytes()


def predicted(model: Path, photo: Path) -> PredictResult:
    runtime = {"device": "cpu", "precision": "fp32"}
    settings = {"model": model, "images": [photo], "top": 10, "runtime": runtime}
    return predict(PredictSettings.model_validate(settings))


@pytest.mark.slow
@pytest.mark.parametrize(("to", "is_folded"), [("onnx", False), ("torch-export", False), ("torchscript", True)])
def test_an_exported_file_classifies_as_the_model_does(
    model_file: Path, photo: Path, tmp_path: Path, to: str, is_folded: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(quantize, "_SECONDS_OF_TIMING", 0.01)
    file = tmp_path / "exported"
    values = {"model": model_file, "to": to, "fold_normalization": is_folded}
    export_model(ExportSettings.model_validate(values), file)
    (expected,), result = predicted(model_file, photo).images, predicted(file, photo)
    (found,) = result.images
    assert [each.name for each in found.classes] == [each.name for each in expected.classes]
    for ours, theirs in zip(found.classes, expected.classes, strict=True):
        assert ours.probability == pytest.approx(theirs.probability, rel=SOME_ROUNDING)
    assert result.model.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def other_classes(about: dict[str, Any]) -> dict[str, Any]:
    return {**about, "num_classes": 9, "class_names": about["class_names"][:9]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (other_classes, "is damaged: its description is of another model; export the model again"),
        (lambda about: {**about, "mean": []}, "its description is not valid: the description: mean, deviation and"),
        (lambda about: {"input_shape": about["input_shape"]}, "its description is not valid: architecture: Field"),
        (lambda about: {**about, "input_shape": "large"}, "cannot be imported as a graph: "),
        (lambda about: {**about, "mean": [0.0] * 2**20}, "its description is larger than that of any model"),
        (lambda about: [], "cannot be imported as a graph: it cannot be read"),
    ],
)
def test_a_wrong_description_is_refused(
    torchscript: bytes, photo: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], sentence: str
):
    (tmp_path / "sound.pt").write_bytes(torchscript)
    extra: dict[str, Any] = {"gapssg": ""}
    module = torch.jit.load(tmp_path / "sound.pt", _extra_files=extra)
    changed = json.dumps(change(json.loads(extra["gapssg"])))
    torch.jit.save(module, tmp_path / "wrong.pt", _extra_files={"gapssg": changed})
    said = refusal("predict", tmp_path / "wrong.pt", photo, "--quiet")
    assert sentence in said
    assert len(said.splitlines()) == 1


def test_files_of_other_programs_and_damaged_ones_say_what_to_do(torchscript: bytes, photo: Path, tmp_path: Path):
    foreign = {form: write(form, trained(Mobile), tmp_path) for form in ("onnx-kept", "torchscript-traced")}
    said = refusal("predict", foreign["onnx-kept"], photo)
    assert said.startswith(f"{foreign['onnx-kept']} is a graph (onnx), not a model file; make one from it: gapssg imp")
    said = refusal("predict", foreign["torchscript-traced"], photo)
    assert "it does not say how large its images are" in said
    assert f"make a model file of it: gapssg import-teacher --weights {foreign['torchscript-traced']} ..." in said
    (tmp_path / "cut.onnx").write_bytes(foreign["onnx-kept"].read_bytes()[:1000])
    assert "cut.onnx cannot be imported as a graph: it is not a readable ONNX file" in refusal(
        "predict", tmp_path / "cut.onnx", photo
    )
    (tmp_path / "cut.pt").write_bytes(torchscript[:-100])
    assert "cut.pt is incomplete or damaged" in refusal("predict", tmp_path / "cut.pt", photo)
    with zipfile.ZipFile(io.BytesIO(torchscript)) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        weights = archive.read(largest)
    changed = bytearray(torchscript)
    changed[torchscript.index(weights) + len(weights) // 2] ^= 0x80  # PyTorch reads it without a word
    (tmp_path / "changed.pt").write_bytes(changed)
    assert "does not match its checksum" in refusal("predict", tmp_path / "changed.pt", photo)
