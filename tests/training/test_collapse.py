"""A run with collapsed images ends like any other, and reports that its student is not usable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gapssg import DistillSettings, InputError, distill
from gapssg.core.runtime import Runtime
from gapssg.models import create_model
from gapssg.models.model_file import load_model, save_model
from gapssg.runs.failures import known_failures
from gapssg.runs.results.distillation import DistillResult
from gapssg.training.distillation import Distillation
from tests.conftest import make_card, write_images
from tests.methods import METHODS
from tests.program import gapssg
from tests.results import make_scores
from tests.run_fixtures import events
from tests.tiny import tiny_model

NAMES = ("cat", "dog")


@pytest.fixture(autouse=True)
def tiny_networks() -> Iterator[None]:
    with tiny_model():
        yield


def write_teacher(path: Path, bias: float) -> Path:
    """Write a teacher of two classes that adds `bias` to the logit of the first."""
    card = make_card(architecture="tiny", num_classes=2, class_names=NAMES)
    model = create_model("tiny", num_classes=2, input_shape=card.input_shape, seed=1)
    with torch.no_grad():
        model.train()(torch.randn(64, *card.input_shape, generator=torch.Generator().manual_seed(0)))
        *_, last = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
        last.bias[0] += bias
    save_model(path, model.eval(), card)
    return path


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A teacher that always answers "cat"."""
    return write_teacher(tmp_path / "teacher.safetensors", 100.0)


def settings(teacher: Path, method: dict[str, Any], **changes: Any) -> DistillSettings:
    runtime = {"device": "cpu", "precision": "fp32", "compile": False}
    values = {"teacher": teacher, "student": {"name": "tiny"}, "epochs": 2, "batch_size": 8, "runtime": runtime}
    return DistillSettings.model_validate({**values, "method": method, **changes})


NOISE = {"name": "noise", "synthesis_batch_size": 32}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_reports_its_collapse(teacher: Path, tmp_path: Path, name: str):
    result = distill(settings(teacher, {"name": name, **METHODS[name]}), tmp_path / "run")
    assert result.student.agreement_baseline == 1.0
    assert result.student.after_training.agreement_baseline == 1.0
    assert result.missing_classes == ("dog",)
    assert result.teacher_counts is not None
    images = sum(result.teacher_counts)
    assert result.failures[0] == f"the teacher predicts class 'cat' for all {images:,} synthetic images"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["failures"] == list(result.failures)
    assert events(tmp_path / "run")[-1]["failures"] == list(result.failures)
    copy = Path(shutil.copy(tmp_path / "run" / DistillResult.model_file, tmp_path / "deployed.safetensors"))
    assert known_failures(copy) == result.failures


def test_the_command_reports_a_collapse_with_status_0(teacher: Path, tmp_path: Path):
    options = ["--set", "method.synthesis_batch_size=32", "--method", "noise", "--epochs", 2, "--batch-size", 8]
    command = ["distill", "--teacher", teacher, "--student", "tiny", *options, "--output", tmp_path / "run"]
    shown = gapssg(*command).stdout
    failed = "FAILED: the student is not usable: the teacher predicts class 'cat' for all 64 synthetic images"
    assert shown.splitlines()[-1].startswith(failed)
    assert "warning, epoch 1: the teacher predicts class 'cat' for all 32 new images" in shown
    assert "(baseline 100.0 %)" in shown
    assert failed in gapssg(*command, "--quiet", "--overwrite").stdout
    for further in ([], ["--quiet"]):
        finished = gapssg(*command, "--json", *further, "--overwrite")
        assert json.loads(finished.stdout)["failures"]
        assert finished.stderr.splitlines()[-1].startswith(failed)
        assert finished.stderr.count("FAILED") == 1


def test_each_epoch_records_the_counts_of_predictions_and_targets(teacher: Path, tmp_path: Path):
    result = distill(settings(teacher, NOISE), tmp_path / "run")
    epochs = [event for event in events(tmp_path / "run") if event["event"] == "epoch"]
    for event in epochs:
        assert event["health"]["teacher_counts"] == [32, 0]
        assert sum(event["health"]["target_counts"]) == 32
        assert event["health"]["answer_entropy"] == 0
        assert event["agreement_baseline"] == 1.0
        assert event["timing"]["remaining"] >= 0
    assert result.teacher_counts == [64, 0]
    assert result.target_counts == [sum(event["health"]["target_counts"][k] for event in epochs) for k in (0, 1)]


def test_a_run_from_a_pool_that_lacks_a_class_reports_it(teacher: Path, tmp_path: Path):
    distill(settings(teacher, NOISE), tmp_path / "earlier")
    result = distill(settings(teacher, NOISE, pool=tmp_path / "earlier"), tmp_path / "run")
    assert result.teacher_counts == [64, 0]
    assert result.failures[0] == "the teacher predicts class 'cat' for all 64 synthetic images"
    assert result.student.agreement_baseline is None
    warnings = [(event["epoch"], event["message"]) for event in events(tmp_path / "run") if event["event"] == "warning"]
    assert warnings == [(1, "the teacher predicts class 'cat' for all 64 images so far")]


def test_a_collapse_is_reported_when_it_starts_and_when_it_ends(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    predict, collapsed = Distillation.predict, {2, 3}

    def answer(self: Distillation, module: torch.nn.Module, images: Tensor) -> Tensor:
        logits = predict(self, module, images)
        if module is self.teacher and self.progress.epochs_done + 1 not in collapsed:
            logits[::2, 1] += 1000
        return logits

    monkeypatch.setattr(Distillation, "predict", answer)
    distill(settings(teacher, NOISE, epochs=5), tmp_path / "run")
    warnings = [(event["epoch"], event["message"]) for event in events(tmp_path / "run") if event["event"] == "warning"]
    assert warnings == [
        (2, "the teacher predicts class 'cat' for all 32 new images"),
        (4, "resolved: the new images are no longer found to lack classes"),
    ]


@pytest.fixture
def real_images(tmp_path: Path) -> dict[str, str]:
    images = write_images(tmp_path / "images")
    for split in ("train", "test"):
        for old, new in (("bright", "cat"), ("dark", "dog")):
            (images / split / old).rename(images / split / new)
    return {"name": f"folder:{images}"}


def test_real_images_are_part_of_the_judgement(teacher: Path, tmp_path: Path, real_images: dict[str, str]):
    result = distill(settings(teacher, NOISE, eval_data=real_images), tmp_path / "run")
    assert result.student.balanced_accuracy == 0.5
    assert result.failures[0] == (
        "the balanced accuracy on real images is 50.0 %, no better than always answering with one class; "
        "nor is that of its teacher, so check the labels"
    )
    epochs = [event for event in events(tmp_path / "run") if event["event"] == "epoch"]
    assert [event["balanced_accuracy"] for event in epochs] == [0.5, 0.5]
    assert result.warnings == ()


def test_failed_checks_on_synthetic_images_are_warnings_if_real_images_show_a_usable_student(
    teacher: Path, tmp_path: Path, real_images: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    sound = make_scores(fewest_images=20)
    monkeypatch.setattr("gapssg.training.distill.score_on", lambda *_: sound)
    result = distill(settings(teacher, NOISE, eval_data=real_images), tmp_path / "run")
    assert result.failures == ()
    assert result.warnings[0] == "the teacher predicts class 'cat' for all 64 synthetic images"
    assert result.missing_classes == ("dog",)
    assert events(tmp_path / "run")[-1]["warnings"] == list(result.warnings)


def test_more_than_1000_classes_are_not_listed(tmp_path: Path):
    names = tuple(map(str, range(1001)))
    card = make_card(architecture="tiny", num_classes=1001, class_names=names)
    model = create_model("tiny", num_classes=1001, input_shape=card.input_shape, seed=1).eval()
    save_model(tmp_path / "teacher.safetensors", model, card)
    result = distill(settings(tmp_path / "teacher.safetensors", NOISE, epochs=1), tmp_path / "run")
    assert result.teacher_counts is None
    (event,) = (event for event in events(tmp_path / "run") if event["event"] == "epoch")
    assert event["health"]["teacher_counts"] is None
    assert 0 <= event["health"]["answer_entropy"] <= 1


def test_the_comparison_without_a_pool_uses_new_samples_and_changes_nothing(teacher: Path):
    runtime = Runtime(torch.device("cpu"), "fp32", False, 0)
    distillation = Distillation(settings(teacher, {"name": "dafl", **METHODS["dafl"]}), runtime, load_model(teacher))
    list(distillation.synthesizer.synthesis_steps(distillation.student, 0, 0))
    first, again = distillation.compare(), distillation.compare()
    assert sum(first.totals) == 1000
    assert first == again


def test_invalid_counts_in_a_checkpoint_are_refused(teacher: Path, tmp_path: Path):
    given = settings(teacher, NOISE)
    distill(given, tmp_path / "run")
    file = tmp_path / "run" / "checkpoint" / "latest.safetensors"
    with safe_open(file, "pt") as content:
        metadata = content.metadata()
    tensors = load_file(file)
    tensors["distillation.counts.teacher"] = torch.tensor([-1, 3])
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(InputError, match="class counts in the checkpoint are not valid"):
        distill(given, tmp_path / "run", resume=True)
