"""Classifying image files: the classes and probabilities, and the forms in which they are shown."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy
import pytest
import torch
from PIL import Image

from gapssg import ExportSettings, InputError, PredictSettings, RunError, export_model, load_model, predict
from gapssg.core.runtime import Runtime
from gapssg.data import load_split
from gapssg.data.decode import decode_images
from gapssg.data.settings import DataSettings
from gapssg.evaluation.predict import predict as logits_of
from gapssg.evaluation.predict_files import _to_csv
from gapssg.evaluation.real_images import read_test_images
from gapssg.models import create_model
from gapssg.models.model_file import save_model
from gapssg.runs.directory import SilentDisplay
from gapssg.runs.results.common import RESULT
from gapssg.runs.results.evaluation import ClassProbability, PredictedImage
from tests.conftest import make_card
from tests.program import gapssg, refusal
from tests.results import make_distill_result

HALF = {"architecture": "wrn10_half"}
RUNTIME = {"device": "cpu", "precision": "fp32"}
# The same operations may be summed in another order for another batch: some units of float32 rounding.
SOME_ROUNDING = 1e-5


def settings(model: Path, *images: Path, **changes: Any) -> PredictSettings:
    return PredictSettings.model_validate({"model": model, "images": images, "runtime": RUNTIME, **changes})


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 1x16x16 images of 10 classes."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, create_model("wrn10_half", num_classes=10, input_shape=(1, 16, 16)), make_card(**HALF))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of images of many kinds and sizes, as `folder:` reads its test split."""
    draw = numpy.random.default_rng(0)
    root = tmp_path / "photos"
    for name in ("cat", "dog"):
        (root / "test" / name / "deep").mkdir(parents=True)
    colours = draw.integers(0, 256, (40, 24, 3), dtype=numpy.uint8)
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(colours).save(root / "test/cat/a.jpg", exif=turned)
    Image.fromarray(colours[:, :, 0].astype(numpy.uint16) * 256).save(root / "test/cat/b.png")
    Image.fromarray(colours).quantize(8).save(root / "test/dog/deep/c.gif")
    Image.fromarray(colours[:16, :16]).save(root / "test/dog/d.PNG")
    return root


def images_in(photos: Path) -> list[Path]:
    return [photos / "test" / name for name in ("cat/a.jpg", "cat/b.png", "dog/d.PNG", "dog/deep/c.gif")]


def test_classes_and_probabilities_are_those_of_the_images_that_the_folder_source_reads(
    model_file: Path, photos: Path, runtime: Runtime
):
    model = load_model(model_file)
    read = load_split(f"folder:{photos}", "test", image_size=16, channels=1)
    logits = logits_of(runtime.place(model.module), read.images, model.normalization(runtime.device), runtime)
    result = predict(settings(model_file, photos, top=10))
    assert [image.file for image in result.images] == list(map(str, images_in(photos)))
    for image, expected in zip(result.images, logits.double().softmax(dim=1), strict=True):
        order = expected.argsort(descending=True).tolist()
        assert [found.name for found in image.classes] == [model.card.class_names[index] for index in order]
        assert [found.probability for found in image.classes] == expected[order].tolist()
    assert (result.model.sha256, result.model.architecture) == (model.sha256, "wrn10_half")


def test_images_are_resized_as_the_training_did_alike_from_files_and_as_data(
    photos: Path, tmp_path: Path, runtime: Runtime
):
    card = make_card(**HALF, num_classes=2, class_names=("cat", "dog"), resize=20, interpolation="bicubic")
    file = tmp_path / "model.safetensors"
    save_model(file, create_model("wrn10_half", num_classes=2, input_shape=(1, 16, 16)), card)
    model = load_model(file)
    assert model.card == card
    folder = f"folder:{photos}"
    read = load_split(folder, "test", image_size=16, channels=1, resize=20, interpolation="bicubic")
    assert not torch.equal(read.images, load_split(folder, "test", image_size=16, channels=1).images)
    as_data = read_test_images(DataSettings(name=folder), model, SilentDisplay())
    assert torch.equal(as_data.images, read.images)
    logits = logits_of(runtime.place(model.module), read.images, model.normalization(runtime.device), runtime)
    found = {image.file: image.classes[0].probability for image in predict(settings(file, photos)).images}
    highest = logits.double().softmax(dim=1).max(dim=1).values.tolist()
    assert found == dict(zip(map(str, images_in(photos)), highest, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_an_exported_file_is_read_by_an_isolated_child_process(
    model_file: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "model.pt"
    export_model(ExportSettings(model=model_file, to="torchscript"), file)
    run = Mock(wraps=subprocess.run)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(torch.jit, "load", Mock(side_effect=AssertionError))  # in this process
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch.py").write_text("raise SystemExit('the folder of the user is on the path')\n")
    found, expected = (
        json.loads(gapssg("predict", path, photos, "--precision", "fp32", "--json").stdout)["images"]
        for path in (file, model_file)
    )
    assert run.call_args.args[0][:2] == [sys.executable, "-I"]
    for image, right in zip(found, expected, strict=True):
        assert image["file"] == right["file"]
        assert [each["name"] for each in image["classes"]] == [each["name"] for each in right["classes"]]
        for ours, theirs in zip(image["classes"], right["classes"], strict=True):
            assert ours["probability"] == pytest.approx(theirs["probability"], rel=SOME_ROUNDING)


def test_files_and_folders_are_read_in_the_order_given_and_only_the_top_classes_are_kept(
    model_file: Path, photos: Path
):
    cat, dog = photos / "test/cat", photos / "test/dog"
    result = predict(settings(model_file, dog / "d.PNG", cat, top=3))
    assert [Path(image.file).name for image in result.images] == ["d.PNG", "a.jpg", "b.png"]
    assert {len(image.classes) for image in result.images} == {3}


def test_only_one_batch_of_images_is_in_memory(model_file: Path, photos: Path, monkeypatch: pytest.MonkeyPatch):
    whole = predict(settings(model_file, photos))
    sizes = []

    def counting(files: Any, options: Any) -> Any:
        sizes.append(len(files))
        return decode_images(files, options)

    monkeypatch.setattr("gapssg.evaluation.predict_files.decode_images", counting)
    parts = predict(settings(model_file, photos, batch_size=3))
    assert sizes == [3, 1]
    for part, expected in zip(parts.images, whole.images, strict=True):
        assert (part.file, part.classes[0].name) == (expected.file, expected.classes[0].name)
        assert part.classes[0].probability == pytest.approx(expected.classes[0].probability, rel=SOME_ROUNDING)


def test_a_table_csv_and_json_say_the_same(model_file: Path, photos: Path, tmp_path: Path):
    command = ["predict", model_file, photos, "--top", 2, "--precision", "fp32"]
    table = gapssg(*command).stdout
    file = tmp_path / "predictions.csv"
    assert gapssg(*command, "--output", file).stdout == f"{file}: the predictions for 4 images\n"
    result = json.loads(gapssg(*command, "--json").stdout)
    rows = list(csv.DictReader(file.open(newline="", encoding="utf-8")))
    assert result["command"] == "predict"
    assert len(rows) == 8
    for index, image in enumerate(result["images"]):
        cells = next(line.split() for line in table.splitlines() if line.startswith(f" {image['file']} "))
        for rank, found in enumerate(image["classes"]):
            row = rows[2 * index + rank]
            assert row["file"] == image["file"]
            assert (row["rank"], row["class"]) == (str(rank + 1), found["name"])
            assert row["probability"] == f"{found['probability']:.6f}"
            assert cells[1 + 3 * rank : 4 + 3 * rank] == [found["name"], f"{100 * found['probability']:.1f}", "%"]


def test_untrusted_names_break_neither_the_table_nor_the_csv(tmp_path: Path):
    names = ['a\nb, "c".png', "\x1b[31mred.png", "[bold]d[bold].png", "\u202egnp.png", os.fsdecode(b"\xff.png")]
    folder = tmp_path / "images"
    folder.mkdir()
    for name in names:
        Image.new("L", (16, 16)).save(folder / name)
    names_of_classes = ("[red]cat", "a\nvery long name of a class\x1b[2J")
    card = make_card(**HALF, num_classes=2, class_names=names_of_classes)
    model = tmp_path / "model.safetensors"
    save_model(model, create_model("wrn10_half", num_classes=2, input_shape=(1, 16, 16)), card)
    shown = gapssg("predict", model, folder, "--top", 2)
    assert not any(character in shown.stdout for character in "\x1b\u202e")
    rows = [line for line in shown.stdout.splitlines() if "%" in line]
    assert len(rows) == len(names)
    assert all(row.startswith(f" {folder}/") and "[red]cat" in row for row in rows)
    file = tmp_path / "out.csv"
    gapssg("predict", model, folder, "--output", file)
    written = list(csv.reader(file.open(newline="", encoding="utf-8")))
    shown_names = [str(folder / name).encode(errors="replace").decode() for name in sorted(names)]
    assert [row[0] for row in written[1:]] == shown_names


def test_names_in_the_csv_are_quoted_and_are_no_formulas(model_file: Path, monkeypatch: pytest.MonkeyPatch):
    names = ["=1+1", "+1", "-1", "@a", "\t=1", "\r=1", "a\rb", 'a,"b"', "ordinary"]
    found = [ClassProbability(name=name, probability=0.5) for name in names]
    text = _to_csv([PredictedImage(file="=a.png", classes=tuple(found))]).decode()
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    assert header == ["file", "rank", "class", "probability"]
    assert {row[0] for row in rows} == {"'=a.png"}
    escaped = ["'=1+1", "'+1", "'-1", "'@a", "'\t=1", "'\r=1", "a\rb", 'a,"b"', "ordinary"]
    assert [row[2] for row in rows] == escaped
    assert text.splitlines(keepends=True)[1] == '"\'=a.png",1,"\'=1+1",0.500000\n'


@pytest.mark.parametrize("failures", [(), ("it is right on none",)])
@pytest.mark.parametrize("command", ["predict", "inspect"])
def test_a_student_that_failed_is_called_that(
    command: str, failures: tuple[str, ...], model_file: Path, photos: Path, tmp_path: Path
):
    result = make_distill_result().model_copy(update={"failures": failures})
    (tmp_path / RESULT).write_text(result.model_dump_json())
    file = tmp_path / "student.safetensors"
    file.write_bytes(model_file.read_bytes())
    arguments: dict[str, list[object]] = {"predict": [photos], "inspect": []}
    shown = gapssg(command, file, *arguments[command], "--json")
    assert json.loads(shown.stdout)["failures"] == list(failures)
    lines = [line for line in shown.stderr.splitlines() if "FAILED" in line]
    assert len(lines) == len(failures)
    assert all(f"{file} is not usable: it is right on none" in line for line in lines)


def test_a_damaged_result_of_a_run_is_a_warning(model_file: Path, photos: Path, tmp_path: Path):
    (tmp_path / RESULT).write_text("{")
    file = tmp_path / "student.safetensors"
    file.write_bytes(model_file.read_bytes())
    shown = gapssg("predict", file, photos, "--json")
    assert f"what the run of {file} found is not known: " in shown.stderr
    assert json.loads(shown.stdout)["failures"] is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"not an image", "b.png is not a readable image: remove or replace it"),
        (b"\x89PNG\r\n\x1a\n", "b.png is not a readable image: remove or replace it"),
    ],
)
def test_an_unreadable_image_is_named_and_nothing_is_written(
    model_file: Path, photos: Path, tmp_path: Path, content: bytes, sentence: str
):
    (photos / "b.png").write_bytes(content)
    file = tmp_path / "out.csv"
    said = refusal("predict", model_file, photos, "--output", file, "--quiet")
    assert said.endswith(sentence)
    assert not file.exists()


def test_what_is_no_image_is_refused_by_name(model_file: Path, photos: Path, tmp_path: Path):
    def refused(*images: Path) -> str:
        with pytest.raises(InputError) as error:
            predict(settings(model_file, *images))
        return str(error.value)

    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (photos / "outside").symlink_to(tmp_path)
    (tmp_path / "link").mkdir()
    (tmp_path / "link/x.png").symlink_to(tmp_path / "notes.txt")
    assert "missing.png does not exist" in refused(tmp_path / "missing.png")
    assert "notes.txt has no image file extension" in refused(tmp_path / "notes.txt")
    assert "empty has no images" in refused(tmp_path / "empty")
    assert "pipe.png is not a file that can be read" in refused(tmp_path / "pipe.png")
    assert "outside leads outside" in refused(photos)
    assert "x.png leads outside" in refused(tmp_path / "link")


def test_files_of_a_folder_that_are_not_read_are_named(model_file: Path, photos: Path):
    (photos / "test/cat/notes.txt").touch()
    said = gapssg("predict", model_file, photos).stdout
    assert "of 5 files in" in said
    assert "1 are not read, because they have no image file extension: test/cat/notes.txt" in said


def test_an_output_is_refused_before_the_model_is_read(tmp_path: Path, photos: Path, model_file: Path):
    taken = tmp_path / "taken.csv"
    taken.write_text("old")
    run = ["predict", model_file, photos, "--output"]
    for options in ([], ["--dry-run"]):
        assert "must end with .csv" in refusal(*run, tmp_path / "out.txt", *options)
    assert "already exists; add --overwrite" in refusal(*run, taken)
    assert taken.read_text() == "old"
    gapssg(*run, taken, "--overwrite")
    assert taken.read_text().startswith("file,rank,class,probability\n")


def test_a_factory_is_called_only_if_it_is_named(tmp_path: Path, photos: Path):
    name = "tests.models.factories:small"
    model = tmp_path / "own.safetensors"
    card = make_card(architecture=name)
    save_model(model, create_model(name, num_classes=10, input_shape=(1, 16, 16)), card)
    assert "add --model-factory" in refusal("predict", model, photos)
    gapssg("predict", model, photos, "--model-factory", name)


def test_logits_that_are_not_finite_are_an_error_that_names_the_image(tmp_path: Path, photos: Path):
    module = create_model("wrn10_half", num_classes=10, input_shape=(1, 16, 16))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1e30)
    save_model(tmp_path / "model.safetensors", module, make_card(**HALF))
    with pytest.raises(InputError, match=r"logits of .*a\.jpg are not finite"):
        predict(settings(tmp_path / "model.safetensors", photos))


def test_running_out_of_memory_names_a_smaller_batch(model_file: Path, photos: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("gapssg.evaluation.predict_files.logits_of", fail)
    with pytest.raises(RunError, match=r"^out of memory .*; --batch-size 250 needs about half of it$"):
        predict(settings(model_file, photos))
    with pytest.raises(RunError, match=r"^out of memory .*; use a smaller model, or another --device$"):
        predict(settings(model_file, photos, batch_size=1))
