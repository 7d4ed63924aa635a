"""Distillation of modules that a Python program holds: teacher and student without files."""

from __future__ import annotations

import copy
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from gapssg import (
    ClassifierSettings,
    DistillSettings,
    ImportSettings,
    InputError,
    ReportSettings,
    distill,
    estimate_distillation,
    import_teacher,
    load_model,
    model_from_module,
    write_card,
    write_report,
)
from gapssg.models.model_file import LoadedModel, model_content
from tests.interruptions import InterruptingDisplay, Interruption
from tests.models import factories
from tests.program import refusal
from tests.run_fixtures import events, files_of

SMALL = "tests.models.factories:small"
INTERFACE: dict[str, Any] = {"input_shape": (3, 16, 16), "num_classes": 4, "mean": (0.3,), "deviation": (0.4,)}
SHORT: dict[str, Any] = {
    "method": {"synthesis_batch_size": 4, "generator_steps": 2, "generator_width": 4, "distillation_steps": 2},
    "epochs": 2,
    "batch_size": 4,
    "runtime": {"device": "cpu", "precision": "fp32", "compile": False},
}


def settings(**changes: object) -> DistillSettings:
    return DistillSettings.model_validate({**SHORT, **changes})


def classifier(seed: int, width: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = factories.small(4, 3, width)
        with torch.no_grad():
            module(torch.randn(8, 3, 16, 16))
    return module


def model(module: nn.Module, **changes: object) -> LoadedModel:
    return model_from_module(module, ClassifierSettings.model_validate({**INTERFACE, **changes}))


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return classifier(1)


@pytest.fixture(scope="module")
def run(teacher: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of live modules."""
    output = tmp_path_factory.mktemp("live") / "run"
    distill(settings(), output, teacher=model(teacher), student=classifier(2, width=3))
    return output


def facts_of(module: nn.Module) -> list[object]:
    """Everything about a module that a run could change, besides its tensors."""
    hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks), part.training) for part in module.modules()]
    flags = [(each.requires_grad, each.grad is None, each.device, each.stride()) for each in module.parameters()]
    return [*hooks, *flags, [sorted(part.__dict__) for part in module.modules()]]


@pytest.mark.slow
def test_the_student_is_that_of_the_same_models_from_files(teacher: nn.Module, run: Path, tmp_path: Path):
    weights = {"teacher": teacher, "student": classifier(2, width=3)}
    for name, module in weights.items():
        save_file(module.state_dict(), tmp_path / f"{name}.safetensors")
    given = {**INTERFACE, "model": {"name": SMALL}, "weights": str(tmp_path / "teacher.safetensors")}
    import_teacher(ImportSettings.model_validate(given), tmp_path / "t.safetensors")
    student = {"name": SMALL, "arguments": {"width": 3}, "weights": tmp_path / "student.safetensors"}
    named = settings(teacher=tmp_path / "t.safetensors", model_factories=[SMALL], student=student)
    distill(named, tmp_path / "run")
    ours, theirs = (load_file(folder / "student.safetensors") for folder in (run, tmp_path / "run"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_student_comes_back_in_evaluation_mode_and_its_weights_load_with_plain_torch(run: Path):
    student = classifier(3, width=3)
    before = copy.deepcopy(student.state_dict())
    loaded = load_model(run / "student.safetensors", module=student)
    assert not any(part.training for part in loaded.module.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    student.load_state_dict(load_file(run / "student.safetensors"))
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(student.eval()(images), loaded.module(images))
    assert loaded.card.class_names == tuple("0123")
    assert loaded.card.provenance.teacher_sha256 == model(classifier(1)).sha256


def test_the_run_says_that_teacher_and_student_were_modules(run: Path):
    written = tomllib.loads((run / "settings.toml").read_text())
    assert (written["teacher"], written["student"]) == ("<module>", {"name": "<module>"})
    result = json.loads((run / "result.json").read_text())
    assert (result["teacher"]["file"], result["teacher"]["architecture"]) == (
        "<module>",
        "<torch.nn.modules.container.Sequential>",
    )
    assert result["student"]["architecture"] == "<torch.nn.modules.container.Sequential>"
    assert "distilling <torch.nn.modules.container.Sequential> into <torch" in events(run)[0]["message"]


def test_modules_are_left_as_they_were(tmp_path: Path):
    teacher, student = classifier(1).train(), classifier(2, width=3).eval()
    teacher.get_parameter("0.weight").requires_grad_(False)
    student.get_submodule("2").register_forward_hook(lambda *_: None)
    student(torch.randn(2, 3, 16, 16)).sum().backward()
    before = [(facts_of(module), copy.deepcopy(module.state_dict())) for module in (teacher, student)]
    given = model(teacher)
    content = model_content(given.module, given.card)
    distill(settings(epochs=1), tmp_path / "run", teacher=given, student=student)
    for module, (facts, tensors) in zip((teacher, student), before, strict=True):
        assert facts_of(module) == facts
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in module.state_dict().items())
    assert model_content(given.module, given.card) == content


def test_what_the_teacher_learns_later_is_not_in_its_model():
    module = classifier(1)
    given = model(module)
    assert given.sha256 == model(classifier(1)).sha256
    nn.init.zeros_(module.get_parameter("6.bias"))
    assert given.sha256 == model(given.module).sha256 != model(module).sha256
    assert given.sha256 != model(classifier(1), mean=(0.5,)).sha256


def test_an_interrupted_run_resumes_with_the_same_teacher_and_a_new_student(run: Path, tmp_path: Path):
    output = tmp_path / "run"
    with pytest.raises(Interruption):
        distill(
            settings(),
            output,
            teacher=model(classifier(1)),
            student=classifier(2, width=3),
            display=InterruptingDisplay(6 + 16),  # of which 16 label the views of the first epoch
        )
    assert (output / "checkpoint" / "latest.safetensors").exists()
    given: dict[str, Any] = {"teacher": model(classifier(1)), "student": factories.small(4, 3, 3)}  # has seen nothing
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"teacher": model(classifier(7))}, "cannot resume: the teacher's SHA-256 was"),
        ({"student": classifier(2, width=5)}, "cannot resume: the layout of the student was"),
        ({"teacher": None}, "there is no teacher: name a model file in the settings, or pass a module"),
        ({"student": None}, "there is no student: name one in the settings, or pass"),
    ]
    for changes, sentence in wrong:
        with pytest.raises(InputError, match=sentence):
            distill(settings(), output, resume=True, **{**given, **changes})
    assert "it is a module of a Python program, which a command cannot have" in refusal("distill", "--resume", output)
    distill(settings(), output, resume=True, **given)
    assert files_of(output) == files_of(run)


def test_commands_say_how_to_use_a_student_that_no_name_builds(run: Path):
    sentence = refusal("inspect", run / "student.safetensors")
    assert "has the weights of a Python module, <torch.nn.modules.container.Sequential>, which no name" in sentence
    assert (
        "pass it to load_model(..., module=...), or make a model file with a factory of it: gapssg import" in sentence
    )


def test_the_report_gives_no_command_that_repeats_a_run_of_modules(run: Path, tmp_path: Path):
    write_report(ReportSettings(runs=(run,)), tmp_path / "report.html")
    report = (tmp_path / "report.html").read_text()
    assert "only <code>distill</code> with these modules repeats it" in report
    assert "gapssg distill --config" not in report


def test_the_card_shows_how_to_load_a_student_that_no_name_builds(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    card = write_card(tmp_path / "run").read_text()
    assert 'model = load_model("student.safetensors", module=net)' in card
    assert "object of the class `<torch.nn.modules.container.Sequential>`" in card
    assert "gapssg eval" not in card


def test_settings_that_name_another_teacher_or_student_are_refused(teacher: nn.Module, tmp_path: Path):
    given: dict[str, Any] = {"teacher": model(teacher), "student": classifier(2)}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"teacher": "t.safetensors"}, "the settings name the teacher .*t.safetensors, but another is passed"),
        ({"student": {"name": "wrn10_half"}}, "the settings name the student wrn10_half, but another is passed"),
    ]
    for changes, sentence in wrong:
        with pytest.raises(InputError, match=sentence):
            distill(settings(**changes), tmp_path / "run", **given)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_live_student_learns_from_a_loaded_file_and_a_named_one_from_a_module(
    teacher: nn.Module, teacher_file: Path, tmp_path: Path
):
    loaded = load_model(teacher_file)
    student = factories.small(10, 1)
    result = distill(settings(epochs=1), tmp_path / "a", teacher=loaded, student=student)
    assert result.teacher.file == str(teacher_file)
    result = distill(settings(epochs=1, student={"name": "wrn10_half"}), tmp_path / "b", teacher=model(teacher))
    assert (result.teacher.file, result.student.architecture) == ("<module>", "wrn10_half")
    assert load_model(tmp_path / "b" / "student.safetensors").card.num_classes == 4


def test_a_student_whose_batch_norms_have_seen_images_began_with_given_weights(run: Path, tmp_path: Path):
    untrained = factories.small(4, 3, 3)
    distill(settings(epochs=1), tmp_path / "run", teacher=model(classifier(1)), student=untrained)
    for each, fact in ((run, True), (tmp_path / "run", None)):
        student = load_model(each / "student.safetensors", module=untrained)
        assert student.card.provenance.initial_weights is fact


def pruned(module: nn.Module) -> nn.Module:
    prune.random_unstructured(module[0], "weight", 0.5)
    return module


def normalised(module: nn.Module, kind: Any) -> nn.Module:
    kind(module[0])
    module[0](torch.zeros(1, 1, 16, 16))
    return module


class Uncopyable(nn.Linear):
    """Cannot be copied."""

    def __deepcopy__(self, memo: object) -> nn.Module:
        raise TypeError("no copies")


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (factories.AlwaysDropping(), "is not deterministic in evaluation mode: the same images get different logits"),
        (factories.without_statistics(10, 1), "has a batch norm, 2, without running statistics"),
        (factories.features_only(1), "instead of floating logits of shape (2, 10); it must return one logit for each"),
        (factories.without_weights(), "has no parameters to train"),
        (Uncopyable(1, 1), "cannot be copied; make its tensors parameters or buffers"),
        (pruned(factories.small(10, 1)), "cannot be copied; remove the pruning (torch.nn.utils.prune.remove) of 0"),
        (normalised(factories.small(10, 1), nn.utils.weight_norm), "remove the weight_norm (torch.nn.utils.remove_we"),
        (normalised(factories.small(10, 1), nn.utils.spectral_norm), "remove the spectral_norm (torch.nn.utils.remo"),
        (factories.small(10, 1).to("meta"), "has no values (meta device) in 0.weight; load its weights first"),
        (factories.small(10, 1).half(), "its weights are float16, so convert it by .float() (RuntimeError: "),
        (factories.small(10, 1).bfloat16(), "its weights are bfloat16, so convert it by .float() (RuntimeError: "),
        (factories.small(10, 1).double(), "its weights are float64, so convert it by .float() (RuntimeError: "),
        (torch.zeros(1), "is a Tensor instead of a torch.nn.Module"),
    ],
)
def test_a_module_is_refused_as_a_file_or_factory_would_be(tmp_path: Path, module: Any, sentence: str):
    grey = {"input_shape": (1, 16, 16), "num_classes": 10}
    teacher = model(factories.small(10, 1), **grey)
    with pytest.raises(InputError) as caught:
        model(module, **grey)
    assert sentence in str(caught.value)
    with pytest.raises(InputError) as caught:
        distill(settings(), tmp_path / "run", teacher=teacher, student=module)
    assert sentence in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("student", "sentence"),
    [
        (factories.small(4, 3).requires_grad_(False), "has no trainable parameters; call requires_grad_(True) on"),
        (nn.DataParallel(factories.small(4, 3)), "is a DataParallel, which cannot be trained; pass its .module"),
    ],
)
def test_what_may_be_a_teacher_but_no_student_is_refused(tmp_path: Path, student: nn.Module, sentence: str):
    with pytest.raises(InputError) as caught:
        distill(settings(), tmp_path / "run", teacher=model(student), student=student)
    assert sentence in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_partly_frozen_student_trains_the_rest(tmp_path: Path):
    student = classifier(2)
    student.get_submodule("0").requires_grad_(False)
    distill(settings(epochs=1), tmp_path / "run", teacher=model(classifier(1)), student=student)
    trained, before = load_file(tmp_path / "run" / "student.safetensors"), student.state_dict()
    names = {name for name, _ in student.named_parameters()}
    assert {name for name in names if torch.equal(trained[name], before[name])} == {"0.weight", "0.bias"}


def test_the_interface_of_a_module_is_checked(teacher: nn.Module):
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"mean": None}, "the normalisation of the model's input is not known"),
        ({"num_classes": None}, "the number of classes is not known"),
        ({"class_names": ("a", "a", "b", "c")}, "the class name 'a' occurs 2 times"),
    ]
    for changes, sentence in wrong:
        with pytest.raises(InputError, match=sentence):
            model(teacher, **changes)


class Pair(nn.Module):
    """Returns a dictionary of one logit and features, of images (N, H, W, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.norm(self.convolution(images.permute(0, 3, 1, 2))).relu().mean((2, 3))
        return {"features": features, "output": self.head(features)}


def test_a_module_of_another_signature_is_teacher_and_student(tmp_path: Path):
    teacher, student = Pair(), Pair()
    given = model(teacher, num_classes=None, class_names=("cat", "dog"))
    assert (given.card.outputs, given.card.output_part, given.card.input_layout) == ("logit", "output", "NHWC")
    distill(settings(epochs=1), tmp_path / "run", teacher=given, student=student)
    loaded = load_model(tmp_path / "run" / "student.safetensors", module=student)
    images = torch.randn(3, 3, 16, 16)
    student.load_state_dict(load_file(tmp_path / "run" / "student.safetensors"))
    with torch.no_grad():
        logit = student.eval()(images.permute(0, 2, 3, 1))["output"]
        torch.testing.assert_close(loaded.module(images), torch.cat([-logit / 2, logit / 2], 1))


@pytest.mark.slow
def test_the_cost_of_a_live_distillation_is_estimated(teacher: nn.Module):
    estimate = estimate_distillation(settings(), teacher=model(teacher), student=classifier(2))
    assert estimate.flops > 0


@pytest.mark.slow
def test_of_a_compiled_module_the_original_is_taken(teacher: nn.Module):
    assert model(torch.compile(teacher, backend="eager")).sha256 == model(teacher).sha256  # type: ignore[arg-type]
