from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gapssg import EvaluateSettings, InputError, evaluate, load_model
from gapssg.core.runtime import Runtime
from gapssg.data import load_split
from gapssg.data.image_set import ImageSet
from gapssg.models import create_model
from gapssg.models.model_file import save_model
from tests.conftest import make_card


def settings(*files: Path, **changes: Any) -> EvaluateSettings:
    runtime = {"device": "cpu", "precision": "fp32"}
    values = {"models": files, "data": {"name": "digits"}, "runtime": runtime, **changes}
    return EvaluateSettings.model_validate(values)


@pytest.fixture
def other_file(tmp_path: Path) -> Path:
    card = make_card(architecture="wrn16_2")
    path = tmp_path / "other.safetensors"
    save_model(path, create_model("wrn16_2", num_classes=10, input_shape=(1, 16, 16), seed=5), card)
    return path


def test_scores_are_those_of_the_models_logits(teacher_file: Path):
    report = evaluate(settings(teacher_file)).models[0]
    images = load_split("digits", "test")
    model = load_model(teacher_file)
    with torch.no_grad():
        logits = model.module((images.images / 255 - 0.3) / 0.4).double()
    probabilities = logits.softmax(dim=1)
    right = logits.argmax(dim=1) == images.labels
    assert report.top1 == right.double().mean().item()
    loss = -probabilities[torch.arange(450), images.labels].log().mean().item()
    # Batches and memory layout change the order of float32 sums.
    assert report.loss == pytest.approx(loss, abs=1e-4)
    matrix = torch.tensor(report.confusion_matrix)
    assert matrix.sum() == 450
    assert matrix.diagonal().sum() == right.sum()
    assert matrix.sum(dim=1).tolist() == torch.bincount(images.labels).tolist()
    assert report.per_class_accuracy[3] == pytest.approx((matrix[3, 3] / matrix[3].sum()).item())
    assert report.parameters == 174_778
    assert report.macs > 1_000_000
    assert 0 <= report.expected_calibration_error <= 1


def test_several_files_and_a_teacher_give_agreement_and_reality_gap(teacher_file: Path, other_file: Path):
    result = evaluate(settings(teacher_file, other_file, teacher=teacher_file))
    same, other = result.models
    assert same.agreement == 1.0
    assert same.reality_gap == 0.0
    assert 0 < other.agreement < 1
    assert 0 < other.reality_gap < 1
    assert len(result.timing.images_per_second) == 2
    assert all(rate > 0 for rate in result.timing.images_per_second)


def test_without_a_teacher_there_is_no_agreement(teacher_file: Path):
    result = evaluate(settings(teacher_file))
    assert result.teacher is None
    assert (result.models[0].agreement, result.models[0].reality_gap) == (None, None)


def test_all_logits_are_computed_with_the_switches_of_the_runtime_set(
    teacher_file: Path, monkeypatch: pytest.MonkeyPatch
):
    is_set, seen = False, []

    @contextmanager
    def configured(self: Runtime) -> Iterator[None]:
        nonlocal is_set
        is_set = True
        yield
        is_set = False

    def autocast(self: Runtime) -> AbstractContextManager[None]:
        seen.append((is_set, self.deterministic))
        return nullcontext()

    monkeypatch.setattr(Runtime, "configured", configured)
    monkeypatch.setattr(Runtime, "autocast", autocast)
    runtime = {"device": "cpu", "precision": "fp32", "deterministic": True}
    evaluate(settings(teacher_file, teacher=teacher_file, runtime=runtime))
    assert len(seen) == 4  # the model and the teacher, each once before it is timed
    assert set(seen) == {(True, True)}


def test_the_batch_size_does_not_change_the_scores(teacher_file: Path):
    small, large = (evaluate(settings(teacher_file, batch_size=size)).models[0] for size in (64, 450))
    assert small.top1 == large.top1
    assert small.loss == pytest.approx(large.loss, abs=1e-4)


def test_models_of_other_classes_or_images_are_refused(teacher_file: Path, image_folder: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"2 classes, but .* has 10"):
        evaluate(settings(teacher_file, data={"name": f"folder:{image_folder}"}))
    other = tmp_path / "five.safetensors"
    card = make_card(num_classes=5, class_names=tuple("abcde"))
    save_model(other, create_model("wrn16_1", num_classes=5, input_shape=(1, 16, 16)), card)
    with pytest.raises(InputError, match="differ in num_classes"):
        evaluate(settings(teacher_file, other))
    with pytest.raises(InputError, match="differ in num_classes"):
        evaluate(settings(teacher_file, teacher=other))


def test_class_names_in_another_order_are_refused(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    card = make_card(class_names=tuple("1023456789"))
    save_model(path, create_model("wrn16_1", num_classes=10, input_shape=(1, 16, 16)), card)
    with pytest.raises(InputError, match=r"the classes of digits are not those of .*--class-names"):
        evaluate(settings(path))


def test_memory_does_not_grow_with_the_square_of_the_number_of_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    classes, name = 3000, "tests.models.factories:small"
    names = tuple(map(str, range(classes)))
    card = make_card(architecture=name, num_classes=classes, class_names=names)
    model = create_model(name, num_classes=classes, input_shape=(1, 16, 16))
    save_model(tmp_path / "model.safetensors", model, card)
    pixels = torch.randint(256, (classes, 1, 16, 16), dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(classes), names)
    monkeypatch.setattr("gapssg.evaluation.evaluate.read_test_images", lambda *_: images)
    file, most = tmp_path / "model.safetensors", 0

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal most
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                most = max(most, result.numel())
            return result

    with Watching():
        given = settings(file, teacher=file, model_factories=[name], batch_size=50)
        report = evaluate(given).models[0]
    assert most < classes**2 / 10
    assert report.confusion_matrix is None
    assert len(report.per_class_accuracy) == sum(report.images_per_class) == classes
    assert report.agreement == 1.0
