"""Models that are not built in, through the command line: import, inspect, distil, continue, evaluate."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gapssg import load_model
from gapssg.models import create_model
from gapssg.runs.directory import Display
from gapssg.runs.events import CheckpointWritten
from gapssg.runs.requests import Stopped
from tests.conftest import write_teacher
from tests.program import gapssg, refusal

pytestmark = pytest.mark.slow

FACTORY = "tests.models.factories:small"
SHUFFLENET = "torchvision:shufflenet_v2_x0_5"
IN_PAIRS = "tests.models.factories:InPairs"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ShuffleNet of torchvision for grey images of 32 pixels, imported from a plain safetensors file."""
    folder = tmp_path_factory.mktemp("imported")
    module = create_model(SHUFFLENET, num_classes=10, input_shape=(1, 32, 32), seed=1)
    save_file(module.state_dict(), folder / "weights.safetensors")
    output = folder / "teacher.safetensors"
    finished = gapssg(
        *("import-teacher", "--model", SHUFFLENET, "--weights", folder / "weights.safetensors"),
        *("--input-shape", "1,32,32", "--num-classes", 10, "--mean", 0.3, "--std", 0.4, "--output", output),
        *("--data", "digits", "--image-size", 32, "--set", "data.images=16", "--json"),
    )
    assert 0 <= json.loads(finished.stdout)["top1"] <= 1
    return output


def test_a_torchvision_teacher_at_32_pixels_is_distilled_into_a_model_of_ones_own(teacher: Path, tmp_path: Path):
    run = tmp_path / "run"
    evaluation = ("--image-size", 32)
    gapssg(
        *("distill", "--teacher", teacher, "--student", FACTORY, "--set", "student.arguments.width=6"),
        *("--epochs", 1, "--batch-size", 8, "--set", "method.synthesis_batch_size=8"),
        *("--set", "method.generator_steps=2", "--set", "method.distillation_steps=2", "--output", run),
        *("--eval-data", "digits", *evaluation, "--set", "eval_data.images=16"),
    )
    student = run / "student.safetensors"
    loaded = load_model(student, [FACTORY])
    assert loaded.card.arguments == {"width": 6}
    assert loaded.card.input_shape == (1, 32, 32)

    arguments = ("eval", student, "--data", "digits", *evaluation, "--set", "data.images=16")
    assert f"if you trust that code, add --model-factory {FACTORY}" in refusal(*arguments)
    evaluated = json.loads(gapssg(*arguments, "--model-factory", FACTORY, "--teacher", teacher, "--json").stdout)
    assert evaluated["models"][0]["top1"] == json.loads((run / "result.json").read_text())["student"]["top1"]

    assert f"if you trust it, add --model-factory {FACTORY}" in refusal("distill", "--resume", run)
    gapssg("distill", "--resume", run, "--model-factory", FACTORY, "--epochs", 2)
    assert json.loads((run / "result.json").read_text())["epochs"] == 2

    for command, output in (
        (("card", run), run / "README.md"),
        (("export", run, "--to", "torchscript", "--output", tmp_path / "student.pt"), tmp_path / "student.pt"),
        (
            ("report", run, "--data", "digits", *evaluation, "--output", tmp_path / "report.html"),
            tmp_path / "report.html",
        ),
    ):
        assert f"add --model-factory {FACTORY}" in refusal(*command)
        assert not output.exists()
        gapssg(*command, "--model-factory", FACTORY)
        assert output.exists()


def test_a_continued_pretraining_names_its_code_again(image_folder: Path, tmp_path: Path):
    run = tmp_path / "run"
    gapssg(
        *("pretrain-teacher", "--data", f"folder:{image_folder}", "--model", FACTORY, "--epochs", 1),
        *("--set", "model.arguments.width=3", "--batch-size", 8, "--output", run),
    )
    assert load_model(run / "model.safetensors", [FACTORY]).card.arguments == {"width": 3}
    assert f"if you trust it, add --model {FACTORY}" in refusal("pretrain-teacher", "--resume", run)
    gapssg("pretrain-teacher", "--resume", run, "--model", FACTORY, "--epochs", 2)


def test_a_strangers_run_directory_has_no_code_imported(teacher: Path, tmp_path: Path):
    """In a process of its own, whose current folder holds the module that the settings name."""
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()\n")
    run = tmp_path / "run"
    run.mkdir()
    settings = gapssg("distill", "--teacher", teacher, "--student", "evil:make", "--dry-run").stdout
    (run / "settings.toml").write_text(settings)
    finished = subprocess.run(
        [sys.executable, "-m", "gapssg", "distill", "--resume", run.name], cwd=tmp_path, capture_output=True, text=True
    )
    assert finished.returncode == 2
    assert "imports and runs the code of evil:make" in finished.stderr
    assert not (tmp_path / "ran").exists()


def test_the_dry_run_of_a_model_with_arguments_reads_back(tmp_path: Path):
    arguments = ("--teacher", "t", "--student", FACTORY, "--set", "student.arguments.width=6", "--model-factory", "a:b")
    printed = gapssg("distill", *arguments, "--dry-run").stdout
    (tmp_path / "settings.toml").write_text(printed)
    assert gapssg("distill", "--config", tmp_path / "settings.toml", "--dry-run").stdout == printed
    plain = gapssg("distill", "--teacher", "t", "--student", "wrn10_half", "--dry-run").stdout
    assert "arguments" not in plain
    assert "model_factories" not in plain


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--student", "nowhere.at_all:net"], "no module nowhere for nowhere.at_all:net"),
        (["--student", "tests.models.factories:raising"], "(RuntimeError: no such width)"),
        (["--student", "tests.models.factories:features_only"], "instead of floating logits of shape (2, 10)"),
        (["--student", "torchvision:inception_v3"], "torchvision:inception_v3 does not accept images of 1x16x16"),
        (["--student", "torchvision:resnet19"], "did you mean resnet18"),
        (
            ["--student", FACTORY, "--set", "student.arguments.width=[1]"],
            "it must be a number, a string, true or false",
        ),
        (["--student", "wrn10_half", "--model-factory", "x"], "'x' is not a factory; write package.module:factory"),
    ],
)
def test_a_student_that_cannot_be_built_is_refused_before_anything_is_written(tmp_path: Path, arguments, sentence):
    teacher = write_teacher(tmp_path / "teacher.safetensors")
    assert sentence in refusal("distill", "--teacher", teacher, *arguments, "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_import_teacher_reads_its_options(tmp_path: Path):
    (tmp_path / "names.txt").write_text("cat\n\n dog \n", encoding="utf-8-sig")
    arguments = ("import-teacher", "--model", FACTORY, "--input-shape", "3,20,16", "--mean", "0.1,0.2,0.3", "--std", 1)
    output = tmp_path / "new" / "a.safetensors"
    gapssg(*arguments, "--class-names", tmp_path / "names.txt", "--flip", "--crop-padding", 3, "--output", output)
    card = load_model(output, [FACTORY]).card
    assert (card.class_names, card.input_shape, card.flip, card.crop_padding) == (("cat", "dog"), (3, 20, 16), True, 3)
    gapssg(*arguments, "--class-names", "x, y", "--output", output, "--overwrite")
    assert load_model(output, [FACTORY]).card.class_names == ("x", "y")
    assert "--output is missing" in refusal(*arguments, "--num-classes", 3)
    (tmp_path / "names.txt").write_text("cat\n")
    assert "--class-names has 1" in refusal(
        *arguments, "--class-names", tmp_path / "names.txt", "--output", tmp_path / "b.safetensors"
    )
    assert "--input-shape '3,a' must be comma-separated numbers" in refusal("import-teacher", "--input-shape", "3,a")
    assert "must be channels, height, width: 3,32,32" in refusal("import-teacher", "--input-shape", "32,32,3")
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe")
    assert "is not a text file of names" in refusal(*arguments, "--class-names", tmp_path / "names.txt")


def test_a_pickled_model_is_refused_with_the_lines_that_convert_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(1, 1), "whole.pth")
    sentence = refusal(
        *("import-teacher", "--model", FACTORY, "--weights", "whole.pth", "--input-shape", "1,16,16"),
        *("--num-classes", 2, "--mean", 0, "--std", 1, "--output", "a.safetensors"),
    )
    assert "refers to code (torch.nn.modules.linear.Linear)" in sentence
    lines = sentence.splitlines()[1:]
    exec("\n".join(line.strip() for line in lines))  # the suggested lines, unchanged
    assert torch.load("whole-weights.pth").keys() == {"weight", "bias"}
    assert not (tmp_path / "a.safetensors").exists()


def test_inspect_says_what_a_file_holds_and_which_methods_can_run(teacher: Path):
    found = json.loads(gapssg("inspect", teacher, "--json").stdout)
    assert found["architecture"] == SHUFFLENET
    assert found["parameters"] == sum(layer["parameters"] for layer in found["layers"])
    assert len(found["observed_batch_norm_layers"]) == 56
    assert found["card"]["provenance"]["command"] == "import-teacher"
    assert set(found["methods"].values()) == {None}
    assert found["image_prior"] == "batch-norm statistics"
    printed = gapssg("inspect", teacher).stdout
    for text in (
        "stage4.3.branch2.6",
        "BatchNorm2d",
        "1024x1x1",
        "351,610",
        "1x32x32",
        "import-teacher",
        found["sha256"],
    ):
        assert text in printed
    assert "scaled to cover the input size, bilinear, centre crop" in printed


def test_inspect_takes_an_architecture_and_names_what_it_lacks():
    name = "tests.models.factories:without_linear_layer"
    found = json.loads(gapssg("inspect", name, "--num-classes", 7, "--input-shape", "2,16,20", "--json").stdout)
    assert (found["num_classes"], found["input_shape"], found["card"]) == (7, [2, 16, 20], None)
    assert found["layers"][0]["output_shape"] == [7, 16, 20]
    assert found["methods"]["fast"] == "batch-norm layers"
    assert found["methods"]["gapssg"] is None
    assert found["image_prior"] == "input statistics"
    assert found["methods"]["dafl"] == "a last linear layer"
    assert found["methods"]["zskt"] is None
    printed = gapssg("inspect", name).stdout
    assert "no: it needs a last linear layer" in printed
    assert "input statistics" in printed
    wide = gapssg("inspect", FACTORY, "--set", "model.arguments.width=16", "--json").stdout
    assert json.loads(wide)["arguments"] == {"width": 16}
    assert refusal("inspect") == "give a model file or an architecture"
    assert "no.safetensors does not exist" in refusal("inspect", "no.safetensors")
    assert refusal("inspect", "a" * 300).startswith("model.name = 'aaa")
    assert f"{IN_PAIRS} does not accept a single image of 1x16x16" in refusal(
        "inspect", IN_PAIRS, "--input-shape", "1,16,16"
    )


@pytest.mark.parametrize("option", [("--num-classes", 77), ("--input-shape", "9,99,99"), ("--set", "num_classes=10")])
def test_inspect_takes_no_classes_and_images_for_a_file_which_has_its_own(teacher_file: Path, option):
    assert refusal("inspect", teacher_file, *option) == (
        "a model file has its own classes and images; leave --num-classes and --input-shape out"
    )


@pytest.mark.parametrize("model", ["file", "wrn10_half"])
def test_the_dry_run_of_inspect_reads_back(teacher_file: Path, tmp_path: Path, model):
    printed = gapssg("inspect", teacher_file if model == "file" else model, "--dry-run").stdout
    (tmp_path / "settings.toml").write_text(printed)
    assert gapssg("inspect", "--config", tmp_path / "settings.toml", "--dry-run").stdout == printed
    found = json.loads(gapssg("inspect", "--config", tmp_path / "settings.toml", "--json").stdout)
    assert found["input_shape"] == ([1, 16, 16] if model == "file" else [3, 32, 32])


def test_what_a_model_of_ones_own_prints_does_not_mix_with_json(tmp_path: Path):
    name, teacher = "tests.models.factories:Printing", tmp_path / "teacher.safetensors"
    for command in (
        ("inspect", name, "--input-shape", "1,16,16"),
        (
            *("import-teacher", "--model", name, "--input-shape", "1,16,16", "--num-classes", 10),
            *("--mean", 0, "--std", 1, "--output", teacher),
        ),
        (
            *("distill", "--teacher", teacher, "--student", name, "--model-factory", name, "--method", "noise"),
            *("--epochs", 1, "--batch-size", 4, "--set", "method.synthesis_batch_size=4", "--output", tmp_path / "run"),
        ),
    ):
        finished = gapssg(*command, "--json")
        assert json.loads(finished.stdout)["command"] == command[0]
        assert "making it" in finished.stderr
        assert "running it" in finished.stderr


@pytest.mark.parametrize("name", ["torchvision:resnet18", "wrn10_half", FACTORY])
def test_an_architecture_for_a_teacher_gives_the_command_that_makes_a_file(tmp_path: Path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    sentence = refusal("distill", "--teacher", name, "--student", "wrn10_half", "--output", tmp_path / "run")
    assert f"{name} is the name of an architecture, not an existing model file" in sentence
    assert f"gapssg import-teacher --model {name} --weights FILE" in sentence
    assert "\n" not in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (
            [
                "distill",
                "--teacher",
                __file__,
                "--student",
                FACTORY,
                "--model-factory",
                "a:b",
                "--model-factory",
                FACTORY,
            ],
            f" --model-factory {FACTORY} --model-factory a:b",
        ),
        (["distill", "--teacher", __file__, "--student", "wrn10_half"], ""),
        (["pretrain-teacher", "--data", "digits", "--model", FACTORY], f" --model {FACTORY}"),
        (["landscape", __file__, "--data", "digits", "--model-factory", "a:b"], " --model-factory a:b"),
    ],
)
def test_the_command_that_continues_names_the_code_again(tmp_path: Path, monkeypatch, command, named):
    def stop(settings: object, output: Path, *, display: Display, **_: object) -> None:
        display.event(CheckpointWritten(directory=output))
        raise Stopped(signal.SIGTERM)

    commands = ("training.distill.distill", "training.pretrain_teacher.pretrain_teacher")
    for place in (*commands, "landscape.measure.measure_landscape"):
        monkeypatch.setattr(f"gapssg.{place}", stop)
    stderr = gapssg(*command, "--output", tmp_path, status=143).stderr
    assert stderr == f"terminated; continue with: gapssg {command[0]} --resume {tmp_path}{named}\n"
