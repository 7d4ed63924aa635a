"""A run that is killed and resumed ends with the files of an uninterrupted run."""

from __future__ import annotations

import random
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gapssg import DistillSettings, InputError, PretrainSettings, distill, pretrain_teacher
from gapssg.models import create_model
from gapssg.models.model_file import save_model
from gapssg.runs.directory import SilentDisplay, check_may_resume
from gapssg.runs.requests import Requests, Stopped
from gapssg.settings.load import flatten
from gapssg.training.distillation_progress import EpochFacts, Progress
from tests.conftest import make_card, write_images, write_teacher
from tests.interruptions import AskingDisplay, Both, InterruptingDisplay, Interruption
from tests.methods import METHODS
from tests.program import gapssg, refusal
from tests.run_fixtures import TINY, events, files_of
from tests.run_fixtures import settings as run_settings
from tests.tiny import TINY_NOISE, tiny_model, write_tiny_teacher

Start = Callable[..., object]
WITH_DROPOUT = "tests.models.factories:small"  # the random state of dropout must be restored, too


class Case(NamedTuple):
    """A run to interrupt, and the files of the uninterrupted run."""

    start: Start
    expected: dict[str, Any]


@pytest.fixture(scope="module", params=["fp32", "bf16", "gapssg-fast", "noise", "pool", "pretrain"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    runtime = {"device": "cpu", "precision": "bf16" if request.param == "bf16" else "fp32"}
    if request.param == "pretrain":
        images = write_images(folder / "images")
        values = {"data": {"name": f"folder:{images}"}, "model": {"name": WITH_DROPOUT}, "batch_size": 16}
        teacher = PretrainSettings.model_validate({**values, "epochs": 3, "runtime": runtime})
        return finish(folder, lambda output, **options: pretrain_teacher(teacher, output, **options))
    changes: dict[str, Any] = {"teacher": write_teacher(folder / "teacher.safetensors", "wrn10_half"), "epochs": 3}
    changes |= {
        "runtime": runtime,
        "snapshot_every": 2,
        "eval_data": {"name": "digits", "images": 32},
        "evaluate_every": 2,
    }
    if request.param == "fp32":
        changes["student"] = {"name": WITH_DROPOUT}
    if request.param == "gapssg-fast":
        small = {"synthesis_batch_size": 16, "generator_width": 8, "latent_size": 16}
        changes["method"] = {"name": "gapssg-fast", **small, "generator_steps": 3, "distillation_steps": 4}
        changes["method"] |= {"labelled_views": 1, "procedural_share": 0.34}
        # The 20 images of the pool are not whole batches of the labelled views.
        earlier = {"teacher": changes["teacher"], "epochs": 1, "method": {"name": "noise", "synthesis_batch_size": 20}}
        distill(DistillSettings.model_validate({**TINY, **earlier}), folder / "earlier")
        changes |= {"pool": folder / "earlier", "grow_pool": True}
    if request.param == "noise":
        changes["method"] = {"name": "noise", "synthesis_batch_size": 16}
        changes |= {"crop_padding": 1, "flip": True}  # other than the teacher's
    if request.param == "pool":
        distill(DistillSettings.model_validate({**TINY, "teacher": changes["teacher"]}), folder / "earlier")
        changes["pool"] = folder / "earlier"
    settings = DistillSettings.model_validate({**TINY, **changes})
    return finish(folder, lambda output, **options: distill(settings, output, **options))


@pytest.fixture
def teacher_file(tmp_path: Path) -> Path:
    return write_teacher(tmp_path / "teacher.safetensors", "wrn10_half")


def finish(folder: Path, start: Start) -> Case:
    start(folder / "whole")
    return Case(start, files_of(folder / "whole"))


@pytest.mark.slow
def test_a_run_interrupted_anywhere_and_resumed_equals_the_uninterrupted_one(case: Case, tmp_path: Path):
    draw = random.Random(0)
    run, resume, interruptions = tmp_path / "run", False, 0
    for _ in range(3):
        try:
            case.start(run, resume=resume, display=InterruptingDisplay(draw.randint(2, 12)))
        except Interruption:
            interruptions += 1
        resume = (run / "checkpoint" / "latest.safetensors").exists()
        if not resume:
            shutil.rmtree(run, ignore_errors=True)
    case.start(run, resume=resume)
    assert files_of(run) == case.expected
    assert interruptions >= 2


@pytest.mark.slow
def test_a_run_resumes_after_a_stop_between_any_two_steps(case: Case, tmp_path: Path):
    run, stops = tmp_path / "run", 0
    while True:
        requests = Requests()
        step = 1 + (5 * stops) % 11  # in every phase of an epoch
        try:
            case.start(run, resume=stops > 0, display=AskingDisplay(step, requests, "stop"), requests=requests)
        except Stopped as stopped:
            assert stopped.exit_status == 128 + 15
            stops += 1
        else:
            break
    assert stops >= 2
    assert files_of(run) == case.expected


@pytest.mark.slow
def test_a_run_resumes_from_a_requested_checkpoint(case: Case, tmp_path: Path):
    requests = Requests()
    display = Both(AskingDisplay(5, requests, "checkpoint"), InterruptingDisplay(6))
    with pytest.raises(Interruption):
        case.start(tmp_path / "run", display=display, requests=requests)
    # In the first epoch: without the request there would be no checkpoint.
    case.start(tmp_path / "run", resume=True)
    assert files_of(tmp_path / "run") == case.expected


class Stopping(SilentDisplay):
    """Asks the run to stop when it shows a number of steps of a task."""

    def __init__(self, requests: Requests, task: str, at: int) -> None:
        self.requests, self.task, self.at = requests, task, at
        self.shown: list[tuple[int, int]] = []

    def progress(self, task: str, done: int, total: int) -> None:
        if task == self.task:
            self.shown.append((done, total))
            if done == self.at:
                self.requests.stop = 15


@pytest.mark.parametrize("keep_pool", [True, False])
def test_a_run_stops_and_resumes_while_a_given_pool_is_labelled(tmp_path: Path, keep_pool: bool):
    with tiny_model():
        teacher = write_tiny_teacher(tmp_path / "teacher.safetensors")
        method = {**TINY_NOISE["method"], "labelled_views": 3}
        distill(run_settings(teacher, **TINY_NOISE, epochs=3), tmp_path / "earlier")
        values = {**TINY_NOISE, "method": method, "pool": tmp_path / "earlier", "keep_pool": keep_pool}
        distill(run_settings(teacher, **values), tmp_path / "whole")
        run = tmp_path / "run"
        for resume, task, at, steps in (
            (False, "epoch 1: classifying the pool", 1, 1),
            (True, "epoch 1: labelling views", 4, 9),
            (True, "epoch 1: labelling views", 5, 6),
            (True, "epoch 1: labelling views", 3, 3),
            (True, "epoch 2: distillation", 2, 12),
        ):
            requests = Requests()
            display = Stopping(requests, task, at)
            with pytest.raises(Stopped):
                distill(run_settings(teacher, **values), run, resume=resume, display=display, requests=requests)
            assert display.shown == [(done, steps) for done in range(1, at + 1)]
        distill(run_settings(teacher, **values), run, resume=True)
    assert files_of(run) == files_of(tmp_path / "whole")


def test_a_run_resumes_with_a_moved_pool_and_says_what_is_missing_or_has_changed(tmp_path: Path):
    with tiny_model():
        teacher = write_tiny_teacher(tmp_path / "teacher.safetensors")
        distill(run_settings(teacher, **TINY_NOISE), tmp_path / "earlier")
        values = {**TINY_NOISE, "pool": tmp_path / "earlier"}
        run = tmp_path / "run"
        distill(run_settings(teacher, **values), run)
        moved = (tmp_path / "earlier").rename(tmp_path / "moved")
        sentence = refusal("distill", "--resume", run)
        assert sentence == (
            f"{run} cannot resume without {tmp_path / 'earlier'}, which does not exist; put it back, or name its new "
            "place with --pool"
        )
        gapssg("distill", "--resume", run, "--pool", moved, "--epochs", 3)
        assert [event["epoch"] for event in events(run) if event["event"] == "epoch"] == [1, 2, 3]
        (moved / "pool" / "shard-0002.safetensors").unlink()
        sentence = refusal("distill", "--resume", run)
        assert re.fullmatch(
            r".*run cannot resume: the pool's SHA-256 was \S+ and is \S+; restore it, or restart with --o.*", sentence
        )
        with pytest.raises(InputError, match=r"cannot resume with other settings: pool was '.*moved' and is None"):
            distill(run_settings(teacher, **TINY_NOISE, epochs=3), run, resume=True)
        teacher.rename(tmp_path / "elsewhere.safetensors")
        assert refusal("distill", "--resume", run).endswith("put it back, or name its new place with --teacher")


def test_a_run_resumes_with_moved_label_embeddings(tmp_path: Path):
    file = tmp_path / "embeddings.safetensors"
    save_file({"embeddings": torch.eye(10)}, file)
    with tiny_model():
        teacher = write_tiny_teacher(tmp_path / "teacher.safetensors")
        method = {"name": "nayer", **METHODS["nayer"], "label_embeddings": file}
        distill(run_settings(teacher, **{**TINY_NOISE, "method": method}), tmp_path / "run")
        resume = ("distill", "--resume", tmp_path / "run", "--epochs", 3)
        option = "--set", f"method.label_embeddings={file.rename(tmp_path / 'moved.safetensors')}"
        assert refusal(*resume).endswith("or name its new place with --set method.label_embeddings=FILE")
        gapssg(*resume, *option)
        assert [event["epoch"] for event in events(tmp_path / "run") if event["event"] == "epoch"] == [1, 2, 3]
        save_file({"embeddings": 2 * torch.eye(10)}, tmp_path / "moved.safetensors")
        assert "the SHA-256 of method.label_embeddings was" in refusal(*resume, *option)


def test_a_run_that_lacks_a_newer_setting_may_resume_only_with_the_value_without_effect(tmp_path: Path):
    now = run_settings(tmp_path / "teacher.safetensors")
    earlier = flatten(now.to_dict())
    del earlier["method.procedural_share"]
    check_may_resume(tmp_path, earlier, now)
    changed = now.model_copy(update={"method": {**now.method.to_dict(), "procedural_share": 0.5}})
    with pytest.raises(InputError, match=r"other settings: method.procedural_share was 0.0 and is 0.5 \("):
        check_may_resume(tmp_path, earlier, changed)
    # Defaults that changed what a run does.
    for key in ("optimizer.algorithm", "method.labelled_views"):
        lacking = {name: value for name, value in earlier.items() if name != key}
        with pytest.raises(InputError, match=rf"other settings: {key} was None and is "):
            check_may_resume(tmp_path, lacking, now)


def test_a_checkpoint_has_the_facts_of_those_of_earlier_versions():
    """Which have no others, so that a new one may only stand beside these and be absent."""
    counts = "epochs_done learning_epochs images_synthesized step_count labelled_images synthesis_rollbacks"
    others = "agreement agreement_baseline lacks_classes synthesis_seconds distillation_seconds epoch"
    assert Progress.model_fields.keys() == {*counts.split(), *others.split()}
    counts = "round synthesised terms reality_gap_before agreement_before agreement_baseline"
    assert EpochFacts.model_fields.keys() == {*counts.split(), "synthesis_seconds", "distillation_seconds"}


def test_the_operations_of_an_extended_run_are_those_of_its_steps(tmp_path: Path):
    """It waits again in the warm-up of the longer run, and keeps the steps that it has made."""
    with tiny_model():
        teacher = write_tiny_teacher(tmp_path / "teacher.safetensors")
        method = {"name": "fast", **METHODS["fast"], "warm_up": 0.5}
        values = {**TINY_NOISE, "method": method}
        first, longer = (
            distill(run_settings(teacher, **{**values, "epochs": epochs}), tmp_path / "run", resume=epochs > 2)
            for epochs in (2, 6)
        )
    assert (first.distillation_steps, longer.distillation_steps) == (3, 3 + 9)
    synthesis = 2 * 8 * 4 * (first.teacher.macs + first.student.macs)
    assert first.flops is not None
    assert longer.flops == 6 * synthesis + 4 * (first.flops - 2 * synthesis)


def test_a_checkpoint_is_written_after_the_given_minutes(teacher_file: Path, tmp_path: Path):
    values = {**TINY, "teacher": teacher_file, "epochs": 2, "checkpoint_every": 100}
    settings = DistillSettings.model_validate({**values, "checkpoint_minutes": 1e-9})
    with pytest.raises(Interruption):
        distill(settings, tmp_path / "run", display=InterruptingDisplay(2))
    assert (tmp_path / "run" / "checkpoint" / "latest.safetensors").exists()
    with pytest.raises(Interruption):
        distill(DistillSettings.model_validate(values), tmp_path / "other", display=InterruptingDisplay(2))
    assert not (tmp_path / "other" / "checkpoint").exists()


def test_a_run_may_resume_with_more_epochs_but_not_with_fewer(teacher_file: Path, tmp_path: Path):
    values = {**TINY, "teacher": teacher_file, "epochs": 2}
    distill(DistillSettings.model_validate(values), tmp_path / "run")
    more = DistillSettings.model_validate({**values, "epochs": 3, "checkpoint_every": 2, "max_rollbacks": 1})
    result = distill(more, tmp_path / "run", resume=True)
    assert result.epochs == 3
    assert [e["epoch"] for e in events(tmp_path / "run") if e["event"] == "epoch"] == [1, 2, 3]
    # The next resume compares with the new settings.
    assert tomllib.loads((tmp_path / "run" / "settings.toml").read_text())["epochs"] == 3
    with pytest.raises(InputError, match=r"epochs was 3 and is 2 \(epochs may increase, and checkpoint_every, "):
        distill(DistillSettings.model_validate(values), tmp_path / "run", resume=True)


def test_resuming_with_other_settings_names_each_difference(teacher_file: Path, tmp_path: Path):
    values = {**TINY, "teacher": teacher_file}
    distill(DistillSettings.model_validate(values), tmp_path / "run")
    other = {"seed": 4, "optimizer": {**TINY["optimizer"], "learning_rate": 0.3}, "flip": True}
    changed = DistillSettings.model_validate({**values, **other})
    differences = r"flip was None and is True; optimizer.learning_rate was 0.2 and is 0.3; seed was 0 and is 4"
    with pytest.raises(InputError, match=differences):
        distill(changed, tmp_path / "run", resume=True)


def test_another_teacher_of_the_same_name_is_refused(teacher_file: Path, tmp_path: Path):
    settings = DistillSettings.model_validate({**TINY, "teacher": teacher_file})
    distill(settings, tmp_path / "run")
    shutil.copy(tmp_path / "run" / "student.safetensors", teacher_file)
    with pytest.raises(InputError, match="cannot resume: the teacher's SHA-256 was"):
        distill(settings, tmp_path / "run", resume=True)


@pytest.mark.slow
def test_a_run_resumes_with_moved_teacher_and_evaluation_images(teacher_file: Path, tmp_path: Path):
    images = write_images(tmp_path / "images")
    two = create_model("wrn10_half", num_classes=2, input_shape=(1, 16, 16), seed=1)
    save_model(teacher_file, two, make_card(num_classes=2, class_names=("bright", "dark")))
    weights = tmp_path / "weights.safetensors"
    start = create_model("wrn10_half", num_classes=2, input_shape=(1, 16, 16), seed=2)
    save_model(weights, start, make_card(architecture="wrn10_half", num_classes=2, class_names=("bright", "dark")))
    values = {**TINY, "epochs": 2, "student": {"name": "wrn10_half", "weights": weights}}

    def settings() -> DistillSettings:
        data = {"name": f"folder:{images}"}
        return DistillSettings.model_validate({**values, "teacher": teacher_file, "eval_data": data})

    distill(settings(), tmp_path / "whole")
    with pytest.raises(Interruption):
        distill(settings(), tmp_path / "run", display=InterruptingDisplay(9))
    assert (tmp_path / "run" / "checkpoint").exists()
    images = images.rename(tmp_path / "moved")
    teacher_file = teacher_file.rename(tmp_path / "moved.safetensors")
    weights.unlink()  # the checkpoint has those of the student
    distill(settings(), tmp_path / "run", resume=True)
    expected, found = (files_of(tmp_path / name) for name in ("whole", "run"))
    for name in ("student.safetensors", "best.safetensors"):
        assert found[name] == expected[name]
    assert str(images) in (tmp_path / "run" / "settings.toml").read_text()
    shutil.copy(images / "test" / "dark" / "0.png", images / "test" / "bright" / "0.png")
    with pytest.raises(InputError, match="the evaluation images are not those that the run started with"):
        distill(settings(), tmp_path / "run", resume=True)
    with pytest.raises(InputError, match=r"eval_data\.name was 'folder:.*' and is None"):
        distill(settings().model_copy(update={"eval_data": None}), tmp_path / "run", resume=True)


def test_a_run_without_a_checkpoint_says_how_to_restart(teacher_file: Path, tmp_path: Path):
    settings = DistillSettings.model_validate({**TINY, "teacher": teacher_file, "keep_pool": False})
    distill(settings, tmp_path / "run")
    with pytest.raises(InputError, match=r"holds no checkpoint to resume from .* restart with"):
        distill(settings, tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="holds no run to resume"):
        distill(settings, tmp_path / "absent", resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncate", "metadata", "tensors"])
def test_a_damaged_checkpoint_is_one_sentence(teacher_file: Path, tmp_path: Path, damage):
    settings = DistillSettings.model_validate({**TINY, "teacher": teacher_file})
    distill(settings, tmp_path / "run")
    file = tmp_path / "run" / "checkpoint" / "latest.safetensors"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "metadata":
        save_file(load_file(file), file)
    else:
        with safe_open(file, "pt") as content:
            metadata = content.metadata()
        tensors = load_file(file)
        del tensors["distillation.trainee.model.classifier.bias"]
        save_file(tensors, file, metadata=metadata)
    with pytest.raises(InputError):
        distill(settings, tmp_path / "run", resume=True)
