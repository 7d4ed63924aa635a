"""Exported files classify images as the model does from which they were made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from torch import Tensor

from gapssg import ExportSettings, InputError, PredictSettings, export_model, load_model, predict
from gapssg.data.decode import decode_images
from gapssg.data.source import LoadOptions
from gapssg.evaluation import exported_file
from gapssg.export import quantize
from gapssg.files import read_blocks
from gapssg.models import create_model
from gapssg.models.model_file import save_model
from gapssg.runs.failures import known_failures
from gapssg.runs.results.common import RESULT
from gapssg.runs.results.evaluation import PredictResult
from gapssg.synthesis.shards import PoolOrigin, write_shard
from tests.conftest import make_card
from tests.models.graphs.small_models import Mobile, trained
from tests.models.graphs.written import write
from tests.program import gapssg, refusal
from tests.results import make_distill_result

# The same operations may be summed in another order, and batch norms are folded: some units of float32 rounding.
SOME_ROUNDING = 1e-5
DESCRIPTION = ("--mean", 0.3, "--std", 0.4, "--num-classes", 10)
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


@pytest.fixture(scope="module")
def onnx_file(model_file: Path) -> bytes:
    path = model_file.parent / "model.onnx"
    export_model(ExportSettings(model=model_file, to="onnx"), path)
    return path.read_bytes()


def predicted(model: Path, photo: Path) -> PredictResult:
    runtime = {"device": "cpu", "precision": "fp32"}
    settings = {"model": model, "images": [photo], "top": 10, "runtime": runtime}
    return predict(PredictSettings.model_validate(settings))


@pytest.mark.slow
@pytest.mark.parametrize(("to", "is_folded"), [("onnx", False), ("torch-export", False), ("torchscript", True)])
def test_an_exported_file_classifies_as_the_model_does_until_a_byte_of_its_weights_changes(
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
    damaged = bytearray(file.read_bytes())
    damaged[damaged.index(load_model(model_file).module.classifier.weight.detach().numpy().tobytes())] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(InputError, match=r"checksum does not match|does not match its checksum|Bad CRC-32"):
        predicted(file, photo)


@pytest.mark.slow
def test_an_int8_file_classifies_as_onnxruntime_does(model_file: Path, photo: Path, tmp_path: Path):
    run, file = tmp_path / "run", tmp_path / "int8.onnx"
    (run / "pool").mkdir(parents=True)
    (run / "student.safetensors").write_bytes(model_file.read_bytes())
    noise = torch.randint(0, 256, (40, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_shard(run / "pool" / "shard-0001.safetensors", noise, torch.arange(40) % 10, PoolOrigin("gapssg", "0"))
    int8 = {"enabled": True, "min_agreement": 0}
    export_model(ExportSettings.model_validate({"model": run, "to": "onnx", "int8": int8}), file)

    options = LoadOptions(image_size=(16, 16), channels=1, resize=20, interpolation="bicubic")
    pixels = torch.from_numpy(decode_images([photo], options)) / 255
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": ((pixels - 0.3) / 0.4).numpy()})
    expected = torch.from_numpy(logits[0]).double().log_softmax(0)
    step = (expected.max() - expected.min()) / 255  # at most that of the logits, which have 8 bits

    def difference(path: Path) -> Tensor:
        probabilities = {each.name: each.probability for each in predicted(path, photo).images[0].classes}
        found = torch.tensor([probabilities[name] for name in "abcdefghij"], dtype=torch.float64).log()
        return (found - expected).abs().max()

    assert difference(file) < step < difference(run)


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


def test_a_file_with_a_wrong_description_can_be_imported(torchscript: bytes, tmp_path: Path):
    (tmp_path / "sound.pt").write_bytes(torchscript)
    about = {"gapssg": json.dumps({"input_shape": [1, 16, 16]})}
    torch.jit.save(torch.jit.load(tmp_path / "sound.pt"), tmp_path / "wrong.pt", _extra_files=about)
    arguments = (*DESCRIPTION, "--output", tmp_path / "teacher.safetensors")
    said = gapssg("import-teacher", "--weights", tmp_path / "wrong.pt", *arguments).stdout
    assert f"what the run of {tmp_path / 'wrong.pt'} found is not known: " in said
    assert load_model(tmp_path / "teacher.safetensors").card.num_classes == 10


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


@pytest.mark.slow
def test_an_onnx_file_whose_graph_or_description_has_changed_is_refused(onnx_file: bytes, photo: Path, tmp_path: Path):
    file = tmp_path / "changed.onnx"
    in_a_value = onnx_file.index(b'"deviation":[0.4]') + len('"deviation":[0')
    for place in (onnx_file.index(b"kernel_shape"), in_a_value, onnx_file.index(b'content_sha256":') + 3):
        changed = bytearray(onnx_file)
        changed[place] ^= 1
        file.write_bytes(changed)
        assert refusal("predict", file, photo, "--quiet") == (
            f"{file} has changed since it was exported (its checksum does not match); if it is damaged, copy it "
            "again, or export it again; if another program wrote it, make a model file of it: gapssg import-teacher "
            f"--weights {file} ..."
        )


@pytest.mark.slow
def test_an_onnx_file_that_another_program_has_changed_can_be_imported(onnx_file: bytes, photo: Path, tmp_path: Path):
    file, teacher = tmp_path / "other.onnx", tmp_path / "teacher.safetensors"
    arguments = ["import-teacher", "--weights", file, *DESCRIPTION, "--overwrite", "--output", teacher]
    model = onnx.load_from_string(onnx_file)
    onnx.save(model, file)  # which changes nothing
    predicted(file, photo)
    assert "has changed" not in gapssg(*arguments).stdout
    rounded = numpy_helper.to_array(model.graph.initializer[0]).astype(numpy.float16).astype(numpy.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(rounded, model.graph.initializer[0].name))
    onnx.save(model, file)
    assert "other.onnx has changed since it was exported (its checksum does" in refusal("predict", file, photo)
    assert f"warning: {file} has changed since it was exported; if it is damaged," in gapssg(*arguments).stdout
    predicted(teacher, photo)


@pytest.mark.slow
def test_an_onnx_file_from_before_checksums_and_failures_is_read(onnx_file: bytes, photo: Path, tmp_path: Path):
    model = onnx.load_from_string(onnx_file)
    about = json.loads(model.metadata_props[0].value)
    del about["content_sha256"], about["failures"]
    onnx.helper.set_model_props(model, {"gapssg": json.dumps(about)})
    onnx.save(model, tmp_path / "old.onnx")
    (tmp_path / "new.onnx").write_bytes(onnx_file)
    old, new = (predicted(tmp_path / name, photo) for name in ("old.onnx", "new.onnx"))
    assert old.images == new.images
    assert (old.failures, new.failures) == (None, ())


@pytest.mark.slow
def test_only_a_file_that_may_have_a_checksum_is_read_for_it_and_once(
    onnx_file: bytes, torchscript: bytes, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read: list[Path] = []

    def blocks(path: Path, most_bytes: int) -> Iterator[bytes]:
        read.append(path)
        return read_blocks(path, most_bytes)

    monkeypatch.setattr(exported_file, "read_blocks", blocks)
    for name, content, count in (("model.onnx", onnx_file, 1), ("model.pt", torchscript, 0)):
        read.clear()
        (tmp_path / name).write_bytes(content)
        predicted(tmp_path / name, photo)
        assert read == count * [tmp_path / name]
        gapssg(
            "import-teacher", "--weights", tmp_path / name, *DESCRIPTION, "--output", tmp_path / f"{name}.safetensors"
        )
        assert read == 2 * count * [tmp_path / name]


def test_the_failures_of_a_run_are_those_of_its_exported_student(model_file: Path, photo: Path, tmp_path: Path):
    run, file = tmp_path / "run", tmp_path / "exported.pt"
    run.mkdir()
    (run / "student.safetensors").write_bytes(model_file.read_bytes())
    result = make_distill_result().model_copy(update={"failures": ("it is right on none",)})
    (run / RESULT).write_text(result.model_dump_json())
    export_model(ExportSettings(model=run, to="torchscript"), file)
    shown = gapssg("predict", file, photo, "--json")
    assert json.loads(shown.stdout)["failures"] == ["it is right on none"]
    assert shown.stderr.count(f"FAILED: {file} is not usable: it is right on none") == 1
    weights = run / "student.safetensors"
    for given in ((file,), (weights, "--model", "wrn10_half", "--input-shape", "1,16,16")):
        output = tmp_path / f"of-{given[0].name}.safetensors"
        imported = gapssg("import-teacher", "--weights", *given, *DESCRIPTION, "--output", output)
        assert imported.stdout.count(f"warning: FAILED: {given[0]} is not usable: it is right on none") == 1
        assert known_failures(output) == ("it is right on none",)
    (run / RESULT).write_text("{")
    export_model(ExportSettings(model=run, to="torchscript"), file, overwrite=True)
    assert predicted(file, photo).failures is None
