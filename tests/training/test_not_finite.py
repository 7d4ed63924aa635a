"""A teacher whose logits are not finite on some images is named, and never ends a run in an unexpected error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from gapssg import (
    DistillResult,
    DistillSettings,
    EvaluateSettings,
    ImportSettings,
    QualitySettings,
    distill,
    estimate_quality,
    evaluate,
    import_teacher,
)
from gapssg.errors import InputError, RunError
from gapssg.models import create_model
from gapssg.models.model_file import save_model
from gapssg.training.student_steps import StudentSteps
from tests.conftest import make_card
from tests.models.factories import NotFinite
from tests.program import gapssg, refusal
from tests.run_fixtures import TINY
from tests.tiny import tiny_model

FACTORY = f"{NotFinite.__module__}:{NotFinite.__name__}"
METHOD = {"name": "noise", "synthesis_batch_size": 16}
NOISE = {"method": METHOD, "student": {"name": "wrn10_half"}}
PADDED = {**NOISE, "crop_padding": 2, "crop_padding_mode": "zeros"}
# Standard deviations after normalisation: of noise 0.72 to 0.82, of half of the probe images 0.25 to 0.6, of what a
# generator makes first less than 0.13, of most digits more than 0.7.
PROBES = {"low": 0.25, "high": 0.6}
EVERYWHERE = {"low": 0.3, "high": 10.0}


def write_teacher(folder: Path, **arguments: float) -> Path:
    path = folder / "teacher.safetensors"
    card = make_card(architecture=FACTORY, arguments=arguments)
    module = create_model(FACTORY, num_classes=10, input_shape=(1, 16, 16), arguments=arguments, weights_follow=True)
    save_model(path, module, card)
    return path


def settings(teacher: Path, **changes: Any) -> DistillSettings:
    given = {**TINY, "teacher": teacher, "model_factories": [FACTORY], "max_rollbacks": 0, **changes}
    return DistillSettings.model_validate(given)


@pytest.mark.parametrize(("tensor", "value"), [("classifier.weight", 3e38), ("norm.running_var", -1.0)])
def test_a_built_in_teacher_without_finite_logits_is_refused_before_the_run(tmp_path: Path, tensor: str, value: float):
    module = create_model("wrn10_half", num_classes=10, input_shape=(1, 16, 16))
    module.state_dict()[tensor].fill_(value)
    teacher = tmp_path / "teacher.safetensors"
    save_model(teacher, module, make_card())
    given = ("--teacher", teacher, "--student", "wrn10_half", "--device", "cpu")
    for options in (("--output", tmp_path / "run"), ("--estimate",)):
        said = refusal("distill", *given, *options)
        assert said.startswith(f"the teacher {teacher} maps images of 1x16x16 to logits that are not finite; check its")
    assert not (tmp_path / "run").exists()


def test_on_probe_images_the_run_fails_with_a_result_and_an_estimate_with_one_sentence(tmp_path: Path):
    teacher = write_teacher(tmp_path, **PROBES)
    sentence = "the teacher's logits on probe images are not finite"
    result = distill(settings(teacher, **NOISE), tmp_path / "run")
    assert result.quality is None
    assert result.failures[0].startswith(sentence)
    assert DistillResult.load(tmp_path / "run").failures == result.failures
    with pytest.raises(InputError, match=sentence):
        estimate_quality(QualitySettings(student=tmp_path / "run", model_factories=(FACTORY,)))
    with pytest.raises(RunError, match=sentence):
        distill(settings(teacher, **NOISE, until_settled=True, epochs=10), tmp_path / "settled")


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ({"low": 0.6, "high": 0.9}, NOISE),
        ({"low": 0.0, "high": 0.0, "rows": 1}, PADDED),
        ({"low": 0.0, "high": 0.0, "rows": 1}, {**PADDED, "method": {**METHOD, "labelled_views": 2}}),
        ({"low": 0.0, "high": 0.08}, {}),
        ({"low": 0.0, "high": 0.08}, {"method": {"name": "zskt", "rounds": 1, "generator_width": 8}}),
        ({"low": 0.0, "high": 0.0, "rows": 1}, {"crop_padding": 2, "crop_padding_mode": "zeros"}),
    ],
    ids=["images", "views", "labelled views", "synthesis", "generator", "views of a synthesis"],
)
def test_on_images_of_the_run_the_teacher_is_blamed_instead_of_the_learning_rate(
    tmp_path: Path, arguments: dict[str, float], changes: dict[str, Any]
):
    teacher = write_teacher(tmp_path, **arguments)
    with pytest.raises(RunError, match=r"^the teacher's logits on the images of epoch 1 are not finite; try"):
        distill(settings(teacher, **changes), tmp_path / "run")


def test_the_teacher_is_blamed_for_any_view_of_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    steps, count, views = 12, 0, StudentSteps.views

    def blank_at_the_last_step(self: StudentSteps, images: Tensor, *drawn: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return views(self, images, *drawn) * (count % steps != 0)

    monkeypatch.setattr(StudentSteps, "views", blank_at_the_last_step)
    method = {**METHOD, "distillation_steps": steps}
    with tiny_model(), pytest.raises(RunError, match=r"^the teacher's logits on the images of epoch 1"):
        given = {**NOISE, "student": {"name": "tiny"}, "method": method, "batch_size": 1024}
        distill(settings(write_teacher(tmp_path, low=0.0, high=1e-6), **given), tmp_path / "run")
    assert count == 2 * steps


def test_a_student_of_a_teacher_without_finite_logits_gets_no_advice_on_its_settings(tmp_path: Path):
    teacher = write_teacher(tmp_path, **PROBES)
    method = ("--method", "noise", "--set", "method.synthesis_batch_size=16", "--epochs", "1", "--batch-size", "8")
    options = ("--student", "wrn10_half", *method, "--device", "cpu", "--model-factory", FACTORY)
    shown = gapssg("distill", "--teacher", teacher, "--output", tmp_path / "run", *options).stdout
    assert "FAILED: the student is not usable: the teacher's logits on probe images are not finite; try" in shown
    assert "docs/choosing.md" not in shown


@pytest.mark.parametrize("role", ["models", "teacher"])
def test_on_real_images_the_evaluation_names_the_model_and_the_image(tmp_path: Path, teacher_file: Path, role: str):
    broken = write_teacher(tmp_path, **EVERYWHERE)
    files: dict[str, Any] = {"models": [teacher_file], **({"teacher": broken} if role == "teacher" else {})}
    if role == "models":
        files["models"].append(broken)
    given = {**files, "data": {"name": "digits", "images": 20}, "model_factories": [FACTORY]}
    with pytest.raises(InputError, match=rf"^the logits of {broken} for image 1 of the data are not finite; try"):
        evaluate(EvaluateSettings.model_validate({**given, "runtime": TINY["runtime"]}))


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (("eval", "FILE", "--data", "digits"), "the logits of .* for image 1 of the data are not finite; try"),
        (("predict", "FILE", "PICTURE"), "the model's logits of .*picture.png are not finite; try"),
        (("audit", "FILE", "--members", "digits", "--non-members", "digits"), "its privacy cannot be measured"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_command_that_is_given_the_model_refuses_it_as_bad_input(
    tmp_path: Path, command: tuple[str, ...], sentence: str
):
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)).save(picture)
    given = {"FILE": write_teacher(tmp_path, **EVERYWHERE), "PICTURE": picture}
    options = ("--model-factory", FACTORY, "--device", "cpu")
    assert re.search(sentence, refusal(*(given.get(word, word) for word in command), *options))


def test_an_import_that_is_given_real_images_refuses_the_model_as_bad_input(tmp_path: Path):
    # After this normalisation, digits have standard deviations between those of the images of the checks, 1 and 10.
    given = {"name": FACTORY, "arguments": {"low": 1.5, "high": 7.0}}
    values = {"model": given, "input_shape": (1, 16, 16), "num_classes": 10, "mean": (0.3,), "deviation": (0.1,)}
    output = tmp_path / "teacher.safetensors"
    with pytest.raises(InputError, match=r"^the logits of .* for image \d+ of the data are not finite; try"):
        import_teacher(ImportSettings.model_validate({**values, "data": {"name": "digits"}}), output)
    assert not output.exists()
