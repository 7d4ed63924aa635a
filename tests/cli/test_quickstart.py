"""The quickstart, without its training: what it starts, resumes and keeps."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from gapssg.runs.requests import Stopped
from tests.program import gapssg, refusal


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, bool, bool]]:
    """Each call of a training as (run, overwrite, resume); the student is stopped in its first call."""
    made: list[tuple[str, bool, bool]] = []

    def train(settings, run: Path, *, overwrite, resume, display, requests):
        made.append((run.name, overwrite, resume))
        (Path(run) / "checkpoint").mkdir(parents=True, exist_ok=True)
        (Path(run) / "checkpoint" / "latest.safetensors").touch()
        (Path(run) / "settings.toml").touch()
        if run.name == "noise-baseline" or (run.name == "student" and not resume):
            raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("gapssg.training.distill.distill", train)
    monkeypatch.setattr("gapssg.training.pretrain_teacher.pretrain_teacher", train)
    return made


def test_an_interrupted_quickstart_resumes_what_has_a_checkpoint_and_starts_the_rest(calls, tmp_path: Path):
    arguments = ("quickstart", "--output", tmp_path / "first", "--device", "cpu")
    stopped = gapssg(*arguments, status=143)
    assert stopped.stderr.splitlines()[-1] == "terminated; the same command with --resume continues"
    assert calls == [("teacher", False, False), ("student", False, False)]
    assert "already holds a quickstart; add --resume to continue it" in refusal(*arguments)
    calls.clear()
    gapssg(*arguments, "--resume", status=143)
    assert calls == [("teacher", False, True), ("student", False, True), ("noise-baseline", True, False)]


def test_there_must_be_a_quickstart_to_continue(calls, tmp_path: Path):
    assert "holds no quickstart to continue" in refusal("quickstart", "--output", tmp_path / "none", "--resume")
    assert calls == []


def test_a_directory_with_other_files_is_no_place_for_a_quickstart(calls, tmp_path: Path):
    (tmp_path / "mine.txt").touch()
    assert "holds other files (mine.txt)" in refusal("quickstart", "--output", tmp_path, "--resume")
    assert calls == []


def test_the_baseline_differs_from_the_student_in_its_images_alone(monkeypatch, tmp_path: Path):
    made = {}

    def train(settings, run: Path, **given):
        made[run.name] = settings.to_dict()
        if run.name == "noise-baseline":
            raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("gapssg.training.distill.distill", train)
    monkeypatch.setattr("gapssg.training.pretrain_teacher.pretrain_teacher", train)
    gapssg("quickstart", "--output", tmp_path / "first", "--device", "cpu", status=143)
    student, noise = made["student"], made["noise-baseline"]
    method, of_noise = student.pop("method"), noise.pop("method")
    assert student == noise
    assert of_noise == {name: method[name] for name in of_noise} | {"name": "noise"}
    assert of_noise["distillation_steps"] > 0
