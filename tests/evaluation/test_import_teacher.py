from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from gapssg import DistillSettings, ImportSettings, InputError, RunError, distill, import_teacher, load_model
from gapssg.core.runtime import Runtime
from gapssg.data import load_split
from gapssg.data.settings import DataSettings
from gapssg.models import create_model
from gapssg.models.libraries import Pretrained
from gapssg.models.model_file import load_foreign_weights
from gapssg.runs.directory import SilentDisplay
from gapssg.runs.events import Event, Note, Warned
from gapssg.runs.results.models import ImportResult, WeightNames
from gapssg.training.distillation import Distillation
from tests import program
from tests.conftest import write_images

GREY = (1, 16, 16)
FACTORY = "tests.models.factories:small"
WITH_ANOTHER = "tests.models.factories:WithAnother"
OUT_OF_ORDER = "tests.models.factories:OutOfOrder"
ENDING = "tests.models.factories:Ending"
SHUFFLENET = "torchvision:shufflenet_v2_x0_5"


class Saying(SilentDisplay):
    """Records messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def event(self, event: Event) -> None:
        if isinstance(event, Note | Warned):
            self.messages.append(event.message)


def settings(name: str = FACTORY, **changes: object) -> ImportSettings:
    values = {"model": {"name": name}, "input_shape": GREY, "num_classes": 10, "mean": (0.3,), "deviation": (0.4,)}
    return ImportSettings.model_validate({**values, **changes})


def write_weights(path: Path, name: str, classes: int = 10) -> Path:
    save_file(create_model(name, num_classes=classes, input_shape=GREY, seed=3).state_dict(), path)
    return path


def refusal(output: Path, given: ImportSettings) -> str:
    with pytest.raises(InputError) as caught:
        import_teacher(given, output)
    assert not output.exists()
    return str(caught.value)


def test_the_file_has_the_weights_and_the_description(tmp_path: Path):
    weights = write_weights(tmp_path / "weights.safetensors", FACTORY)
    names = tuple("abcdefghij")
    given = settings(weights=str(weights), class_names=names, crop_padding=1, crop_padding_mode="zeros", flip=True)
    result = import_teacher(given, tmp_path / "new" / "teacher.safetensors")
    loaded = load_model(tmp_path / "new" / "teacher.safetensors", [FACTORY])
    assert result.sha256 == loaded.sha256
    assert result.top1 is None
    expected = create_model(FACTORY, num_classes=10, input_shape=GREY, seed=3).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.module.state_dict().items())
    card = loaded.card
    assert (card.class_names, card.crop_padding, card.flip, card.mean) == (names, 1, True, (0.3,))
    assert card.crop_padding_mode == "zeros"
    assert card.provenance.command == "import-teacher"


def test_a_factory_without_weights_keeps_its_own_and_equal_imports_are_equal_files(tmp_path: Path):
    for name in ("a", "b"):
        import_teacher(settings(), tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    card = load_model(tmp_path / "a.safetensors", [FACTORY]).card
    assert (card.class_names, card.crop_padding, card.flip) == (tuple("0123456789"), 2, False)


def test_the_file_says_how_images_are_resized_and_a_student_inherits_it(tmp_path: Path, runtime: Runtime):
    teacher, display = tmp_path / "a.safetensors", Saying()
    import_teacher(settings(resize=20, interpolation="bicubic"), teacher, display=display)
    said = "scaled to 20 pixels on the shorter side, bicubic, centre crop"
    assert f"real images are {said} (--resize, --interpolation)" in display.messages
    loaded = load_model(teacher, [FACTORY])
    values = {"teacher": teacher, "student": {"name": FACTORY}, "method": {"name": "noise", "synthesis_batch_size": 4}}
    distillation = Distillation(DistillSettings.model_validate(values), runtime, loaded)
    for card in (loaded.card, distillation.card):
        assert (card.resize, card.interpolation, card.resizing) == (20, "bicubic", said)
    with pytest.raises(ValueError, match="must be crop, stretch, or the pixels of the shorter side, from 1 to 2048"):
        settings(resize="zoom")


def test_crop_padding_as_large_as_the_images_is_refused(tmp_path: Path):
    sentence = refusal(tmp_path / "a.safetensors", settings(crop_padding=16))
    assert sentence.startswith("--crop-padding 16 is too large: a crop could miss all of an image of 16x16 pixels")


def test_one_number_applies_to_all_channels(tmp_path: Path):
    import_teacher(settings(input_shape=(3, 16, 16), deviation=(0.1, 0.2, 0.3)), tmp_path / "a.safetensors")
    card = load_model(tmp_path / "a.safetensors", [FACTORY]).card
    assert (card.mean, card.deviation) == ((0.3, 0.3, 0.3), (0.1, 0.2, 0.3))


def test_the_model_is_evaluated_before_it_is_written(tmp_path: Path, image_folder: Path):
    data = {"name": f"folder:{image_folder}"}
    given = settings(class_names=("dark", "light"), num_classes=None, data=data)
    sentence = refusal(tmp_path / "a.safetensors", given)
    assert sentence.endswith(
        "'bright' is not one of dark, light; name the folders like the classes, in any order, "
        "or import the teacher with the names of the folders (--class-names)"
    )
    given = settings(class_names=("bright", "dark"), num_classes=None, data=data)
    top1 = import_teacher(given, tmp_path / "a.safetensors").top1
    assert top1 is not None
    assert 0 <= top1 <= 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_classes": None}, "the number of classes is not known; add --num-classes or --class-names"),
        ({"class_names": ("a", "b")}, "there are 2 class names for 10 classes"),
        ({"mean": None}, "the normalisation of the model's input is not known; add the --mean and --std"),
        ({"resize": 15}, "--resize 15 is smaller than both sides of the model's input of 16x16 pixels; pass"),
        ({"mean": (0.1, 0.2)}, "--mean has 2 numbers for 1 channels"),
        ({"mean": (123.7,)}, "--mean 123.7 is outside [0, 1], the range of pixels; divide --mean and --std by 255"),
        ({"class_names": ("a",), "num_classes": None}, "has 2 to 100,000 classes; --class-names has 1"),
        ({"class_names": (*"abcdefghi", "a")}, "the class name 'a' occurs 2 times in --class-names"),
        ({"model": {"name": "tests.models.factories:AlwaysTraining"}}, "has no evaluation mode"),
        ({"model": {"name": WITH_ANOTHER, "arguments": {"kind": "hidden"}}}, "gives different logits after reloading"),
        ({"model": {"name": WITH_ANOTHER, "arguments": {"kind": "complex64"}}}, "has other of dtype complex64"),
        ({"model": {"name": "wrn10_half"}}, "wrn10_half would have random weights, from which no student can learn"),
        ({"model": {"name": SHUFFLENET}}, "add --weights FILE or --weights default"),
        ({"weights": "default"}, f"only torchvision and timm have default weights, not {FACTORY}"),
        ({"weights": "absent.safetensors"}, "absent.safetensors does not exist"),
        ({"model": {"name": "tests.models.factories:AlwaysDropping"}}, "not deterministic in evaluation mode"),
    ],
)  # fmt: skip
def test_missing_or_inconsistent_input_gives_one_sentence(tmp_path: Path, changes, sentence):
    text = refusal(tmp_path / "a.safetensors", settings(**changes))
    assert sentence in text
    assert "\n" not in text
    assert list(tmp_path.iterdir()) == []


def test_weights_of_torchvision_for_a_built_in_model_of_that_name_suggest_torchvisions_model(tmp_path: Path):
    module = create_model("torchvision:resnet18", num_classes=10, input_shape=(1, 32, 32))
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    given = settings(weights=str(tmp_path / "w.safetensors"), model={"name": "resnet18"}, input_shape=(1, 32, 32))
    assert "torchvision's model of that name is torchvision:resnet18" in refusal(tmp_path / "a.safetensors", given)


def test_weights_that_do_not_fit_name_the_first_differences(tmp_path: Path):
    weights = write_weights(tmp_path / "w.safetensors", FACTORY, classes=7)
    assert (
        "w.safetensors: the weights do not fit the model: 6.weight is 7x4 instead of 10x4; 6.bias is 7 instead"
        in refusal(tmp_path / "a.safetensors", settings(weights=str(weights)))
    )
    save_file({"other": torch.zeros(1)}, weights)
    assert "0.weight is missing; other is unknown; 0.bias is missing and 7 more" in refusal(
        tmp_path / "a.safetensors", settings(weights=str(weights))
    )


def test_a_file_with_booleans_can_be_opened(tmp_path: Path):
    import_teacher(
        settings(WITH_ANOTHER, model={"name": WITH_ANOTHER, "arguments": {"kind": "bool"}}), tmp_path / "a.safetensors"
    )
    assert load_model(tmp_path / "a.safetensors", [WITH_ANOTHER]).module.other.tolist() == [True] * 3


def test_a_file_that_cannot_be_read_back_is_removed_and_an_earlier_one_stays(tmp_path: Path, monkeypatch):
    import_teacher(settings(), tmp_path / "a.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()

    def refuse(*_: object) -> None:
        raise InputError("it is damaged")

    monkeypatch.setattr("gapssg.models.model_file.load_model", refuse)
    with pytest.raises(
        InputError, match=r"a.safetensors was not written, because it could not be read back: it is damaged"
    ):
        import_teacher(settings(seed=1), tmp_path / "a.safetensors", overwrite=True)
    assert (tmp_path / "a.safetensors").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_weights_replace_the_nan_weights_of_a_factory(tmp_path: Path):
    name = "tests.models.factories:not_initialised"
    weights = write_weights(tmp_path / "w.safetensors", "tests.models.factories:ten_classes")
    import_teacher(settings(name, weights=str(weights)), tmp_path / "teacher.safetensors")
    values = {
        "teacher": tmp_path / "teacher.safetensors",
        "model_factories": [name],
        "student": {"name": name, "weights": weights},
        "method": {"name": "noise", "synthesis_batch_size": 4, "distillation_steps": 1},
        "epochs": 1,
        "batch_size": 4,
        "samples": False,
    }
    distill(DistillSettings.model_validate(values), tmp_path / "run")
    assert "logits that are not finite" in refusal(tmp_path / "b.safetensors", settings(name))


def test_an_output_that_cannot_be_written_is_refused_first(tmp_path: Path):
    absent = settings("no_such_package:net")
    (tmp_path / "folder.safetensors").mkdir()
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"folder.safetensors is a folder; name the file to write"):
            import_teacher(absent, tmp_path / "folder.safetensors", overwrite=overwrite)
    assert "must end with .safetensors" in refusal(tmp_path / "a.pt", absent)
    with_option = program.refusal("import-teacher", "--weights", "no.onnx", "--output", tmp_path / "a.pt", "--dry-run")
    assert "must end with .safetensors" in with_option
    (tmp_path / "file").touch()
    assert "is not a folder" in refusal(tmp_path / "file" / "a.safetensors", absent)
    import_teacher(settings(), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"already exists; add --overwrite"):
        import_teacher(absent, tmp_path / "a.safetensors")
    import_teacher(settings(seed=1), tmp_path / "a.safetensors", overwrite=True)
    assert load_model(tmp_path / "a.safetensors", [FACTORY]).card.provenance.seed == 1


@pytest.mark.slow
def test_an_import_never_replaces_the_weights_that_it_reads(tmp_path: Path):
    weights = write_weights(tmp_path / "a.safetensors", FACTORY)
    (tmp_path / "link.safetensors").symlink_to(weights)
    before = weights.read_bytes()
    for given in (weights, tmp_path / "link.safetensors"):
        with pytest.raises(InputError, match=r"is also the input .*; name another file"):
            import_teacher(settings(weights=str(given)), weights, overwrite=True)
    assert weights.read_bytes() == before


def test_default_weights_set_classes_and_normalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tensors = create_model(SHUFFLENET, num_classes=10, input_shape=(3, 32, 32), seed=3).state_dict()

    def fetched(library: str, name: str, input_shape: tuple[int, int, int]) -> Pretrained:
        assert (library, name, input_shape) == ("torchvision", "shufflenet_v2_x0_5", (3, 32, 32))
        names = tuple("abcdefghij")
        return Pretrained(dict(tensors), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), names, resize=36, interpolation="bicubic")

    monkeypatch.setattr("gapssg.evaluation.import_teacher.pretrained_weights", fetched)
    given = settings(
        SHUFFLENET, weights="default", input_shape=(3, 32, 32), num_classes=None, mean=None, deviation=None
    )
    import_teacher(given, tmp_path / "a.safetensors")
    loaded = load_model(tmp_path / "a.safetensors")
    assert (loaded.card.mean, loaded.card.deviation) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert loaded.card.class_names == tuple("abcdefghij")
    assert (loaded.card.resize, loaded.card.interpolation) == (36, "bicubic")
    import_teacher(given.model_copy(update={"resize": "crop"}), tmp_path / "b.safetensors")
    card = load_model(tmp_path / "b.safetensors").card
    assert (card.resize, card.interpolation) == ("crop", "bicubic")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in loaded.module.state_dict().items())


def test_a_normalisation_of_the_library_for_other_channels_is_refused(tmp_path: Path, monkeypatch):
    tensors = create_model(SHUFFLENET, num_classes=10, input_shape=GREY).state_dict()
    pretrained = Pretrained(dict(tensors), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), None)
    monkeypatch.setattr("gapssg.evaluation.import_teacher.pretrained_weights", lambda *_: pretrained)
    default = {"weights": "default", "input_shape": (1, 32, 32)}
    assert (
        f"the weights of {SHUFFLENET} come with mean and std for 3 channels, but the images have 1; add --mean"
        in refusal(tmp_path / "a.safetensors", settings(SHUFFLENET, **default, mean=None))
    )
    import_teacher(settings(SHUFFLENET, **default), tmp_path / "a.safetensors")
    sentence = refusal(tmp_path / "b.safetensors", settings(SHUFFLENET, **default, num_classes=None))
    assert sentence == "the number of classes is not known; add --num-classes or --class-names"


@pytest.mark.parametrize("name", [SHUFFLENET, "timm:resnet10t"])
def test_default_weights_without_a_network_give_one_sentence(tmp_path: Path, monkeypatch, name):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("Name or service not known\nand more")

    if name.startswith("timm"):
        pytest.importorskip("timm")
        monkeypatch.setattr("timm.create_model", refuse)
    else:
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(RunError) as caught:
        import_teacher(settings(name, weights="default", input_shape=(3, 32, 32)), tmp_path / "a.safetensors")
    assert str(caught.value).startswith(
        f"the weights of {name} cannot be downloaded (OSError: Name or service not known);"
    )
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def stored_by_torchvision(name: str) -> dict[str, torch.Tensor]:
    """Weights for a model of torchvision in the form of its downloads."""
    auxiliary = {"aux_logits": True, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    state = torchvision.models.get_model(name, weights=None, **auxiliary).state_dict()
    if name.startswith("densenet"):
        renamed = {re.sub(r"(denselayer\d+\.\w+)([12])\.", r"\1.\2.", key): t for key, t in state.items()}
        return {key: tensor for key, tensor in renamed.items() if not key.endswith("num_batches_tracked")}
    return state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("densenet121", "file"),
        ("googlenet", "default"),
        ("googlenet", "file"),
        ("mnasnet0_5", "default"),
    ],
)
def test_weights_that_torchvision_stores_in_an_older_form_are_loaded(tmp_path: Path, monkeypatch, name, source):
    stored = stored_by_torchvision(name)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: copy.copy(stored))
    image = torch.rand(1, 3, 32, 32)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    theirs = torchvision.models.get_model(name, weights=weights).eval()
    given: dict[str, Any] = {"model": {"name": f"torchvision:{name}"}, "input_shape": (3, 32, 32)}
    if source == "file":
        save_file({key: tensor.clone() for key, tensor in stored.items()}, tmp_path / "w.safetensors")
        given |= {"num_classes": 1000, "mean": transforms.mean, "deviation": transforms.std}
        if name in ("googlenet", "inception_v3"):
            given["model"]["arguments"] = {"transform_input": True}
    values = {"weights": "default" if source == "default" else str(tmp_path / "w.safetensors"), **given}
    import_teacher(ImportSettings.model_validate(values), tmp_path / "a.safetensors")
    loaded = load_model(tmp_path / "a.safetensors")
    # Their 256 or 232 pixels for crops of 224, in proportion.
    scaled = 32 * transforms.resize_size[0] // transforms.crop_size[0]
    assert loaded.card.resize == (scaled if source == "default" else "crop")
    ours = loaded.module
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image))


def test_sub_modules_rename_the_names_of_their_older_versions():
    """As those of a vision transformer of torchvision, which has a hundred million weights."""
    block = torchvision.models.vision_transformer.EncoderBlock(2, 8, 16, 0.0, 0.0)
    expected = {key: torch.rand_like(tensor) for key, tensor in block.state_dict().items()}
    older = {
        re.sub(r"mlp\.(0|3)\.", lambda m: f"mlp.linear_{1 + int(m[1]) // 3}.", key): t for key, t in expected.items()
    }
    assert older.keys() != expected.keys()
    load_foreign_weights(block, older, "weights")
    assert all(torch.equal(tensor, expected[key]) for key, tensor in block.state_dict().items())


@pytest.mark.slow
def test_default_weights_follow_the_arguments_and_cannot_run_code(tmp_path: Path, monkeypatch):
    pytest.importorskip("timm")
    seen: list[str | None] = []

    def load(model: nn.Module, **_: object) -> None:
        seen.append(os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD"))

    monkeypatch.setattr("timm.models._builder.load_pretrained", load)
    model = {"name": "timm:vit_tiny_patch16_224", "arguments": {"img_size": 32}}
    given = {"model": model, "weights": "default", "input_shape": (3, 32, 32)}
    result = import_teacher(ImportSettings.model_validate(given), tmp_path / "a.safetensors")
    assert (result.num_classes, seen) == (1000, ["1"])
    card = load_model(tmp_path / "a.safetensors").card
    assert (card.resize, card.interpolation) == (35, "bicubic")  # timm's share of the crop is 0.9
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    for argument in ("checkpoint_path", "no_such_argument"):
        model["arguments"] = {argument: "x"}
        assert argument in refusal(tmp_path / "b.safetensors", ImportSettings.model_validate(given))
    assert len(seen) == 1


def variants(weights: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The same weights in the forms that PyTorch programs save."""
    wrapped = {f"module.{name}": tensor for name, tensor in weights.items()}
    parts = {re.sub(r"^1\.", "1.module.", name): tensor for name, tensor in weights.items()}
    return {
        "without counters": {name: t for name, t in weights.items() if not name.endswith("num_batches_tracked")},
        "halves": {name: tensor.half() for name, tensor in weights.items()},
        "halves with a counter beyond them": {**weights, "1.num_batches_tracked": torch.tensor(1e6).half()},
        "bfloat16": {name: t.bfloat16() if t.is_floating_point() else t for name, t in weights.items()},
        "double": {name: tensor.double() for name, tensor in weights.items()},
        "integers of 32 bits": {name: t if t.is_floating_point() else t.int() for name, t in weights.items()},
        "parallel": wrapped,
        "compiled and parallel": {f"_orig_mod.{name}": tensor for name, tensor in wrapped.items()},
        "parallel but one": {name.replace("module.6.bias", "6.bias"): tensor for name, tensor in wrapped.items()},
        "averaged": {**wrapped, "n_averaged": torch.tensor(3)},
        "a parallel part": parts,
        "of Lightning": {f"model.{name}": tensor for name, tensor in weights.items()},
    }


@pytest.mark.parametrize("form", variants(create_model(FACTORY, num_classes=10, input_shape=GREY).state_dict()))
def test_weights_that_pytorch_accepts_are_loaded(tmp_path: Path, form: str):
    expected = create_model(FACTORY, num_classes=10, input_shape=GREY, seed=3).state_dict()
    save_file(variants(expected)[form], tmp_path / "w.safetensors")
    given = settings(weights=str(tmp_path / "w.safetensors"))
    display = Saying()
    result = import_teacher(given, tmp_path / "a.safetensors", display=display)
    removed = {
        "parallel": ("module.",),
        "compiled and parallel": ("_orig_mod.", "module."),
        "parallel but one": ("module.",),
        "averaged": ("module.",),
        "a parallel part": ("module.",),
        "of Lightning": ("model.",),
    }.get(form, ())
    assert result.weights == WeightNames(key=None, removed=removed, added=None)
    words = f"were taken without {' and '.join(map(repr, removed))}"
    assert [words in message for message in display.messages] == ([True] if removed else [])
    loaded = load_model(tmp_path / "a.safetensors", [FACTORY]).module.state_dict()
    for name, tensor in loaded.items():
        if name.endswith("num_batches_tracked"):
            continue
        torch.testing.assert_close(tensor, expected[name], rtol=2**-8, atol=1e-4)


def test_a_shared_weight_needs_only_one_of_its_names(tmp_path: Path):
    name = "tests.models.factories:Tied"
    weights = create_model(name, num_classes=10, input_shape=GREY, seed=3).state_dict()
    del weights["second.weight"]
    save_file(weights, tmp_path / "w.safetensors")
    import_teacher(settings(name, weights=str(tmp_path / "w.safetensors")), tmp_path / "a.safetensors")
    loaded = load_model(tmp_path / "a.safetensors", [name]).module.state_dict()
    assert torch.equal(loaded["second.weight"], weights["first.weight"])


@pytest.mark.parametrize(
    ("kind", "outputs", "sentence"),
    [
        ("softmax", "probabilities", "returns probabilities; the model file converts them to logits"),
        ("log_softmax", "log-probabilities", "returns log-probabilities, which are used as logits"),
        ("sigmoid", "logits", "lie in [0, 1], like those of a sigmoid, but are used as logits"),
    ],
)
def test_outputs_that_are_no_logits_are_recognised_and_reported(
    tmp_path: Path, image_folder: Path, kind: str, outputs: str, sentence: str
):
    said = Saying()
    given = settings(
        model={"name": ENDING, "arguments": {"kind": kind}},
        num_classes=None,
        class_names=("bright", "dark"),
        data={"name": f"folder:{image_folder}"},
        runtime={"precision": "fp32"},
    )
    result = import_teacher(given, tmp_path / "a.safetensors", display=said)
    assert any(sentence in message for message in said.messages)
    loaded = load_model(tmp_path / "a.safetensors", [ENDING])
    assert loaded.card.outputs == outputs
    images = load_split(f"folder:{image_folder}", "test")
    normalised = (images.images / 255 - 0.3) / 0.4
    with torch.no_grad():
        body = loaded.module.get_submodule("body")(normalised)
        logits = loaded.module(normalised)
    if kind != "sigmoid":
        torch.testing.assert_close(logits, body.log_softmax(1))
        assert result.loss == pytest.approx(nn.functional.cross_entropy(body, images.labels).item(), abs=1e-5)


def test_a_probability_of_0_has_a_finite_logarithm_and_a_student_of_probabilities_has_logits(tmp_path: Path):
    weights = {"body.2.weight": torch.full((10, 1), 1e4), "body.2.bias": torch.linspace(0, 1e4, 10)}
    save_file(weights, tmp_path / "w.safetensors")
    import_teacher(settings(ENDING, weights=str(tmp_path / "w.safetensors")), tmp_path / "t.safetensors")
    assert load_model(tmp_path / "t.safetensors", [ENDING]).module(torch.ones(1, *GREY)).isfinite().all()
    values = {
        "teacher": tmp_path / "t.safetensors",
        "model_factories": [ENDING],
        "student": {"name": FACTORY},
        "method": {"name": "noise", "synthesis_batch_size": 4, "distillation_steps": 1},
        "epochs": 1,
        "batch_size": 4,
        "samples": False,
    }
    distill(DistillSettings.model_validate(values), tmp_path / "run")
    assert load_model(tmp_path / "run" / "student.safetensors", [FACTORY]).card.outputs == "logits"
    values["student"] = {"name": ENDING}
    with pytest.raises(InputError, match="returns probabilities; let it return the logits before its softmax"):
        distill(DistillSettings.model_validate(values), tmp_path / "other")


def test_a_model_that_normalises_its_input_itself_gives_a_warning(tmp_path: Path):
    said = Saying()
    weights = {"body.2.weight": torch.tensor([[60.0], [-60.0]]), "body.2.bias": torch.zeros(2)}
    save_file(weights, tmp_path / "w.safetensors")
    root = write_images(tmp_path / "images", test=40)
    given = settings(
        model={"name": ENDING, "arguments": {"kind": "log_softmax", "mean": 0.5}},
        weights=str(tmp_path / "w.safetensors"),
        num_classes=None,
        class_names=("bright", "dark"),
        data={"name": f"folder:{root}"},
        mean=(0.9,),
    )
    import_teacher(given, tmp_path / "a.safetensors", display=said)
    assert "top-1 is 50.0 % with the given normalisation, but 100.0 % with --mean 0 --std 1" in said.messages[-1]
    said.messages.clear()
    import_teacher(
        given.model_copy(update={"mean": (0.0,), "deviation": (1.0,)}), tmp_path / "b.safetensors", display=said
    )
    assert not any("normalise" in message for message in said.messages)


def test_folders_have_any_order_and_names_in_another_order_than_the_logits_give_a_warning(tmp_path: Path):
    said = Saying()
    root = write_images(tmp_path / "images", test=40)
    given = settings(
        model={"name": ENDING, "arguments": {"kind": "log_softmax", "mean": 0.5}},
        num_classes=None,
        data={"name": f"folder:{root}"},
        mean=(0.0,),
        deviation=(1.0,),
        weights=str(tmp_path / "w.safetensors"),
    )

    def imported(names: tuple[str, str], bright: float, offset: float = 0.0) -> ImportResult:
        """Import a model whose first logit is that of bright images."""
        said.messages.clear()
        weights = {"body.2.weight": torch.tensor([[bright], [-bright]]), "body.2.bias": torch.tensor([offset, 0.0])}
        save_file(weights, tmp_path / "w.safetensors")
        named = given.model_copy(update={"class_names": names})
        return import_teacher(named, tmp_path / "a.safetensors", overwrite=True, display=said)

    for names, bright in ((("bright", "dark"), 60.0), (("dark", "bright"), -60.0)):  # folders are sorted by name
        assert imported(names, bright).top1 == 1
        assert not any("top-1" in message or "balanced" in message for message in said.messages)
    assert imported(("dark", "bright"), 60.0).top1 == 0
    order = "top-1 is 0.0 % with the given order of the classes, but 100.0 % with --class-names bright,dark: are"
    assert order in said.messages[-1]
    few = given.model_copy(update={"data": DataSettings(name=f"folder:{root}", images=18)})
    said.messages.clear()
    import_teacher(few.model_copy(update={"class_names": ("dark", "bright")}), tmp_path / "b.safetensors", display=said)
    assert not any("order of the classes" in message for message in said.messages)  # any answers fit some order
    assert imported(("bright", "dark"), 0.0, offset=9.0).top1 == 0.5  # every image is of the first class
    assert said.messages[-1].startswith("its balanced accuracy is 50.0 %, no better than always answering with one")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"6.weight": torch.zeros(10, 4, dtype=torch.int8)}, "6.weight is torch.int8 instead of torch.float32"),
        ({"6.weight": torch.full((10, 4), 1e300, dtype=torch.float64)}, "6.weight has values that are not finite"),
        ({"head.weight": torch.zeros(10, 4)}, "head.weight is unknown"),
    ],
)
def test_weights_with_other_values_or_dtypes_are_refused(tmp_path: Path, change, sentence):
    weights = create_model(FACTORY, num_classes=10, input_shape=GREY, seed=3).state_dict()
    save_file({**weights, **change}, tmp_path / "w.safetensors")
    assert sentence in refusal(tmp_path / "a.safetensors", settings(weights=str(tmp_path / "w.safetensors")))


def test_a_checkpoint_is_read_whatever_the_layout_and_the_sharing_of_its_tensors(tmp_path: Path):
    module = torchvision.models.squeezenet1_1(num_classes=10).to(memory_format=torch.channels_last).eval()
    weights = {**module.state_dict(), "classifier.1.bias": torch.zeros(20)[:10]}
    wrapped = {f"module.{name}": tensor for name, tensor in weights.items()}
    torch.save({"epoch": 3, "model": wrapped, "ema": weights}, tmp_path / "w.pth")
    given = settings("torchvision:squeezenet1_1", weights=str(tmp_path / "w.pth"), input_shape=(3, 32, 32))
    display = Saying()
    result = import_teacher(given, tmp_path / "a.safetensors", display=display)
    assert display.messages[0] == f"took the weights in 'model' of {tmp_path / 'w.pth'}, not ema (--weights-key)"
    assert result.weights == WeightNames(key="model", removed=("module.",), added=None)
    module.load_state_dict(weights)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        # The layouts of the weights differ, and with them the kernels.
        torch.testing.assert_close(load_model(tmp_path / "a.safetensors").module(images), module(images))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gapssg", "fast", "cmi", "dafl"])
def test_every_kind_of_observer_follows_a_teacher_whose_layers_are_out_of_order(tmp_path: Path, method: str):
    teacher = tmp_path / "teacher.safetensors"
    import_teacher(settings(OUT_OF_ORDER), teacher)
    steps = {"dafl": {"rounds": 1}, "cmi": {"bank_size": 8, "distillation_steps": 1}}.get(
        method, {"distillation_steps": 1}
    )
    values = {
        "teacher": teacher,
        "student": {"name": FACTORY, "arguments": {"width": 3}},
        "model_factories": [OUT_OF_ORDER],
        "method": {"name": method, "synthesis_batch_size": 4, "generator_steps": 1, "generator_width": 4, **steps},
        "epochs": 1,
        "batch_size": 4,
        "samples": False,
    }
    distill(DistillSettings.model_validate(values), tmp_path / "run")
    student = load_model(tmp_path / "run" / "student.safetensors", [FACTORY])
    assert student.card.arguments == {"width": 3}


@pytest.mark.parametrize("shape", [(2, 17, 30), (16, 64, 64)])
def test_images_of_odd_sizes_and_many_channels_are_made_for_a_teacher_that_takes_them(tmp_path: Path, shape):
    teacher = tmp_path / "teacher.safetensors"
    import_teacher(settings(input_shape=shape), teacher)
    values = {
        "teacher": teacher,
        "student": {"name": FACTORY},
        "method": {"synthesis_batch_size": 4, "generator_steps": 1, "generator_width": 4},
        "epochs": 1,
        "batch_size": 4,
    }
    distill(DistillSettings.model_validate(values), tmp_path / "run")
    assert (tmp_path / "run" / "samples" / "epoch-0001.png").is_file()
    shard = load_file(next((tmp_path / "run" / "pool").iterdir()))
    assert shard["images"].shape == (4, *shape)


def test_dropout_is_off_in_a_teacher_and_wherever_a_student_is_only_looked_at(tmp_path: Path, runtime: Runtime):
    teacher = tmp_path / "teacher.safetensors"
    import_teacher(settings(), teacher)
    values = {"teacher": teacher, "student": {"name": FACTORY}, "method": {"name": "noise", "synthesis_batch_size": 4}}
    distillation = Distillation(DistillSettings.model_validate(values), runtime, load_model(teacher, [FACTORY]))
    images = torch.rand(4, *GREY, generator=torch.Generator().manual_seed(0))
    assert not any(layer.training for layer in distillation.teacher.modules())
    assert torch.equal(distillation.teacher(images), distillation.teacher(images))
    student = distillation.student.train()
    assert not torch.equal(student(images), student(images))
    assert torch.equal(distillation.predict(student, images), distillation.predict(student, images))
    assert student.training


def test_methods_that_cannot_run_with_a_teacher_refuse_it_before_anything_is_written(tmp_path: Path):
    teacher = tmp_path / "teacher.safetensors"
    name = "tests.models.factories:without_linear_layer"
    import_teacher(settings(name), teacher)
    values = {"teacher": teacher, "student": {"name": "wrn10_half"}, "model_factories": [name]}
    for method, sentence in (("fast", "has no batch-norm layers"), ("dafl", "do not come from a linear layer")):
        with pytest.raises(InputError, match=sentence):
            distill(DistillSettings.model_validate({**values, "method": {"name": method}}), tmp_path / "run")
        assert not (tmp_path / "run").exists()
