from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gapssg import distill
from gapssg.runs.directory import SilentDisplay
from gapssg.runs.events import DistillationEpoch
from gapssg.runs.loggers import LoggingDisplay
from gapssg.runs.requests import Requests, Stopped
from tests.interruptions import AskingDisplay, InterruptingDisplay, Interruption
from tests.program import gapssg, refusal
from tests.run_fixtures import settings

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(run: Path) -> Any:
    (file,) = (run / "tensorboard").iterdir()
    events = accumulator.EventAccumulator(str(file), size_guidance={"images": 0, "scalars": 0})
    return events.Reload()


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = read(run)
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def epochs_of(run: Path) -> list[dict[str, Any]]:
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [event for event in events if event["event"] == "epoch"]


def test_tensorboard_has_the_numbers_and_images_of_the_run(teacher_file: Path, tmp_path: Path):
    run = tmp_path / "run"
    values = settings(teacher_file, eval_data={"name": "digits", "images": 32})
    with LoggingDisplay(["tensorboard"], SilentDisplay(), run, values, DistillationEpoch) as display:
        distill(values, run, display=display)
    found, epochs = scalars(run), epochs_of(run)
    for tag, path in {
        "top1": ("top1",),
        "reality_gap_before": ("reality_gap_before",),
        "synthesis/disagreement_loss": ("synthesis", "disagreement_loss"),
        "health/diversity": ("health", "diversity"),
        "timing/synthesis": ("timing", "synthesis"),
    }.items():
        expected = []
        for event in epochs:
            value: Any = event
            for part in path:
                value = value[part]
            expected.append((event["epoch"], pytest.approx(value, rel=1e-6)))  # TensorBoard has float32
        assert found[tag] == expected
    images = read(run).Images("samples")
    assert [image.step for image in images] == [1, 2]
    (run / "decoded.png").write_bytes(images[1].encoded_image_string)
    with Image.open(run / "decoded.png") as decoded, Image.open(run / "samples" / "epoch-0002.png") as written:
        assert np.array_equal(np.asarray(decoded.convert("L")), np.asarray(written))


def test_a_resumed_run_has_each_point_once(teacher_file: Path, tmp_path: Path):
    run, values = tmp_path / "run", settings(teacher_file, epochs=3)
    with (
        pytest.raises(Interruption),
        LoggingDisplay(["tensorboard"], InterruptingDisplay(11), run, values, DistillationEpoch) as display,
    ):
        distill(values, run, display=display)
    assert [step for step, _ in scalars(run)["reality_gap_after"]] == [1]
    with LoggingDisplay(["tensorboard"], SilentDisplay(), run, values, DistillationEpoch) as display:
        distill(values, run, resume=True, display=display)
    assert [step for step, _ in scalars(run)["reality_gap_after"]] == [1, 2, 3]


def test_the_commands_write_it_and_a_new_run_replaces_it(teacher_file: Path, image_folder: Path, tmp_path: Path):
    run = tmp_path / "run"
    training = ["pretrain-teacher", "--data", f"folder:{image_folder}", "--model", "wrn10_half", "--epochs", 1]
    gapssg(*training, "--output", run, "--tensorboard")
    assert scalars(run)["train_loss"][0][0] == 1
    gapssg(*training, "--output", run, "--overwrite")
    assert not (run / "tensorboard").exists()


def interrupted(teacher_file: Path, run: Path, step: int) -> None:
    values = settings(teacher_file, epochs=3, checkpoint_every=1)
    with (
        pytest.raises(Interruption),
        LoggingDisplay(["tensorboard"], InterruptingDisplay(step), run, values, DistillationEpoch) as display,
    ):
        distill(values, run, display=display)


@pytest.mark.slow
def test_a_run_started_with_tensorboard_resumes_with_it(teacher_file: Path, tmp_path: Path):
    run = tmp_path / "run"
    interrupted(teacher_file, run, 11)
    gapssg("distill", "--resume", run)
    assert [step for step, _ in scalars(run)["reality_gap_after"]] == [1, 2, 3]


def test_a_run_interrupted_before_its_first_epoch_resumes_with_tensorboard(teacher_file: Path, tmp_path: Path):
    run, requests = tmp_path / "run", Requests()
    values = settings(teacher_file, epochs=2)
    asking = AskingDisplay(2, requests, "stop")
    with pytest.raises(Stopped), LoggingDisplay(["tensorboard"], asking, run, values, DistillationEpoch) as display:
        distill(values, run, display=display, requests=requests)
    assert not (run / "tensorboard").exists()
    gapssg("distill", "--resume", run)
    assert [step for step, _ in scalars(run)["reality_gap_after"]] == [1, 2]


@pytest.mark.slow
def test_a_run_started_without_tensorboard_resumes_without_it(teacher_file: Path, tmp_path: Path):
    run = tmp_path / "run"
    distill(settings(teacher_file, epochs=1), run)
    gapssg("distill", "--resume", run, "--epochs", 2)
    assert not (run / "tensorboard").exists()
    gapssg("distill", "--resume", run, "--epochs", 3, "--tensorboard")
    assert [step for step, _ in scalars(run)["reality_gap_after"]] == [1, 2, 3]


def test_a_run_resumes_with_a_warning_if_tensorboard_is_no_longer_installed(
    teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = tmp_path / "run"
    interrupted(teacher_file, run, 11)
    before = scalars(run)
    monkeypatch.setattr("gapssg.runs.loggers.find_spec", lambda name: None)
    printed = gapssg("distill", "--resume", run).stdout
    warning = f"warning: {run / 'tensorboard'} is not updated: --logger tensorboard needs tensorboard"
    assert sum(line.startswith(warning) for line in printed.splitlines()) == 1
    assert (run / "result.json").exists()
    assert scalars(run) == before


def test_without_tensorboard_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gapssg.runs.loggers.find_spec", lambda name: None)
    run = tmp_path / "run"
    arguments = ["pretrain-teacher", "--data", "digits", "--model", "wrn10_half", "--output", run, "--tensorboard"]
    installs = 'pip install "gapssg[tensorboard]"'
    assert refusal(*arguments) == f"--logger tensorboard needs tensorboard, which is not installed: {installs}"
    assert not run.exists()
