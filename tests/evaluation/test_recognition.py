"""What classifiers take and return is recognised when they are imported, and undone wherever they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gapssg import (
    DistillSettings,
    EvaluateSettings,
    ExportSettings,
    ImportSettings,
    InputError,
    distill,
    evaluate,
    export_model,
    import_teacher,
    load_model,
)
from gapssg.models import create_model
from gapssg.models.description import PLAIN, Signature
from gapssg.models.recognition import adapt_trainable
from gapssg.models.signature import adapt, signature_of
from gapssg.runs.directory import SilentDisplay
from gapssg.runs.events import Event, Note, Warned
from tests.conftest import write_images
from tests.program import gapssg
from tests.program import refusal as refusal_of

ANSWERING = "tests.models.factories:Answering"
COLOURED = (3, 16, 16)
SHORT = {
    "method": {"synthesis_batch_size": 4, "generator_steps": 1, "generator_width": 4, "distillation_steps": 1},
    "epochs": 1,
    "batch_size": 4,
    "samples": False,
    "runtime": {"device": "cpu", "precision": "fp32", "compile": False},
}


class Saying(SilentDisplay):
    """Records messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def event(self, event: Event) -> None:
        if isinstance(event, Note | Warned):
            self.messages.append(event.message)


def settings(kind: str, **changes: object) -> ImportSettings:
    values = {
        "model": {"name": ANSWERING, "arguments": {"kind": kind}},
        "input_shape": COLOURED,
        "class_names": ("bright", "dark"),
        "mean": (0.3,),
        "deviation": (0.4,),
        "seed": 1,
    }
    return ImportSettings.model_validate({**values, **changes})


def refusal(output: Path, given: ImportSettings) -> str:
    with pytest.raises(InputError) as caught:
        import_teacher(given, output)
    assert not output.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def expected_logits(module: Any, images: Tensor, signature: Signature) -> Tensor:
    """The logits of `Answering`, from its body."""
    logits = module.body(images)
    return torch.cat([-logits / 2, logits / 2], 1) if signature.outputs in ("logit", "sigmoid") else logits


@pytest.mark.parametrize(
    ("kind", "signature", "sentence"),
    [
        ("logit (N, 1)", Signature("logit"), "returns one logit, that of class 'dark'; the model file makes two of it"),
        ("logit (N,)", Signature("logit"), "returns one logit, that of class 'dark'"),
        ("sigmoid (N, 1)", Signature("sigmoid"), "returns the probability of class 'dark'; the model file converts it"),
        ("sigmoid (N,)", Signature("sigmoid"), "returns the probability of class 'dark'"),
        ("softmax in a tuple", Signature("probabilities", "0"), "its logits are '0' (--output-part)"),
        ("list", Signature("logits", "1"), "returns several outputs; its logits are '1'"),
        ("dict", Signature("logits", "logits"), "its logits are 'logits'"),
        ("object", Signature("logits", "logits"), "its logits are 'logits'"),
        ("auxiliary", Signature("logits", "logits"), "its logits are 'logits'"),
        ("auxiliary in training", PLAIN, None),
        ("NHWC", Signature(input_layout="NHWC"), "takes images (N, H, W, C)"),
        ("sigmoid in a dict, NHWC", Signature("sigmoid", "p", "NHWC"), "takes images (N, H, W, C)"),
    ],
)
def test_the_file_has_the_signature_and_gives_logits(tmp_path: Path, kind: str, signature: Signature, sentence):
    said = Saying()
    import_teacher(settings(kind), tmp_path / "a.safetensors", display=said)
    assert [message for message in said.messages if sentence in message] if sentence else not said.messages
    loaded = load_model(tmp_path / "a.safetensors", [ANSWERING])
    assert loaded.card.signature == signature_of(loaded.module) == signature
    images = torch.randn(5, *COLOURED)
    with torch.no_grad():
        logits, expected = loaded.module(images), expected_logits(loaded.module, images, signature)
    torch.testing.assert_close(logits.log_softmax(1), expected.log_softmax(1))


@pytest.mark.parametrize(
    ("kind", "changes", "signature"),
    [
        ("pair", {"output_part": "1"}, Signature("logits", "1")),
        ("dict", {"output_part": "auxiliary"}, Signature("logits", "auxiliary")),
        ("sigmoid (N, 1)", {"output_kind": "logit"}, Signature("logit")),
        ("sigmoids", {"output_kind": "sigmoids"}, Signature("sigmoids")),
        ("softmax in a tuple", {"output_kind": "logits"}, Signature("logits", "0")),
    ],
)
def test_what_is_given_overrules_what_is_recognised(tmp_path: Path, kind: str, changes, signature: Signature):
    import_teacher(settings(kind, **changes), tmp_path / "a.safetensors")
    assert load_model(tmp_path / "a.safetensors", [ANSWERING]).card.signature == signature


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        ("pair", {}, "where 0 and 1 may be the logits; choose one with --output-part 0, or let it return that one"),
        ("nothing", {}, "to a dict (features: a float32 tensor of shape (2, 3, 16, 16)) instead of floating logits"),
        ("nan", {}, "to logits that are not finite; check its weights, and add a small number to what it divides by"),
        ("fixed", {}, "accepts one image but not 2, so its batch size is fixed at 1; let its forward take the batch"),
        ("fixed answer", {}, "accepts one image but not 2, so its batch size is fixed at 1"),
        ("dict", {"output_part": "scores"}, "--output-part scores: "),
        ("dict", {"output_part": "features"}, "to a float32 tensor of shape (2, 3, 16, 16) instead of floating logits"),
        ("NHWC", {"output_part": "0"}, "returns a tensor, not a container with a part 0; leave --output-part out"),
        ("NHWC", {"input_layout": "NCHW"}, "does not accept images of 3x16x16; if it was made for "),
        ("logit (N, 1)", {"output_kind": "probabilities"}, "returns one number for an image: logit or sigmoid"),
        ("logit (N, 1)", {"output_kind": "sigmoid"}, "returns numbers outside [0, 1], which are no probabilities"),
        ("list", {"output_kind": "logit"}, "returns a number for each class: logits"),
        ("percent", {}, "that sum to 100 for every image, like scaled probabilities"),
        ("negated", {}, "that sum to -1 for every image, like scaled probabilities"),
        ("list", {"output_kind": "log-probabilities"}, "returns numbers above 0, which are no logarithms"),
        ("logit (N, 1)", {"class_names": ("a", "b", "c")}, "it must return one logit for each of 3 classes"),
    ],
)  # fmt: skip
def test_what_cannot_be_recognised_gives_one_sentence(tmp_path: Path, kind: str, changes, sentence: str):
    assert sentence in refusal(tmp_path / "a.safetensors", settings(kind, **changes))
    assert not list(tmp_path.iterdir())


def test_logits_that_sum_to_zero_are_no_scaled_probabilities(tmp_path: Path):
    import_teacher(settings("mirrored"), tmp_path / "a.safetensors")
    assert load_model(tmp_path / "a.safetensors", [ANSWERING]).card.signature == PLAIN


def test_the_options_of_the_command_overrule_and_inspect_shows_the_signature(tmp_path: Path):
    output = tmp_path / "t.safetensors"
    command = (
        *("import-teacher", "--model", ANSWERING, "--set", "model.arguments.kind=pair", "--input-shape", "3,16,16"),
        *("--class-names", "cat,dog", "--mean", 127.5, "--std", 255, "--input-range", 255, "--output", output),
    )
    assert "choose one with --output-part 0" in refusal_of(*command)
    assert not output.exists()
    given = ("--output-part", 1, "--output-kind", "logits", "--input-layout", "NCHW")
    assert "its logits are '1' (--output-part)" in gapssg(*command, *given).stdout
    card = load_model(output, [ANSWERING]).card
    assert (card.signature, card.mean, card.deviation) == (Signature("logits", "1"), (0.5,) * 3, (1.0,) * 3)
    assert "logits in 1" in gapssg("inspect", output, "--model-factory", ANSWERING).stdout


def test_pixels_from_0_to_255_have_the_normalisation_of_pixels_from_0_to_1(tmp_path: Path):
    for mean, deviation, expected in [(None, None, (0.0, 1 / 255)), ((127.5,), (51.0,), (0.5, 0.2))]:
        given = settings("list", mean=mean, deviation=deviation, input_range=255)
        import_teacher(given, tmp_path / "a.safetensors", overwrite=True)
        card = load_model(tmp_path / "a.safetensors", [ANSWERING]).card
        assert card.mean == pytest.approx([expected[0]] * 3)
        assert card.deviation == pytest.approx([expected[1]] * 3)
    assert "--mean 300 is outside [0, 255]" in refusal(
        tmp_path / "b.safetensors", settings("list", mean=(300.0,), input_range=255)
    )


def test_a_model_that_takes_pixels_from_0_to_255_is_recognised_by_labelled_images(tmp_path: Path):
    root = write_images(tmp_path / "images", test=40)
    said = Saying()
    given = ImportSettings.model_validate(
        {
            "model": {"name": "tests.models.factories:bright_above_125"},
            "input_shape": (1, 16, 16),
            "class_names": ("bright", "dark"),
            "mean": (0.0,),
            "deviation": (1.0,),
            "data": {"name": f"folder:{root}"},
        }
    )
    import_teacher(given, tmp_path / "a.safetensors", display=said)
    assert "but 100.0 % with --input-range 255 --mean 0 --std 1" in said.messages[-1]
    said.messages.clear()
    right = given.model_copy(update={"input_range": 255})
    assert import_teacher(right, tmp_path / "b.safetensors", display=said).top1 == 1.0
    assert len(said.messages) == 1  # that of the one logit


def test_a_normalisation_inside_the_model_gives_a_warning_without_images(tmp_path: Path):
    said = Saying()
    given = settings("list", model={"name": "tests.models.factories:normalising"})
    import_teacher(given, tmp_path / "a.safetensors", display=said)
    assert "has a mean and std of its own, so the model may normalise its input itself" in said.messages[0]
    said.messages.clear()
    import_teacher(
        given.model_copy(update={"mean": (0.0,), "deviation": (1.0,)}), tmp_path / "b.safetensors", display=said
    )
    assert not said.messages


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["logit (N, 1)", "dict", "object", "auxiliary in training", "NHWC", "sigmoid in a dict, NHWC"]
)
def test_a_student_or_teacher_of_any_signature_is_distilled_and_evaluated(tmp_path: Path, kind: str):
    import_teacher(settings(kind), tmp_path / "t.safetensors")
    is_trainable = not kind.startswith("sigmoid")
    student = {"name": ANSWERING, "arguments": {"kind": kind if is_trainable else "dict"}}
    values = {**SHORT, "teacher": tmp_path / "t.safetensors", "model_factories": [ANSWERING], "student": student}
    distill(DistillSettings.model_validate(values), tmp_path / "run")
    file = tmp_path / "run" / "student.safetensors"
    loaded = load_model(file, [ANSWERING])
    images = torch.randn(5, *COLOURED)
    with torch.no_grad():
        expected = expected_logits(loaded.module, images, loaded.card.signature)
        torch.testing.assert_close(loaded.module(images), expected)
    data = {"name": f"folder:{write_images(tmp_path / 'images')}", "image_size": 16}
    given = {"models": [file], "teacher": tmp_path / "t.safetensors", "data": data, "model_factories": [ANSWERING]}
    (scores,) = evaluate(EvaluateSettings.model_validate(given)).models
    assert 0 <= scores.top1 <= 1


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch-export", "torchscript"])
def test_an_export_takes_images_and_gives_logits(tmp_path: Path, to: str):
    import_teacher(settings("sigmoid in a dict, NHWC"), tmp_path / "t.safetensors")
    given = {"model": tmp_path / "t.safetensors", "to": to, "model_factories": [ANSWERING], "fold_normalization": True}
    result = export_model(ExportSettings.model_validate(given), tmp_path / "exported")
    assert result.verification.random.agreement == 1.0


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("softmax in a tuple", "returns probabilities; let it return the logits before its softmax"),
        ("sigmoid (N,)", "returns probabilities; let it return the logits before its sigmoid"),
        ("pair in training", "in training, returns a tuple (0: a float32 tensor of shape (2, 2), 1: "),
    ],
)
def test_a_student_must_return_logits_and_in_training_too(kind: str, sentence: str):
    with pytest.raises(InputError) as caught:
        create_model(ANSWERING, num_classes=2, input_shape=COLOURED, arguments={"kind": kind})
    assert sentence in str(caught.value)


def test_the_check_of_the_training_mode_changes_neither_statistics_nor_random_state():
    name = "tests.models.factories:small"
    torch.manual_seed(0)
    before = torch.get_rng_state()
    module = create_model(name, num_classes=2, input_shape=COLOURED)
    assert torch.equal(torch.get_rng_state(), before)
    assert module.training
    norm = module.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_batches_tracked == 0
    assert norm.running_mean is not None
    assert torch.equal(norm.running_mean, torch.zeros(4))


def test_an_untrained_student_of_one_logit_is_not_taken_for_a_sigmoid():
    """Whatever its random weights are: a logit between 0 and 1 is no sign."""
    for bias in (-1.0, 0.5):
        module = create_model(ANSWERING, num_classes=2, input_shape=COLOURED, arguments={"kind": "logit (N, 1)"})
        adapt(module, PLAIN)
        nn.init.constant_(module.get_parameter("head.bias"), bias)
        nn.init.zeros_(module.get_parameter("head.weight"))
        assert signature_of(adapt_trainable(module, "it", 2, COLOURED)) == Signature("logit")
