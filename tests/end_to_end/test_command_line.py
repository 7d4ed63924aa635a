"""The program as a user runs it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tests.program import gapssg, refusal

pytestmark = pytest.mark.slow

TINY_METHOD = ["--set", "method.generator_steps=3", "--set", "method.synthesis_batch_size=16"]
TINY_METHOD += ["--set", "method.distillation_steps=4"]
TINY_NOISE = ["--method", "noise", "--set", "method.synthesis_batch_size=16"]
CPU = ["--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a teacher and a student of it."""
    root = tmp_path_factory.mktemp("runs")
    gapssg(
        *("pretrain-teacher", "--data", "digits", "--model", "wrn10_half", "--epochs", 1),
        *("--output", root / "teacher", *CPU),
    )
    teacher = root / "teacher" / "model.safetensors"
    gapssg(
        *("distill", "--teacher", teacher, "--student", "wrn10_half", "--epochs", 1, "--output", root / "student"),
        *TINY_METHOD,
        *CPU,
    )
    return root


def test_teacher_student_and_evaluation_from_the_command_line(trained: Path):
    teacher, student = trained / "teacher" / "model.safetensors", trained / "student" / "student.safetensors"
    run = gapssg("eval", teacher, student, "--data", "digits", "--teacher", teacher, "--json", *CPU)
    result = json.loads(run.stdout)
    assert [model["file"] for model in result["models"]] == [str(teacher), str(student)]
    assert result["models"][0]["agreement"] == 1.0
    table = gapssg("eval", teacher, student, "--data", "digits", "--per-class", *CPU).stdout
    assert "450 test images of digits" in table
    assert "wrn10_half" in table


def test_with_json_stdout_has_only_the_json(trained: Path, tmp_path: Path):
    teacher = trained / "teacher" / "model.safetensors"
    run = gapssg(
        *("distill", "--teacher", teacher, "--student", "wrn10_half", "--epochs", 1, "--output", tmp_path / "run"),
        *TINY_METHOD,
        *CPU,
        "--json",
    )
    assert json.loads(run.stdout) == json.loads((tmp_path / "run" / "result.json").read_text())
    assert "epoch    1/1" in run.stderr


def test_quiet_prints_the_result_alone(trained: Path, tmp_path: Path):
    teacher = trained / "teacher" / "model.safetensors"
    run = gapssg(
        *("distill", "--teacher", teacher, "--student", "wrn10_half", "--epochs", 1, "--output", tmp_path / "run"),
        *TINY_NOISE,
        *CPU,
        "--quiet",
    )
    assert "epoch " not in run.stdout + run.stderr
    assert "student wrn10_half" in run.stdout


def test_a_pool_is_distilled_into_another_student(trained: Path, tmp_path: Path):
    teacher = trained / "teacher" / "model.safetensors"
    gapssg(
        *("distill", "--teacher", teacher, "--student", "wrn16_2", "--pool", trained / "student"),
        *("--epochs", 1, "--output", tmp_path / "run"),
        *TINY_METHOD,
        *CPU,
    )
    assert (tmp_path / "run" / "student.safetensors").exists()


def test_dry_run_prints_toml_that_config_reads_back(tmp_path: Path):
    arguments = ["--teacher", "t.st", "--student", "wrn10_half", "--recipe", "digits", "--seed", 3, "--dry-run"]
    first = gapssg("distill", *arguments).stdout
    assert tomllib.loads(first)["seed"] == 3
    (tmp_path / "settings.toml").write_text(first)
    assert gapssg("distill", "--config", tmp_path / "settings.toml", "--dry-run").stdout == first


@pytest.mark.parametrize(
    "command",
    [
        ["pretrain-teacher", "--data", "folder:photos", "--model", "wrn10_half"],
        ["distill", "--teacher", "t.safetensors", "--student", "wrn10_half"],
        ["import-teacher", "--model", "wrn10_half", "--input-shape", "3,32,32"],
    ],
)
def test_crops_and_flips_are_options_of_every_command_that_decides_them(command: list[str]):
    for option, flip in (("--flip", True), ("--no-flip", False)):
        settings = tomllib.loads(gapssg(*command, "--crop-padding", 3, option, "--dry-run").stdout)
        assert (settings["crop_padding"], settings["flip"]) == (3, flip)


def test_a_closed_pipe_does_not_end_the_run(trained: Path, tmp_path: Path):
    teacher = trained / "teacher" / "model.safetensors"
    command = [sys.executable, "-m", "gapssg", "distill", "--teacher", teacher, "--student", "wrn10_half"]
    command += ["--output", tmp_path / "run", "--epochs", "3", *TINY_NOISE, *CPU]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "run" / "result.json").exists()


def test_a_run_of_another_command_cannot_be_continued(trained: Path, tmp_path: Path):
    sentence = refusal("distill", "--resume", trained / "teacher")
    assert "is a run of pretrain-teacher; use gapssg pretrain-teacher --resume" in sentence
    assert "holds no run to resume" in refusal("distill", "--resume", tmp_path)
    assert "leave --output out" in refusal("distill", "--resume", trained / "student", "--output", tmp_path)
    assert "leave --overwrite out" in refusal("distill", "--resume", trained / "student", "--overwrite")


def test_a_finished_run_continues_to_the_same_end(trained: Path):
    before = (trained / "student" / "student.safetensors").read_bytes()
    gapssg("distill", "--resume", trained / "student")
    assert (trained / "student" / "student.safetensors").read_bytes() == before


def test_lists_of_models_methods_and_recipes():
    models = json.loads(gapssg("models", "--json").stdout)["models"]
    assert {m["name"]: m["parameters"] for m in models}["wrn40_2"] == 2_243_546
    assert "gapssg" in gapssg("methods").stdout
    assert "digits" in gapssg("recipes").stdout
    assert "pretrain-teacher" in tomllib.loads(gapssg("recipes", "digits").stdout)
    assert "pretrain-teacher" in json.loads(gapssg("recipes", "digits", "--json").stdout)


def test_help_and_version():
    assert "distill" in gapssg("--help").stdout
    assert "--eval-data" in gapssg("distill", "--help").stdout
    assert gapssg("--version").stdout.startswith("gapssg ")


def test_help_and_settings_errors_import_no_torch():
    for arguments in (["--help"], ["distill", "--help"], ["distill", "--set", "epocs=1", "--output", "x"]):
        code = (
            f"import sys; sys.argv = ['gapssg', *{arguments!r}]\n"
            "from gapssg.cli.app import main\n"
            "try: main()\n"
            "except SystemExit as end: sys.exit(100 + end.code if 'torch' in sys.modules else end.code)"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert run.returncode == (0 if "--help" in arguments else 2), run.stderr


def test_what_is_there_already_and_what_is_not_there_are_said_before_torch_is_imported(trained: Path, tmp_path: Path):
    teacher, student = trained / "teacher", trained / "student"
    absent, new = tmp_path / "absent", ["--output", tmp_path / "new"]
    page, model = tmp_path / "page.html", tmp_path / "model.safetensors"
    page.write_text("mine")
    model.write_text("mine")
    (student / "README.md").write_text("mine")
    distill = ["distill", "--student", "wrn10_half", "--teacher"]
    pretrain = ["pretrain-teacher", "--model", "wrn10_half", "--data"]
    importing = ["import-teacher", "--model", "wrn10_half", "--input-shape", "1,16,16", "--weights"]
    cases: list[list[object]] = [
        [*distill, absent, *new],
        [*distill, teacher / "model.safetensors", "--student-weights", absent, *new],
        [*distill, teacher / "model.safetensors", "--pool", absent, *new],
        [*distill, teacher / "model.safetensors", "--output", student],
        [*pretrain, f"folder:{absent}", *new],
        [*pretrain, "digits", "--output", teacher],
        ["eval", absent, "--data", "digits"],
        ["eval", student / "student.safetensors", "--teacher", absent, "--data", "digits"],
        ["landscape", absent, "--data", "digits", *new],
        ["landscape", student, "--data", "digits", "--output", student],
        ["export", absent, "--to", "onnx", *new],
        ["export", student, "--to", "onnx", "--output", model],
        ["inspect", "absent.safetensors"],
        [*importing, absent, "--output", tmp_path / "new.safetensors"],
        [*importing, model, "--output", model],
        ["report", absent, "--output", tmp_path / "new.html"],
        ["report", student, "--output", page],
        ["card", absent],
        ["card", student],
        ["quickstart", "--output", trained],
    ]
    code = (
        "import json, sys\n"
        "from gapssg.cli.app import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['gapssg', *arguments]\n"
        "    try: main()\n"
        "    except SystemExit as end: print(end.code, 'torch' in sys.modules)\n"
    )
    given = json.dumps([[str(argument) for argument in arguments] for arguments in cases])
    run = subprocess.run([sys.executable, "-c", code, given], capture_output=True, text=True, check=False)
    sentences = run.stderr.splitlines()
    for arguments, answer, sentence in zip(cases, run.stdout.splitlines(), sentences, strict=True):
        assert answer == "2 False", (arguments, sentence)
        assert any(words in sentence for words in ("does not exist", "already", "holds")), sentence
    (student / "README.md").unlink()


def test_the_commands_after_a_distillation_are_named_and_can_be_run(trained: Path, tmp_path: Path):
    teacher, run = trained / "teacher" / "model.safetensors", tmp_path / "my runs $x"
    small = ["--epochs", 1, *TINY_METHOD, *CPU]
    shown = gapssg("distill", "--teacher", teacher, "--student", "wrn10_half", *small, "--output", run).stdout
    lines = [line for line in shown.partition("next:\n")[2].splitlines() if line.startswith("  ")]
    commands = [shlex.split(line) for line in lines]
    assert "FAILED" in shown
    assert [words[:2] for words in commands] == [["gapssg", "report"], ["gapssg", "eval"]]
    words = ["digits" if word == "folder:PATH" else word for word in commands[1][1:]]
    assert "agreement" in gapssg(*words, *CPU).stdout
    quiet = gapssg(
        "distill", "--teacher", teacher, "--student", "wrn10_half", *small, "--output", run, "--overwrite", "--quiet"
    )
    assert "next:" not in quiet.stdout


def test_an_output_that_holds_a_run_is_kept(trained: Path):
    before = (trained / "teacher" / "model.safetensors").read_bytes()
    sentence = refusal(
        "pretrain-teacher", "--data", "digits", "--model", "wrn10_half", "--output", trained / "teacher", *CPU
    )
    assert "already holds a run; add --overwrite to replace it" in sentence
    assert (trained / "teacher" / "model.safetensors").read_bytes() == before


def test_bad_input_is_one_clear_sentence(trained: Path, tmp_path: Path):
    teacher = trained / "teacher" / "model.safetensors"
    out = tmp_path / "out"
    distill = ["distill", "--teacher", teacher, "--student", "wrn10_half", "--output", out]
    cases: dict[str, list[object]] = {
        "teacher is missing": ["distill", "--student", "wrn10_half", "--output", out],
        "--output is missing": distill[:-2],
        "does not exist": [*distill, "--teacher", tmp_path / "absent.safetensors"],
        "did you mean wrn16_1": ["distill", "--teacher", teacher, "--student", "wrn16-1", "--output", out],
        "did you mean gapssg": [*distill, "--method", "gapsg"],
        "did you mean digits": [*distill, "--recipe", "digit"],
        "did you mean epochs": [*distill, "--set", "epochz=3"],
        "must be greater than or equal to 1": [*distill, "--epochs", 0],
        "no CUDA device": [*distill, "--device", "cuda:0"],
        "unknown data 'digit' (did you mean digits?": [*distill, "--eval-data", "digit"],
        "cannot write to /proc/run": [*distill[:-1], "/proc/run"],
        "No such option": ["distill", "--teachr", teacher],
        "No such command": ["distil"],
        "valid integer": [*distill, "--epochs", "many"],
    }
    import torch

    if torch.cuda.is_available():
        del cases["no CUDA device"]
    for words, arguments in cases.items():
        sentence = refusal(*arguments)
        assert words.lower() in sentence.lower(), sentence
        assert len(sentence.splitlines()) == 1, sentence
    assert not out.exists()


def test_debug_adds_the_traceback(tmp_path: Path):
    run = gapssg(
        "distill",
        "--teacher",
        tmp_path / "absent",
        "--student",
        "wrn10_half",
        "--output",
        tmp_path / "o",
        "--debug",
        status=2,
    )
    assert "Traceback" in run.stderr
    assert "error: " in run.stderr


def test_an_interrupt_ends_in_one_sentence(trained: Path, tmp_path: Path):
    teacher = trained / "teacher" / "model.safetensors"
    command = [sys.executable, "-m", "gapssg", "distill", "--teacher", teacher, "--student", "wrn10_half"]
    command += ["--output", tmp_path / "run", "--epochs", "1000", "--no-compile", *TINY_NOISE, *CPU]
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "pool" / "shard-0002.safetensors").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    sentence = f"interrupted; continue with: gapssg distill --resume {tmp_path / 'run'}"
    assert errors.strip().splitlines() == [sentence]
    assert not (tmp_path / "run" / "result.json").exists()


def test_class_names_cannot_steer_the_terminal(image_folder: Path, tmp_path: Path):
    for split in ("train", "test"):
        (image_folder / split / "dark").rename(image_folder / split / "\x1b[2Jdark")
    run = ["--data", f"folder:{image_folder}", "--model", "wrn10_half", "--epochs", 1, "--batch-size", 16]
    gapssg("pretrain-teacher", *run, "--output", tmp_path / "run", *CPU)
    shown = gapssg(
        "eval", tmp_path / "run" / "model.safetensors", "--data", f"folder:{image_folder}", "--per-class", *CPU
    ).stdout
    assert "dark" in shown
    assert "\x1b" not in shown
