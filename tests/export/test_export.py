from __future__ import annotations

import copy
import json
import re
import sys
import tomllib
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import MobileNetV2, get_model

from gapssg import ExportSettings, InputError, export_model, load_model
from gapssg.core.runtime import Runtime
from gapssg.data import load_split
from gapssg.export import quantize
from gapssg.export.export import loss_of_int8
from gapssg.export.formats import Files, Subject, load_format
from gapssg.export.formats.onnx import OnnxQuantizer
from gapssg.export.settings import FORMAT_NAMES, FORMAT_OF_SUFFIX
from gapssg.export.verify import Examiner, compare, tolerance_of
from gapssg.models import create_model, mobilenet
from gapssg.models.description import Signature
from gapssg.models.model_file import LoadedModel, save_model
from gapssg.runs.directory import SilentDisplay
from gapssg.runs.events import Event, Warned
from gapssg.runs.requests import Stopped
from gapssg.runs.results.common import RESULT
from gapssg.runs.results.export import (
    BothPrecisions,
    ExportMetadata,
    ExportResult,
    Int8Metadata,
    Int8Verification,
    LogitsComparison,
    Verification,
)
from gapssg.synthesis.shards import PoolOrigin, read_shard, write_shard
from tests.conftest import make_card, write_teacher
from tests.models.factories import Answering
from tests.program import gapssg, refusal
from tests.results import make_distill_result

# Logits of about 1. Each of the 16 layers sums up to 9 x 64 products, whose roundings add up like a random walk, in the
# model and in the exported one.
ROUNDED = (2 * 16 * 9 * 64) ** 0.5 * 2**-24


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def run_folder(model_file: Path) -> Path:
    """A run with a model and a pool of 60 images, blurred noise in two shards."""
    folder = model_file.parent / "run"
    (folder / "pool").mkdir(parents=True)
    (folder / "student.safetensors").write_bytes(model_file.read_bytes())
    write_pool(folder / "pool", (1, 16, 16))
    return folder


def write_pool(folder: Path, shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    for epoch in (1, 2):
        images = torch.randint(0, 256, (30, *shape), dtype=torch.uint8, generator=generator)
        write_shard(folder / f"shard-{epoch:04d}.safetensors", images, torch.arange(30) % 10, PoolOrigin("gapssg", "0"))


@pytest.fixture(scope="module")
def exported(model_file: Path) -> tuple[Path, ExportResult]:
    """The ONNX file of the model, which several tests inspect, and the result."""
    file = model_file.parent / "model.onnx"
    settings = ExportSettings(model=model_file, to="onnx", data={"name": "digits"})
    return file, export_model(settings, file)


def run_onnx(file: Path, inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": inputs.numpy()})[0])


def normalised(images: Tensor, mean: float = 0.3, deviation: float = 0.4) -> Tensor:
    return (images - mean) / deviation


def logits_of(file: Path, images: Tensor) -> Tensor:
    """The model's own logits of images in [0, 1]."""
    model = load_model(file)
    with torch.no_grad():
        return model.module(normalised(images))


def images_in_unit_range(count: int) -> Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(count))


# The exported files


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_onnx_file_gives_the_logits_of_the_model_for_batches_of_any_size(exported, model_file: Path, count: int):
    images = images_in_unit_range(count)
    torch.testing.assert_close(
        run_onnx(exported[0], normalised(images)), logits_of(model_file, images), rtol=0, atol=ROUNDED
    )


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["vgg11", "mobilenetv2"])
def test_other_architectures_export_to_onnx_and_agree(
    tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
):
    blocks = [[1, 16, 1, 1], [6, 24, 1, 2], [6, 32, 2, 2]]  # of the 17, each kind once
    monkeypatch.setattr(mobilenet, "MobileNetV2", partial(MobileNetV2, inverted_residual_setting=blocks))
    module = create_model(architecture, num_classes=10, input_shape=(1, 16, 16), seed=1).eval()
    save_model(tmp_path / "model.safetensors", module, make_card(architecture=architecture))
    settings = ExportSettings(model=tmp_path / "model.safetensors", to="onnx")
    verification = export_model(settings, tmp_path / "model.onnx").verification
    assert 0 < verification.random.relative_difference <= verification.tolerance < 1e-3
    assert verification.random.agreement == 1


def load_torch_export(file: Path, metadata: dict[str, Any]) -> nn.Module:
    return torch.export.load(file, extra_files=metadata).module()


def load_torchscript(file: Path, metadata: dict[str, Any]) -> nn.Module:
    return torch.jit.load(file, _extra_files=metadata)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "name", "load"),
    [("torch-export", "model.pt2", load_torch_export), ("torchscript", "model.pt", load_torchscript)],
)
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_the_formats_of_torch_give_the_logits_of_the_model_and_hold_the_metadata(
    model_file: Path, tmp_path: Path, to: str, name: str, load: Callable[[Path, dict[str, Any]], nn.Module]
):
    result = export_model(ExportSettings(model=model_file, to=to), tmp_path / name)
    metadata = {"gapssg": ""}
    module = load(tmp_path / name, metadata)
    assert json.loads(metadata["gapssg"]) == result.metadata.model_dump(mode="json")
    for count in (1, 5):
        images = images_in_unit_range(count)
        with torch.no_grad():
            torch.testing.assert_close(module(normalised(images)), logits_of(model_file, images), rtol=0, atol=ROUNDED)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_the_format_is_that_of_the_suffix_unless_it_is_named(model_file: Path, tmp_path: Path):
    for suffix, to in FORMAT_OF_SUFFIX.items():
        shown = gapssg("export", model_file, "--output", tmp_path / f"model{suffix}", "--dry-run").stdout
        assert tomllib.loads(shown)["to"] == to
    named = gapssg("export", model_file, "--to", "torchscript", "--output", tmp_path / "model", "--json")
    assert json.loads(named.stdout)["format"] == "torchscript"
    assert {*FORMAT_OF_SUFFIX.values()} == {*FORMAT_NAMES} - {"openvino", "calibration"}  # both are folders


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_a_float_file_is_timed(model_file: Path, tmp_path: Path):
    out = tmp_path / "model.pt"
    shown = gapssg("export", model_file, "--output", out, "--batch-size", 8).stdout
    assert re.search(r"^[\d,]+ images/s on the CPU, 8 images at a time$", shown, re.MULTILINE)
    result = gapssg("export", model_file, "--output", out, "--overwrite", "--json").stdout
    timing = json.loads(result)["timing"]
    assert timing["images_per_second"]["float32"] > 0
    assert (timing["images_per_second"]["int8"], timing["batch_size"]) == (None, 64)


@pytest.mark.slow
def test_a_folded_normalisation_takes_pixels_and_gives_what_normalising_outside_gives(
    exported, model_file: Path, tmp_path: Path
):
    settings = ExportSettings(model=model_file, to="onnx", fold_normalization=True)
    folded = export_model(settings, tmp_path / "folded.onnx")
    assert folded.metadata.normalization_folded
    images = images_in_unit_range(6)
    torch.testing.assert_close(
        run_onnx(tmp_path / "folded.onnx", images), run_onnx(exported[0], normalised(images)), rtol=0, atol=ROUNDED
    )


@pytest.mark.slow
def test_the_metadata_of_an_onnx_file_has_all_that_its_use_needs(exported, model_file: Path):
    model = onnx.load(exported[0])
    (text,) = (entry.value for entry in model.metadata_props if entry.key == "gapssg")
    metadata = json.loads(text)
    assert text == json.dumps(metadata, sort_keys=True, separators=(",", ":"))
    assert metadata["class_names"] == list("0123456789")
    assert (metadata["mean"], metadata["deviation"], metadata["input_shape"]) == ([0.3], [0.4], [1, 16, 16])
    assert metadata["normalization_folded"] is False
    assert (metadata["resize"], metadata["interpolation"]) == ("crop", "bilinear")
    assert metadata["provenance"]["model_sha256"] == load_model(model_file).sha256
    assert {"gapssg", "torch", "onnx", "onnxruntime"} <= metadata["provenance"]["versions"].keys()
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    assert [each.dim_param or each.dim_value for each in dimensions] == ["batch", 1, 16, 16]


def test_an_onnx_file_names_no_folder_of_this_machine(exported):
    content = exported[0].read_bytes()
    for folder in (Path(torch.__file__).parent, Path(__file__).parents[2]):
        assert str(folder).encode() not in content


@pytest.mark.slow
def test_equal_models_are_equal_onnx_files(exported, model_file: Path, tmp_path: Path):
    export_model(ExportSettings(model=model_file, to="onnx"), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported[0].read_bytes()


# Verification


def test_the_result_compares_on_random_and_on_real_images(exported, model_file: Path):
    file, result = exported
    verification = result.verification
    test = load_split("digits", "test")
    ours = logits_of(model_file, test.images / 255)
    theirs = run_onnx(file, normalised(test.images / 255))
    largest = (ours.double() - theirs.double()).abs().max().item()
    assert verification.test.images == len(test)
    # Both are the largest rounding error of the same logits. In batches of another size sums have another order, which
    # makes other errors of the same size; of 4,500 the largest hardly doubles.
    assert largest / 4 < verification.test.largest_difference < 4 * largest
    scale = ours.abs().max().item()
    assert verification.test.relative_difference == pytest.approx(
        verification.test.largest_difference / scale, rel=1e-4
    )
    assert verification.random.images > 10
    top1 = (ours.argmax(1) == test.labels).double().mean().item()
    assert verification.top1.model == pytest.approx(top1, abs=0.5 / len(test))
    assert result.bytes == file.stat().st_size


def replace(monkeypatch: pytest.MonkeyPatch, to: str, **functions: Any) -> None:
    module = f"gapssg.export.formats.{to.replace('-', '_')}"
    monkeypatch.setattr(f"{module}.FORMAT", load_format(to)._replace(**functions))


def write_bytes(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Write this ONNX file, which saves the seconds of an export."""
    replace(monkeypatch, "onnx", write=lambda _: {"": content})


def poison(monkeypatch: pytest.MonkeyPatch, to: str, change: Callable[[nn.Module], object]) -> None:
    """Export a copy of the model that `change` has modified."""
    honest = load_format(to).write

    def write(subject: Subject) -> Files:
        other = copy.deepcopy(subject.module)
        with torch.no_grad():
            change(other)
        return honest(subject._replace(module=other))

    replace(monkeypatch, to, write=write)


def shift_a_weight(module: nn.Module) -> None:
    module.get_parameter("module.stem.weight")[0] += 0.01


def shift_a_bias(module: nn.Module) -> None:
    module.get_parameter("module.classifier.bias")[0] += 0.01


def make_a_weight_nan(module: nn.Module) -> None:
    module.get_parameter("module.classifier.bias")[3] = torch.nan


def round_to_half_precision(module: nn.Module) -> None:
    module.half().float()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torchscript"])
def test_an_exported_model_that_disagrees_fails_and_leaves_nothing(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
):
    poison(monkeypatch, to, shift_a_weight)
    sentence = refusal("export", model_file, "--to", to, "--output", tmp_path / "model", "--quiet")
    assert sentence.startswith("the exported model disagrees: on 64 random images its logits differ by up to")
    assert list(tmp_path.iterdir()) == []


def test_weights_in_half_precision_exceed_the_tolerance(model_file: Path, tmp_path: Path, monkeypatch):
    poison(monkeypatch, "torchscript", round_to_half_precision)
    with pytest.raises(InputError, match="disagrees"):
        export_model(ExportSettings(model=model_file, to="torchscript"), tmp_path / "model.pt")
    result = export_model(ExportSettings(model=model_file, to="torchscript", tolerance=0.1), tmp_path / "model.pt")
    assert result.verification.random.relative_difference > 1e-4


def write_module(path: Path, architecture: str) -> Path:
    module = create_model(architecture, num_classes=10, input_shape=(1, 16, 16), seed=1).eval()
    save_model(path, module, make_card(architecture=architecture))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet201", "mobilenet_v2"])
def test_the_tolerance_of_a_deep_model_is_far_from_rounding_and_from_half_precision(name: str):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = get_model(name, num_classes=10).eval()
    card = make_card(input_shape=(3, 32, 32), mean=(0.3,) * 3, deviation=(0.4,) * 3)
    model = LoadedModel(module, card, sha256="", path=Path())
    runtime = Runtime(torch.device("cpu"), "fp32", compiled=False, seed=0)
    examiner = Examiner(model, ExportSettings(model="model", to="onnx"), runtime)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = examiner.model_logits(images)
    tolerance = tolerance_of(logits, examiner.exact_logits(images))

    def difference(module: nn.Module) -> float:
        with torch.no_grad():
            return compare(logits, module(normalised(images))).relative_difference

    rounded = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in rounded.parameters():  # each to the next number of float32, up or down
            directions = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * torch.inf
            parameter.copy_(torch.nextafter(parameter, directions))
    half = copy.deepcopy(module).half().float()
    assert 0 < difference(rounded) < tolerance / 4
    assert difference(half) > 4 * tolerance


def test_a_model_whose_code_needs_float32_has_a_fixed_tolerance(tmp_path: Path):
    architecture = "tests.export.factories:SinglePrecision"
    file = write_module(tmp_path / "model.safetensors", architecture)
    settings = ExportSettings(model=file, to="torchscript", model_factories=[architecture])
    verification = export_model(settings, tmp_path / "model.pt").verification
    assert verification.tolerance == 1e-4
    assert verification.random.relative_difference < 1e-6


ANSWERING = "tests.models.factories:Answering"


def export_answering(
    folder: Path, kind: str, signature: Signature, to: str, bias: float = 0.0
) -> tuple[Verification, list[str]]:
    """Export a classifier that answers in this way; return the verification and the warnings."""
    two = signature.outputs in ("logit", "sigmoid")
    classes = {"num_classes": 2, "class_names": ("a", "b")} if two else {}
    card = make_card(architecture=ANSWERING, arguments={"kind": kind}, **classes, **asdict(signature))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = Answering(card.num_classes, 1, kind).eval()
    module.head.bias.data += bias
    save_model(folder / "model.safetensors", module, card)
    settings = ExportSettings(model=folder / "model.safetensors", to=to, model_factories=[ANSWERING])
    display = RecordingDisplay()
    verification = export_model(settings, folder / "exported", display=display).verification
    assert verification is not None
    return verification, display.warnings


class RecordingDisplay(SilentDisplay):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def event(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.warnings.append(event.message)


SIGNATURES = {
    "logit (N, 1)": Signature("logit"),
    "sigmoid (N,)": Signature("sigmoid"),
    "sigmoids": Signature("sigmoids"),
    "softmax in a tuple": Signature("probabilities", "0"),
    "log_softmax": Signature("log-probabilities"),
    "dict": Signature("logits", "logits"),
    "NHWC": Signature(input_layout="NHWC"),
    "sigmoid in a dict, NHWC": Signature("sigmoid", "p", "NHWC"),
}


@pytest.mark.parametrize(
    ("kind", "to"),
    [
        *((kind, "torch-export") for kind in SIGNATURES),
        ("sigmoid in a dict, NHWC", "torchscript"),
        pytest.param("sigmoid in a dict, NHWC", "onnx", marks=pytest.mark.slow),
    ],
)
def test_models_of_every_signature_are_exported_with_images_and_logits(tmp_path: Path, kind: str, to: str):
    verification, warnings = export_answering(tmp_path, kind, SIGNATURES[kind], to)
    assert verification.random.relative_difference <= verification.tolerance < 1e-3
    assert verification.random.saturated < verification.random.images
    assert warnings == []


@pytest.mark.parametrize("bias", [14.0, 40.0])
def test_a_model_whose_sigmoids_are_all_saturated_is_exported_with_a_warning(tmp_path: Path, bias: float):
    signature = Signature("sigmoid")
    verification, (warning,) = export_answering(tmp_path, "sigmoid (N,)", signature, "torchscript", bias)
    assert verification.random.saturated == verification.random.images == 64
    assert verification.tolerance < 1e-4
    assert warning.startswith("the logits could not be verified: all probabilities of 64 images are below 1 % or above")


def test_a_coarse_tolerance_gives_a_warning(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("gapssg.export.verify.rounding_tolerance", lambda *_: 0.25)
    _, (warning,) = export_answering(tmp_path, "logit (N, 1)", Signature("logit"), "torchscript")
    assert "hardly verified" in warning and "25.0 % of the largest logit" in warning


def test_logits_beyond_a_limit_are_equal_only_if_they_are_on_the_same_side():
    logits = torch.tensor([[-3.0, 3.0], [-0.5, 0.5], [-2.0, 2.0]])
    rounded = torch.tensor([[-5.0, 5.0], [-0.5, 0.75], [-9.0, 9.0]])
    found = compare(logits, rounded, 2.0)
    assert (found.largest_difference, found.relative_difference, found.saturated) == (0.25, 0.125, 2)
    assert compare(logits, -logits, 2.0).largest_difference == 4.0
    assert compare(logits, rounded).largest_difference == 7.0


@pytest.mark.parametrize(("test", "is_warned_of"), [(4.1, True), (3.9, False), (None, False)])
def test_int8_that_changes_logits_far_more_on_real_images_than_on_the_pool_gives_a_warning(
    test: float | None, is_warned_of: bool
):
    def changed_by(difference: float) -> LogitsComparison:
        return LogitsComparison(images=9, largest_difference=difference, relative_difference=0.1, agreement=1.0)

    on_test = None if test is None else changed_by(test)
    int8 = Int8Verification(
        calibration_images=9,
        min_agreement=0.9,
        float_layers=(),
        pool=changed_by(1.0),
        test=on_test,
        top1=None,
        bytes=BothPrecisions(float32=2, int8=1),
    )
    warning = "int8 changes logits of the test images by up to 4.1, but of the pool by at most 1: the calibration"
    assert (loss_of_int8(int8) or "").startswith(warning) == is_warned_of
    assert (loss_of_int8(int8) is None) != is_warned_of


def test_logits_that_are_not_finite_disagree_whatever_the_tolerance(model_file: Path, tmp_path: Path, monkeypatch):
    poison(monkeypatch, "torchscript", make_a_weight_nan)
    with pytest.raises(
        InputError, match="the exported model's logits of random images are not finite, but the model's"
    ):
        export_model(ExportSettings(model=model_file, to="torchscript", tolerance=1.0), tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def write_scaled(path: Path, factor: float) -> Path:
    """Write the model of `write_module` with logits that are larger by a factor."""
    module = create_model("wrn10_half", num_classes=10, input_shape=(1, 16, 16), seed=1).eval()
    module.classifier.weight.data *= factor
    save_model(path, module, make_card())
    return path


@pytest.mark.parametrize("factor", [0.0, 1e38])
def test_logits_near_zero_and_near_the_largest_number_are_exported_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
):
    settings = ExportSettings(model=write_scaled(tmp_path / "model.safetensors", factor), to="torchscript")
    assert export_model(settings, tmp_path / "model.pt").verification.random.relative_difference == 0
    poison(monkeypatch, "torchscript", shift_a_bias if factor == 0 else shift_a_weight)
    with pytest.raises(InputError, match="the exported model disagrees: on 64 random images"):
        export_model(settings, tmp_path / "other.pt")


def test_a_model_with_infinite_logits_is_told_so(tmp_path: Path):
    file = write_scaled(tmp_path / "model.safetensors", 1e38)
    model = load_model(file)
    model.module.classifier.bias.data[:] = 3.4e38
    save_model(file, model.module, model.card)
    with pytest.raises(
        InputError, match="the model's logits of random images are not finite, so that no export is veri"
    ):
        export_model(ExportSettings(model=file, to="torchscript"), tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def test_a_failed_export_leaves_the_earlier_file(model_file: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "model.pt").write_text("earlier")
    poison(monkeypatch, "torchscript", shift_a_weight)
    with pytest.raises(InputError, match="disagrees"):
        export_model(ExportSettings(model=model_file, to="torchscript"), tmp_path / "model.pt", overwrite=True)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("model.pt", "earlier")]


def test_a_request_to_stop_is_not_reported_as_an_export_failure(model_file: Path, tmp_path: Path, monkeypatch):
    def stop(_: nn.Module) -> None:
        raise Stopped(15)

    poison(monkeypatch, "torchscript", stop)
    with pytest.raises(Stopped):
        export_model(ExportSettings(model=model_file, to="torchscript"), tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_a_format_cannot_export_gives_one_sentence(model_file: Path, tmp_path: Path, monkeypatch):
    def branch_on_the_images(module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda _, inputs: inputs if inputs[0].sum() > 0 else None)

    poison(monkeypatch, "torch-export", branch_on_the_images)
    sentence = refusal("export", model_file, "--to", "torch-export", "--output", tmp_path / "model.pt2", "--quiet")
    assert sentence.startswith("wrn10_half cannot be exported as torch-export; try another format")
    assert len(sentence.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


UNFIT = {
    ("MaxPooled", "onnx"): "cannot be exported as onnx; try another format, or --debug for details (RuntimeError: the "
    "operator aten.adaptive_max_pool2d cannot be translated to ONNX)",
    ("FixedBatch", "torchscript"): "was exported as torchscript, but the exported file cannot be run",
    ("FixedBatch", "onnx"): "was exported as onnx, but the exported file cannot be run",
    ("DoublePrecision", "onnx"): "was exported as onnx, but the exported file cannot be run",
    ("Losing", "torchscript"): "returns logits of shape 6x10 instead of 7x10 for a batch of 7; nothing was kept",
    ("Refusing", "torchscript"): "cannot be run on a batch of 7 (RuntimeError: seven are too many)",
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "to"), UNFIT)
def test_a_file_that_cannot_be_run_gives_one_sentence_and_leaves_nothing(tmp_path: Path, name: str, to: str):
    architecture = f"tests.export.factories:{name}"
    model = write_module(tmp_path / "model.safetensors", architecture)
    (tmp_path / "out").mkdir()
    output = ["--output", tmp_path / "out" / "model", "--model-factory", architecture, "--quiet"]
    sentence = refusal("export", model, "--to", to, *output)
    assert sentence.startswith(f"{architecture} {UNFIT[name, to]}")
    assert len(sentence.splitlines()) == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_errors_of_onnxruntime_are_printed_once(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """onnxruntime does not log through Python."""
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Reshape", ["images", "shape"], ["flat"]),
            onnx.helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
        "a batch of two",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 1, 16, 16])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 10])],
        [
            onnx.numpy_helper.from_array(np.array([2, -1]), "shape"),
            onnx.numpy_helper.from_array(np.zeros((256, 10), np.float32), "weight"),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    write_bytes(monkeypatch, model.SerializeToString())
    sentence = refusal("export", model_file, "--to", "onnx", "--output", tmp_path / "model.onnx", "--quiet")
    assert "cannot be run" in sentence
    assert len(sentence.splitlines()) == 1
    assert capfd.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


# Int8


@pytest.mark.slow
def test_int8_is_calibrated_on_the_pool_and_compared_on_the_rest_of_it(run_folder: Path, tmp_path: Path):
    out = tmp_path / "int8.onnx"
    arguments = ["--calibration-images", 25, "--min-agreement", 0.5, "--data", "digits", "--json"]
    finished = gapssg("export", run_folder, "--to", "onnx", "--int8", "--output", out, *arguments)
    result = json.loads(finished.stdout)
    int8 = result["int8"]
    assert (int8["calibration_images"], int8["pool"]["images"]) == (25, 35)
    # The weights have a quarter of the size; the graph, which is half of so small a file, has the same.
    assert int8["bytes"]["int8"] == result["bytes"] == out.stat().st_size < 0.6 * int8["bytes"]["float32"]
    assert int8["pool"]["agreement"] >= 0.5
    # Of the first convolution of all and of each of three blocks, whose batch norm is folded into them; the exporter
    # drops biases of zeros.
    assert int8["corrected_biases"] == 4
    assert int8["test"]["images"] == 450
    assert int8["top1"].keys() == result["timing"]["images_per_second"].keys() == {"float32", "int8"}
    assert result["metadata"]["int8"] == {"calibration_images": 25, "float_layers": []}

    model = onnx.load(out)
    about = json.loads(model.metadata_props[0].value)
    assert about.pop("content_sha256") and about == result["metadata"]
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    convolutions = [value for value in weights.values() if value.dtype == np.int8 and value.ndim == 4]
    assert len(convolutions) == 10
    assert max(np.abs(value).max() for value in convolutions) <= 64  # 7 bits
    images = images_in_unit_range(5)
    ours, theirs = logits_of(run_folder / "student.safetensors", images), run_onnx(out, normalised(images))
    assert not torch.equal(ours, theirs)
    # A 7-bit weight is off by up to 1/128 of the largest in its channel; a wrong scale would be off by far more.
    assert (ours - theirs).abs().max() < 0.2 * ours.abs().max()


def test_an_int8_model_that_disagrees_fails_and_leaves_nothing(
    exported, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def of_zeros(files: Files, calibration: Tensor) -> OnnxQuantizer:
        return OnnxQuantizer(files, torch.zeros_like(calibration))

    write_bytes(monkeypatch, exported[0].read_bytes())
    replace(monkeypatch, "onnx", quantizer=of_zeros)
    arguments = ["--to", "onnx", "--int8", "--output", tmp_path / "int8.onnx", "--quiet"]
    sentence = refusal("export", run_folder, *arguments)
    assert "the int8 model disagrees: it agrees with the float32 model on" in sentence
    assert "% of 30 other images of the pool, less than 95.0 %; nothing was kept" in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_quantised_gives_one_sentence(
    exported, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> OnnxQuantizer:
        raise ValueError("no such operator")

    write_bytes(monkeypatch, exported[0].read_bytes())
    replace(monkeypatch, "onnx", quantizer=refuse)
    sentence = refusal("export", run_folder, "--to", "onnx", "--int8", "--output", tmp_path / "int8.onnx", "--quiet")
    assert sentence == (
        "wrn10_half cannot be quantised; leave --int8 out, or --debug for details (ValueError: no such operator)"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("points", "is_warned_of"), [(0.021, True), (0.019, False)])
def test_a_large_loss_of_accuracy_on_real_images_gives_a_warning(
    exported, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, points: float, is_warned_of: bool
):
    write_bytes(monkeypatch, exported[0].read_bytes())
    replace(monkeypatch, "onnx", quantizer=lambda files, _: Unchanged(files))
    shares = iter([0.5, 0.5, 0.5, 0.5 - points])  # of the model, the exported model, float32 and int8
    monkeypatch.setattr("gapssg.export.export.top_k_accuracy", lambda *_: next(shares))
    arguments = ["--to", "onnx", "--int8", "--data", "digits", "--output", tmp_path / "int8.onnx"]
    printed = gapssg("export", run_folder, *arguments).stdout
    assert "layers with corrected biases: 1\n" in printed
    warning = "warning: int8 lowers top-1 from 50.0 % to 47.9 %, by more than 2 points; "
    assert (warning in printed) == is_warned_of
    assert (tmp_path / "int8.onnx").exists()


class Unchanged:
    """Quantises nothing."""

    layers: Sequence[str] = ("a", "b")
    biased_layers: Sequence[str] = ("b",)

    def __init__(self, files: Files) -> None:
        self.files = files

    def quantize(self, float_layers: Collection[str], metadata: ExportMetadata) -> Files:
        return self.files


class Lossy(Unchanged):
    """Quantises to text that names the layers in int8; `b` loses most, and then `c`."""

    layers = ("a", "b", "c")
    loss = MappingProxyType({"a": 0.01, "b": 0.4, "c": 0.1})

    def __init__(self) -> None:
        self.calls = 0

    def quantize(self, float_layers: Collection[str], metadata: ExportMetadata) -> Files:
        self.calls += 1
        assert metadata.int8.float_layers == tuple(float_layers)
        return {"": "".join(layer for layer in self.layers if layer not in float_layers).encode()}

    def drop(self, files: Files) -> float:
        return sum(self.loss[layer] for layer in files[""].decode())


@pytest.mark.parametrize(
    ("most", "in_int8", "float_layers"),
    [
        (None, b"abc", ()),
        (0.52, b"abc", ()),
        (0.5, b"ac", ("b",)),
        (0.05, b"a", ("b", "c")),
    ],
)
def test_the_layers_that_lose_most_stay_float_until_the_drop_holds(
    exported, most: float | None, in_int8: bytes, float_layers: tuple[str, ...]
):
    quantizer = Lossy()
    metadata = exported[1].metadata.model_copy(update={"int8": Int8Metadata(calibration_images=1)})
    files, chosen = quantize.quantize_within(quantizer, metadata, most, quantizer.drop, quantizer.drop)
    assert (files[""], chosen) == (in_int8, float_layers)
    # Once with all layers, then once for the error of each, then once more for each that stays float.
    assert quantizer.calls == (1 if not chosen else 4 + len(chosen))


def test_layers_are_ranked_also_by_errors_beyond_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Squares of logits of 1e30 are."""
    (tmp_path / "pool").mkdir()
    write_pool(tmp_path / "pool", (1, 16, 16))
    module = load_model(write_scaled(tmp_path / "student.safetensors", 1e30)).module

    def load(files: Files) -> Callable[[Tensor], Tensor]:
        in_int8 = files[""].decode()
        factor = (-1 if "b" in in_int8 else 1) * (1 + sum(Lossy.loss[layer] for layer in in_int8))
        return lambda images: factor * module(images).detach()

    replace(monkeypatch, "torchscript", write=lambda _: {"": b""}, load=load, quantizer=lambda *_: Lossy())
    int8 = {"enabled": True, "max_drop_points": 0}
    settings = ExportSettings.model_validate({"model": tmp_path, "to": "torchscript", "int8": int8})
    assert export_model(settings, tmp_path / "model").int8.float_layers == ("b",)


def test_a_drop_that_no_choice_of_layers_holds_gives_one_sentence(exported):
    quantizer = Lossy()
    metadata = exported[1].metadata.model_copy(update={"int8": Int8Metadata(calibration_images=1)})
    with pytest.raises(InputError, match=r"loses more than 0\.5 points even if one of 3 layers computes in 8 bits"):
        quantize.quantize_within(quantizer, metadata, 0.005, quantizer.drop, quantizer.drop)


@pytest.mark.slow
def test_float_layers_have_float_weights_and_the_others_do_not(exported):
    quantizer = OnnxQuantizer({"": exported[0].read_bytes()}, images_in_unit_range(20))
    convolutions = [name for name in quantizer.layers if "Conv" in name]
    chosen = convolutions[::4]
    model = onnx.load_from_string(quantizer.quantize(chosen, exported[1].metadata)[""])
    floats = {each.name for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT}
    weights = {node.name: node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    assert [name for name in convolutions if weights[name] in floats] == chosen
    again = quantizer.quantize(chosen, exported[1].metadata)  # with the ranges of the first calibration
    assert onnx.load_from_string(again[""]) == model


# Calibration images


@pytest.mark.parametrize("fold", [False, True])
def test_calibration_images_are_those_of_the_pool_as_the_model_takes_them(run_folder: Path, tmp_path: Path, fold: bool):
    out = tmp_path / "calibration"
    arguments = ["--calibration-images", 40, *(["--fold-normalization"] if fold else [])]
    gapssg("export", run_folder, "--to", "calibration", "--output", out, *arguments)
    about = json.loads((out / "calibration.json").read_text())
    arrays = np.load(out / "calibration.npz")
    names = sorted(path.name for path in (out / "images").iterdir())
    assert len(names) == len(arrays["images"]) == len(arrays["targets"]) == 40
    assert [about["targets"][f"images/{name}"] for name in names] == arrays["targets"].tolist()
    assert (about["layout"], about["normalization_folded"], about["class_names"]) == ("NCHW", fold, list("0123456789"))
    assert (about["resize"], about["interpolation"]) == ("crop", "bilinear")

    pixels = np.stack([np.asarray(Image.open(out / "images" / name)) for name in names])[:, None] / np.float32(255)
    inputs = pixels if fold else (pixels - np.float32(0.3)) / np.float32(0.4)
    np.testing.assert_allclose(arrays["images"], inputs, atol=1e-6)  # a few roundings of numbers below 2
    shards = [read_shard(path, (1, 16, 16), 10) for path in sorted((run_folder / "pool").iterdir())]
    targets = {
        image.numpy().tobytes(): int(target)
        for images, many, _ in shards
        for image, target in zip(images, many, strict=True)
    }
    for name in names:
        assert targets[np.asarray(Image.open(out / "images" / name)).tobytes()] == about["targets"][f"images/{name}"]


def test_calibration_images_of_other_channels_are_arrays_only(tmp_path: Path):
    card = make_card(input_shape=(2, 16, 16), mean=(0.3,) * 2, deviation=(0.4,) * 2)
    module = create_model("wrn10_half", num_classes=10, input_shape=(2, 16, 16), seed=1)
    save_model(tmp_path / "student.safetensors", module, card)
    (tmp_path / "pool").mkdir()
    write_pool(tmp_path / "pool", (2, 16, 16))
    result = export_model(ExportSettings(model=tmp_path, to="calibration"), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["calibration.json", "calibration.npz"]
    assert result.bytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert np.load(tmp_path / "out" / "calibration.npz")["images"].shape == (60, 2, 16, 16)


def test_a_folder_is_never_replaced(run_folder: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    arguments = ["export", run_folder, "--to", "calibration", "--output", tmp_path / "mine", "--overwrite"]
    assert "already exists, and a folder is never replaced" in refusal(*arguments)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "file"]


# The command


def test_a_run_directory_selects_its_model_and_the_figures_are_printed(run_folder: Path, tmp_path: Path):
    out = tmp_path / "model.pt"
    finished = gapssg("export", run_folder, "--to", "torchscript", "--output", out, "--fold-normalization")
    assert "takes pixels in [0, 1]" in finished.stdout
    assert "random images" in finished.stdout
    assert re.search(r"\(tolerance \d\.\de-0[56] of the largest\)", finished.stdout)
    assert "100.0 %" in finished.stdout
    assert finished.stderr == ""
    again = ["export", run_folder, "--to", "torchscript", "--output", out]
    assert "already exists; add --overwrite" in refusal(*again)
    gapssg(*again, "--overwrite")


def test_dry_run_prints_toml_that_config_reads_back(tmp_path: Path):
    arguments = ["m", "--to", "onnx", "--int8", "--pool", "p", "--fold-normalization", "--data", "digits"]
    first = gapssg("export", *arguments, "--dry-run").stdout
    assert tomllib.loads(first)["int8"]["pool"] == "p"
    (tmp_path / "settings.toml").write_text(first)
    assert gapssg("export", "--config", tmp_path / "settings.toml", "--dry-run").stdout == first


def test_bad_input_is_one_sentence_with_status_2_and_leaves_nothing(model_file: Path, run_folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    other = tmp_path / "other"
    (other / "pool").mkdir(parents=True)
    write_pool(other / "pool", (1, 24, 24))
    named_onnx = other / "model.onnx"
    named_onnx.write_bytes(model_file.read_bytes())
    export = ["export", model_file, "--to", "onnx", "--output", out / "model.onnx"]
    cases = {
        "to = 'onxx' (from --to)": ["export", model_file, "--to", "onxx", *export[4:]],
        "did you mean onnx": ["export", model_file, "--to", "onxx", *export[4:]],
        "to is missing: add --to, or a suffix to --output that names the format, such as .onnx": [
            *("export", model_file, "--output", out / "model"),
        ],
        "model is missing: add FILE|DIR": ["export", *export[2:]],
        "--output is missing": export[:4],
        "does not exist": ["export", tmp_path / "absent.safetensors", *export[2:]],
        "holds neither student.safetensors nor": ["export", other, *export[2:]],
        "--to torchscript has no int8; use onnx or openvino": [
            "export",
            run_folder,
            "--to",
            "torchscript",
            "--output",
            out / "model",
            "--int8",
        ],
        "name the run's directory with --pool": [*export, "--int8"],
        "--max-drop limits what int8 loses; add --int8": [*export, "--max-drop", 1],
        "--to calibration writes the sample pool of a run; name": [
            "export",
            model_file,
            "--to",
            "calibration",
            "--output",
            out / "model",
        ],
        "model.onnx has the suffix of --to onnx, but --to is torchscript; change one of them": [
            "export",
            model_file,
            "--to",
            "torchscript",
            *export[4:],
        ],
        "model.safetensors has the suffix of model files, but --to is onnx": [*export[:-1], out / "model.safetensors"],
        "holds no sample pool": [*export, "--int8", "--pool", tmp_path],
        "its images are 1x24x24, but": [*export, "--int8", "--pool", other],
        "the pool is only used to calibrate int8 models; add --int8": [*export, "--pool", run_folder],
        "tolerance = 0.0 (from --tolerance)": [*export, "--tolerance", 0],
        "int8.min_agreement = 2.0 (from --min-agreement)": [*export, "--int8", "--min-agreement", 2],
        "does not exist; create it first": [*export[:-1], out / "absent" / "model.onnx"],
        "is a folder; name the file": [*export[:-1], out],
        "is also the input": ["export", named_onnx, *export[2:-1], named_onnx, "--overwrite"],
        "names have at most 255 bytes": [*export[:-1], out / ("x" * 300)],
    }
    before = model_file.read_bytes()
    for words, arguments in cases.items():
        sentence = refusal(*arguments)
        assert words in sentence, (words, sentence)
        assert len(sentence.splitlines()) == 1
        if "suffix" in words:
            assert refusal(*arguments, "--dry-run") == sentence
    with pytest.raises(InputError, match=r"model\.PT2 has the suffix of --to torch-export, but --to is onnx"):
        export_model(ExportSettings(model=model_file, to="onnx"), out / "model.PT2")
    (tmp_path / "settings.toml").write_text('to = "onnx"')
    words = "model.pt has the suffix of --to torchscript, but --to is onnx"
    assert words in refusal("export", model_file, "--config", tmp_path / "settings.toml", "--output", out / "model.pt")
    assert list(out.iterdir()) == []
    assert model_file.read_bytes() == before


def test_a_missing_package_gives_one_sentence_with_the_command_that_installs_it(
    model_file: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    sentence = refusal("export", model_file, "--to", "onnx", "--output", tmp_path / "model.onnx")
    assert "needs the package onnxruntime, which is not installed: pip install 'gapssg[export]'" in sentence
    monkeypatch.setitem(sys.modules, "openvino", None)
    sentence = refusal("export", model_file, "--to", "openvino", "--output", tmp_path / "model")
    assert "needs the package openvino, which is not installed: pip install 'gapssg[openvino]'" in sentence
    assert list(tmp_path.iterdir()) == []
    gapssg("export", model_file, "--to", "torchscript", "--output", tmp_path / "model.pt")


@pytest.mark.parametrize("failures", [(), ("it is right on none",)])
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_a_student_that_failed_is_called_that_when_it_is_exported(
    failures: tuple[str, ...], model_file: Path, tmp_path: Path
):
    result = make_distill_result().model_copy(update={"failures": failures})
    (tmp_path / RESULT).write_text(result.model_dump_json())
    file = tmp_path / "student.safetensors"
    file.write_bytes(model_file.read_bytes())
    for model in (tmp_path, file):
        arguments = ["export", model, "--output", tmp_path / "s.pt", "--overwrite", "--json"]
        shown = gapssg(*arguments)
        assert shown.stderr.count(f"FAILED: {file} is not usable: it is right on none") == len(failures)
        assert json.loads(shown.stdout)["metadata"]["failures"] == list(failures)
