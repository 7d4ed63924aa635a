from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gapssg import EvaluateSettings, InputError, evaluate, load_model
from gapssg.cli.console import Console, Invocation
from gapssg.cli.render import print_evaluation
from gapssg.core.runtime import Runtime
from gapssg.data import load_split
from gapssg.data.image_set import ImageSet
from gapssg.evaluation.latency import measure_latency
from gapssg.models import create_model
from gapssg.models.description import Provenance
from gapssg.models.model_file import save_model
from gapssg.runs.evaluations import keep_evaluations, read_evaluations
from gapssg.runs.results.common import RESULT, Scores
from gapssg.runs.results.evaluation import Latency
from tests.conftest import make_card
from tests.program import gapssg
from tests.results import make_distill_result


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
    assert report.parameters == 20_506
    assert report.macs > 900_000
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


@pytest.fixture
def student_file(teacher_file: Path, tmp_path: Path) -> Path:
    """A student of the teacher, with random weights."""
    provenance = Provenance(command="distill", teacher_sha256=load_model(teacher_file).sha256)
    path = tmp_path / "student.safetensors"
    save_model(
        path, create_model("wrn10_half", num_classes=10, input_shape=(1, 16, 16)), make_card(provenance=provenance)
    )
    return path


def test_students_are_judged_with_the_scores_of_their_own_teacher(
    teacher_file: Path, student_file: Path, other_file: Path, monkeypatch: pytest.MonkeyPatch
):
    def judged(student: Scores, teacher: Scores | None) -> list[str]:
        return [f"{student.loss} {None if teacher is None else teacher.loss}"]

    monkeypatch.setattr("gapssg.evaluation.evaluate.failures_on_real_images", judged)
    files = (teacher_file, student_file, other_file)
    teacher, student, other = (model.loss for model in evaluate(settings(*files)).models)

    def failures(*files: Path, **changes: Any) -> list[tuple[str, ...]]:
        return [model.failures for model in evaluate(settings(*files, **changes)).models]

    assert failures(*files) == [(), (f"{student} {teacher}",), ()]
    assert failures(student_file, other_file) == [(f"{student} None",), ()]
    expected = [(), (f"{student} {teacher}",), (f"{other} {teacher}",)]
    assert failures(*files, teacher=teacher_file) == expected
    assert failures(student_file, other_file, teacher=teacher_file) == expected[1:]
    assert failures(student_file, teacher=other_file) == [(f"{student} None",)]  # which is not its own


def test_the_scores_of_a_students_own_teacher_are_kept_in_its_run(
    teacher_file: Path, student_file: Path, other_file: Path, tmp_path: Path
):
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "student.safetensors"
    file.write_bytes(student_file.read_bytes())
    (tmp_path / "run" / RESULT).write_text(make_distill_result().model_dump_json())
    own = evaluate(settings(teacher_file)).models[0].loss

    def kept(*files: Path, **changes: Any) -> float | None:
        result = evaluate(settings(*files, **changes))
        assert keep_evaluations(result) == []
        (found,) = read_evaluations(tmp_path / "run", load_model(file).sha256)
        return None if found.teacher is None else found.teacher.loss

    assert kept(file) is None
    assert kept(file, teacher=other_file) is None  # which is not its own
    assert kept(file, teacher=teacher_file) == own
    assert kept(file) == own  # measured earlier, on the same images
    result = evaluate(settings(file))
    relabelled = result.models[0].model_copy(update={"loss": result.models[0].loss + 1e-6})
    keep_evaluations(result.model_copy(update={"models": (relabelled,)}))
    assert read_evaluations(tmp_path / "run", relabelled.sha256)[0].teacher is None
    (tmp_path / "run" / "evaluations.json").unlink()
    assert kept(file, teacher_file) == own


def test_a_folder_of_the_same_name_elsewhere_is_another_image_set(student_file: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "student.safetensors"
    file.write_bytes(student_file.read_bytes())
    (tmp_path / "run" / RESULT).write_text(make_distill_result().model_dump_json())
    result = evaluate(settings(file))
    for place in ("first", "second", "first"):
        (tmp_path / place).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / place)
        keep_evaluations(result.model_copy(update={"data": "folder:photos"}))
    kept = read_evaluations(tmp_path / "run", load_model(file).sha256)
    assert [each.data for each in kept] == [f"folder:{tmp_path / place / 'photos'}" for place in ("second", "first")]
    assert {each.public_data for each in kept} == {"photos"}
    monkeypatch.setenv("HOME", str(tmp_path / "first"))
    keep_evaluations(result.model_copy(update={"data": "folder:~/photos"}))
    assert len(read_evaluations(tmp_path / "run", load_model(file).sha256)) == 2


def test_the_output_ends_in_the_verdict_on_a_student_that_is_not_usable(teacher_file: Path, student_file: Path):
    arguments = ("eval", teacher_file, student_file, "--data", "digits")
    sentence = r"the balanced accuracy on real images is \d+\.\d %, no better than always answering with one class"
    sentence += "; nor is that of its teacher, so check the labels"
    shown = gapssg(*arguments, "--per-class").stdout
    assert re.fullmatch(f"FAILED: {student_file} is not usable: {sentence}", shown.splitlines()[-1])
    assert shown.splitlines()[-2] == "if you doubt the labels, repeat this command once they are corrected"
    assert "add --teacher FILE to compare" in gapssg("eval", student_file, "--data", "digits").stdout
    teacher, student = json.loads(gapssg(*arguments, "--json").stdout)["models"]
    assert teacher["failures"] == []
    (failure,) = student["failures"]
    assert re.fullmatch(sentence, failure)


def test_a_copy_of_a_student_that_failed_is_called_that_unless_real_images_show_it_usable(
    teacher_file: Path, student_file: Path, monkeypatch: pytest.MonkeyPatch
):
    model = load_model(student_file)
    save_model(student_file, model.module, model.card.model_copy(update={"failures": ("it is poor",)}))
    assert "it is poor" in gapssg("eval", student_file, "--data", "digits").stdout.splitlines()[-1]
    monkeypatch.setattr("gapssg.cli.evaluate.passes_on_real_images", lambda _: True)
    assert "it is poor" not in gapssg("eval", student_file, "--data", "digits").stdout


def test_the_batch_size_does_not_change_the_scores(teacher_file: Path):
    small, large = (evaluate(settings(teacher_file, batch_size=size)).models[0] for size in (64, 450))
    assert small.top1 == large.top1
    assert small.loss == pytest.approx(large.loss, abs=1e-4)


def test_models_of_other_classes_or_images_are_refused(teacher_file: Path, image_folder: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"2 classes, but .* has 10"):
        evaluate(settings(teacher_file, data={"name": f"folder:{image_folder}"}))
    other = tmp_path / "five.safetensors"
    card = make_card(num_classes=5, class_names=tuple("abcde"))
    save_model(other, create_model("wrn10_half", num_classes=5, input_shape=(1, 16, 16)), card)
    with pytest.raises(InputError, match="differ in num_classes"):
        evaluate(settings(teacher_file, other))
    with pytest.raises(InputError, match="differ in num_classes"):
        evaluate(settings(teacher_file, teacher=other))


def test_a_model_that_needs_images_resized_otherwise_gives_a_warning(image_folder: Path, tmp_path: Path):
    files = [tmp_path / f"{resize}.safetensors" for resize in ("crop", "stretch")]
    for file in files:
        card = make_card(num_classes=2, class_names=("bright", "dark"), resize=file.stem)
        save_model(file, create_model("wrn10_half", num_classes=2, input_shape=(1, 16, 16)), card)
    said = " ".join(gapssg("eval", *files, "--data", f"folder:{image_folder}").stdout.split())
    assert "stretch.safetensors were stretched to the input size, bilinear; evaluate it by itself" in said
    assert "by itself" not in gapssg("eval", files[1], "--data", f"folder:{image_folder}").stdout


@pytest.mark.parametrize(
    ("size", "changes", "options", "warns"),
    [
        ((24, 16), {}, (), True),
        ((48, 32), {}, (), True),
        ((16, 24), {}, (), False),
        ((24, 24), {}, (), False),
        ((24, 17), {}, (), False),
        ((24, 16), {}, ("--image-size", "16,24"), False),
        ((24, 16), {"resize": "stretch"}, (), False),
        ((24, 16), {"input_shape": (1, 16, 16)}, (), False),
    ],
)
def test_images_of_swapped_height_and_width_give_one_warning(
    tmp_path: Path, size: tuple[int, int], changes: dict[str, Any], options: tuple[str, ...], warns: bool
):
    file, photos = tmp_path / "model.safetensors", tmp_path / "photos"
    values = {"num_classes": 2, "class_names": ("bright", "dark"), "input_shape": (1, 16, 24), **changes}
    card = make_card(**values)
    save_model(file, create_model("wrn10_half", num_classes=2, input_shape=card.input_shape), card)
    for name in card.class_names * 2:
        folder = photos / "test" / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", size[::-1]).save(folder / f"{len(list(folder.iterdir()))}.png")
    first = photos / "test" / "bright" / "0.png"
    sentence = (
        f"images have height and width swapped: {first} is {size[0]} pixels high and {size[1]} wide, but the "
        "model takes images 16 high and 24 wide, so they are scaled and cropped; check the images, or the "
        "--input-shape C,H,W of the teacher\n"
    )
    data = ("--data", f"folder:{photos}", *options)
    description = ("--mean", 0, "--std", 1, "--input-shape", ",".join(map(str, card.input_shape)))
    given = ("--weights", file, "--model", "wrn10_half", *description, "--class-names", "bright,dark", *data)
    resize = () if card.resize == "crop" else ("--resize", card.resize)
    commands: list[tuple[object, ...]] = [
        ("eval", file, file, *data),
        ("import-teacher", *given, *resize, "--output", tmp_path / "new.safetensors"),
    ]
    if not options:
        commands.append(("predict", file, photos, "--batch-size", 2))
    for command in commands:
        said = gapssg(*command).stdout
        count = 2 if "predict" in command else 4
        assert said.count(f"warning: all {count} {sentence}") == said.count("and width swapped") == warns
    said = gapssg("import-teacher", *given, "--resize", "crop", "--output", tmp_path / "said.safetensors").stdout
    assert "swapped:" not in said


def test_labels_follow_the_order_of_the_classes_of_the_model(teacher_file: Path, tmp_path: Path):
    path, names = tmp_path / "model.safetensors", "1023456789"
    model = load_model(teacher_file).module
    in_order = evaluate(settings(teacher_file)).models[0]
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter[[int(name) for name in names]])
    save_model(path, model, make_card(class_names=tuple(names)))
    found = evaluate(settings(path)).models[0]
    assert (found.top1, found.balanced_accuracy) == (in_order.top1, in_order.balanced_accuracy)
    assert found.per_class_accuracy == tuple(in_order.per_class_accuracy[int(name)] for name in names)
    save_model(path, model, make_card(class_names=tuple("abcdefghij")))
    with pytest.raises(InputError, match=r"the classes of digits are not those of .*: '0' is not one of a, b, c"):
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


def test_latency_is_that_of_each_model_with_batches_of_1_and_of_64(
    teacher_file: Path, other_file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gapssg.evaluation.evaluate.SECONDS", 0.0)
    assert evaluate(settings(teacher_file)).timing.latency is None
    timing = evaluate(settings(teacher_file, other_file, latency=True)).timing
    assert timing.threads == torch.get_num_threads()
    assert timing.latency is not None and len(timing.latency) == 2
    for measured in timing.latency:
        assert [each.batch_size for each in measured] == [1, 64]
        assert all(0 < each.median_ms <= each.p95_ms and each.passes == 10 for each in measured)
        assert measured[0].median_ms < measured[1].median_ms  # 64 times the work


class _Clock:
    """A clock that only `Sleeping` advances."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Sleeping(nn.Module):
    """Takes 1 s for each of its first passes, which are the warm-up, then 10 ms, and 30 ms for every tenth pass."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self.clock, self.passes = clock, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        seconds = 1.0 if self.passes <= 3 else 0.03 if self.passes % 10 == 0 else 0.01
        self.clock.now += seconds
        return images.mean((2, 3))


def test_latency_leaves_out_the_warm_up_and_ends_in_time(runtime: Runtime, monkeypatch: pytest.MonkeyPatch):
    clock = _Clock()
    monkeypatch.setattr("gapssg.evaluation.latency.time", clock)
    found = measure_latency(Sleeping(clock), (3, 8, 8), runtime, batch_size=2, seconds=0.995)
    assert found.median_ms == pytest.approx(10)
    assert found.p95_ms == pytest.approx(30)
    assert found.batch_size == 2
    assert found.passes == 84  # 76 of 10 ms and 8 of 30 ms
    for deadline, passes in ((0.5, 1), (2.5, 1), (3.055, 6)):  # after 1, 3 and 9 passes, 3 of which warm up
        clock.now = 0.0
        measured = measure_latency(Sleeping(clock), (3, 8, 8), runtime, 2, 0.995, deadline)
        assert measured.passes == passes
        assert clock.now < deadline + 1.0 + 1e-6  # the duration of one pass


def test_the_command_measures_latency(teacher_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gapssg.evaluation.evaluate.SECONDS", 0.0)
    finished = gapssg("eval", teacher_file, "--data", "digits", "--latency", "--json")
    (measured,) = json.loads(finished.stdout)["timing"]["latency"]
    assert [each["batch_size"] for each in measured] == [1, 64]


def test_latency_is_printed_with_the_number_of_threads(teacher_file: Path, capsys: pytest.CaptureFixture[str]):
    result = evaluate(settings(teacher_file))
    one, many = (Latency(batch_size=n, passes=9, median_ms=n / 4, p95_ms=n / 2) for n in (1, 64))
    timing = result.timing.model_copy(update={"latency": ((one, many),), "threads": 1})
    print_evaluation(Console(Invocation()), result.model_copy(update={"timing": timing}))
    printed = capsys.readouterr().out
    for cells in ("ms, 1 image .*0.25 \\(p95 0.50\\)", "ms, 64 images .*16.00 \\(p95 32.00\\)"):
        assert re.search(cells, printed)
    assert "on cpu, fp32, eager, 1 thread\n" in printed
