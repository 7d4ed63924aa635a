"""The directory of a run stands for its model file in every command that takes one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy
import pytest
from PIL import Image

from gapssg import DistillSettings, InputError, distill, load_model
from gapssg.models.model_path import model_file
from tests.conftest import write_teacher
from tests.program import gapssg, refusal
from tests.results import make_distill_result
from tests.run_fixtures import TINY, events

CPU = ("--device", "cpu")
FAILED, UNFINISHED = "is not usable: it is poor", "run is not finished, and student.safetensors is of an earlier end"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a run whose student failed has left."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_teacher(folder / "student.safetensors")
    (folder / "settings.toml").touch()
    result = make_distill_result().model_copy(update={"failures": ("it is poor",)})
    (folder / "result.json").write_text(json.dumps(result.model_dump(mode="json")))
    return folder


@pytest.mark.slow
def test_each_command_takes_the_final_weights_of_a_run_and_says_how_it_ended(
    run: Path, image_folder: Path, tmp_path: Path
):
    file, picture = run / "student.safetensors", tmp_path / "picture.png"
    Image.fromarray(numpy.zeros((16, 16), numpy.uint8)).save(picture)
    commands = (
        ("predict", run, picture, *CPU),
        ("inspect", run),
        ("eval", run, "--data", "digits", *CPU),
        ("export", run, "--to", "torchscript", "--output", tmp_path / "model.pt"),
        ("models", "--for", run, "--set", "seconds=0.01"),
    )
    for command in commands:
        finished = gapssg(*command, "--json")
        assert str(file) in finished.stdout, command
        last = finished.stderr.splitlines()[-1] if command[0] == "eval" else finished.stderr
        assert "is not usable: " in last and "it is poor" in last, command
        assert '"it is poor"' in finished.stdout or command[0] == "models", command
    (run / "result.json").unlink()
    assert UNFINISHED in gapssg("inspect", run).stdout
    assert load_model(run).path == file


def test_a_run_can_be_the_teacher_and_the_initial_weights_of_another(run: Path, tmp_path: Path):
    values = {**TINY, "epochs": 1, "method": {"name": "noise", "synthesis_batch_size": 8}}
    student = {"name": "wrn10_half", "weights": run}
    distill(DistillSettings.model_validate({**values, "teacher": run, "student": student}), tmp_path / "other")
    started, *others = events(tmp_path / "other")
    assert started["message"].startswith(f"distilling wrn10_half ({run / 'student.safetensors'}) into wrn10_half with")
    assert FAILED in others[0]["message"]
    resumed = gapssg("distill", "--resume", tmp_path / "other", *CPU)
    assert "after epoch 1 of 1" in resumed.stdout
    assert "holds" in refusal("distill", "--teacher", run, "--student", "wrn10_half", "--output", run, "--overwrite")


def test_a_directory_without_final_weights_is_refused_alike_everywhere(run: Path, image_folder: Path, tmp_path: Path):
    (run / "student.safetensors").unlink()
    for command in (
        ("predict", run, image_folder),
        ("inspect", run),
        ("eval", run, "--data", "digits"),
        ("export", run, "--to", "torchscript", "--output", tmp_path / "model.pt"),
        ("models", "--for", run),
        ("distill", "--teacher", run, "--student", "wrn10_half", "--output", tmp_path / "other"),
    ):
        assert "run holds neither student.safetensors nor model.safetensors; name a finished run" in refusal(*command)
    (run / "student.safetensors").symlink_to(shutil.copy(write_teacher(tmp_path / "t.safetensors"), tmp_path / "x"))
    with pytest.raises(InputError, match="is a symbolic link"):
        model_file(run)
    too_long = Path("x" * 300)  # as an untrusted result may name a teacher
    assert model_file(too_long) == too_long


def test_eval_says_what_it_found_even_if_it_cannot_be_saved(run: Path, tmp_path: Path):
    (run / "evaluations.json").mkdir()
    teacher = write_teacher(tmp_path / "teacher.safetensors", "wrn16_1")
    verdict = gapssg("eval", run, "--data", "digits", "--teacher", teacher, *CPU).stdout.splitlines()[-1]
    assert "the balanced accuracy on real images is" in verdict and verdict.endswith("; it is poor")
