"""`import-teacher` with files that hold a graph, in their child process, and what the model files are then good for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gapssg import (
    DistillSettings,
    EvaluateSettings,
    ExportSettings,
    ImportSettings,
    InputError,
    InspectSettings,
    distill,
    evaluate,
    export_model,
    import_teacher,
    inspect,
    load_model,
)
from gapssg.evaluation import import_graph
from gapssg.export.formats import quiet
from gapssg.landscape.planes import check_same_architecture
from gapssg.models.graphs import child
from gapssg.models.graphs import file as graph_file
from gapssg.models.graphs.description import graph_name
from gapssg.models.graphs.file import kind_of_graph, read_graph_file
from gapssg.models.model_file import save_model
from gapssg.models.profile import last_linear_layer
from tests.conftest import make_card
from tests.methods import METHODS
from tests.models.graphs.small_models import (
    BATCH_NORMS,
    CLASSES,
    Convnext,
    Mobile,
    Residual,
    Transformer,
    images,
    trained,
)
from tests.models.graphs.written import built, read, write

MEAN, DEVIATION = (0.5,) * 3, (0.25,) * 3

RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""Float32 sums of up to thirty layers in another order: some hundred units of rounding (1.2e-7) of logits near 1."""


def settings(weights: Path, **changes: Any) -> ImportSettings:
    shape = (3, 16, 16) if weights.suffix == ".pt" else None  # TorchScript does not tell
    values = {"weights": str(weights), "mean": (0.5,), "deviation": (0.25,), "input_shape": shape}
    return ImportSettings.model_validate(
        {key: value for key, value in {**values, **changes}.items() if value is not None}
    )


def refusal(folder: Path, given: ImportSettings) -> str:
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(InputError) as caught:
        import_teacher(given, folder / "teacher.safetensors")
    assert sorted(path.name for path in folder.iterdir()) == before
    assert len(caught.value.lines) == 1
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_pictures(root: Path, original: nn.Module) -> tuple[Tensor, Tensor]:
    """Write two noisy pictures of each class; return them in the order of their classes, and the original's logits."""
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, (2 * CLASSES, 16, 16, 3), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        folder = root / "test" / str(number // 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{number}.png")
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return pixels, original((pixels - 0.5) / 0.25)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "form", "method"),
    [
        (Residual, "onnx-kept", "gapssg-fast"),
        (Mobile, "torchscript-traced", "gapssg-fast"),
        (Transformer, "torch.export-fixed", "zskt"),
        (Convnext, "onnx-folded", "zskt"),
    ],
)
def test_an_imported_graph_is_inspected_evaluated_distilled_and_exported_without_its_file(
    tmp_path: Path, request: pytest.FixtureRequest, kind, form, method
):
    if kind is not Residual:
        request.getfixturevalue("in_process")
    original = trained(kind)
    pictures, logits = write_pictures(tmp_path / "data", original)
    source, teacher = write(form, original, tmp_path), tmp_path / "teacher.safetensors"
    data = {"name": f"folder:{tmp_path / 'data'}"}
    imported = import_teacher(settings(source, data=data), teacher)
    source.unlink()

    top1 = (logits.argmax(1) == torch.arange(CLASSES).repeat_interleave(2)).double().mean().item()
    assert imported.top1 == pytest.approx(top1)
    loaded = load_model(teacher)
    assert torch.allclose(loaded.module((pictures - 0.5) / 0.25), logits, rtol=RELATIVE, atol=ABSOLUTE)
    assert (loaded.card.mean, loaded.card.deviation, loaded.card.input_shape) == (MEAN, DEVIATION, (3, 16, 16))
    (evaluated,) = evaluate(EvaluateSettings.model_validate({"models": [teacher], "data": data})).models
    assert evaluated.top1 == imported.top1

    described = inspect(InspectSettings(file=teacher))
    assert len(described.observed_batch_norm_layers) == BATCH_NORMS[kind]
    assert described.methods["gapssg-fast"] is None
    assert described.image_prior == ("batch-norm statistics" if BATCH_NORMS[kind] else "input statistics")
    assert described.methods["dafl"] is None  # which reads the features before the last linear layer

    values = {"teacher": teacher, "student": {"name": "wrn10_half"}, "method": {"name": method, **METHODS[method]}}
    runtime = {"device": "cpu", "precision": "fp32", "compile": False}
    distilled = distill(DistillSettings.model_validate({**values, "epochs": 1, "runtime": runtime}), tmp_path / "run")
    assert distilled.teacher.architecture == loaded.card.architecture
    assert load_model(tmp_path / "run" / "student.safetensors").card.architecture == "wrn10_half"
    exported = export_model(ExportSettings(model=teacher, to="torchscript"), tmp_path / "exported.pt")
    assert exported.verification.random.agreement == 1


def test_two_graphs_are_two_architectures_and_one_graph_with_other_weights_is_the_same(tmp_path: Path):
    models = [trained(Mobile), trained(Mobile), trained(Convnext)]
    models[1][-1].bias.mul_(2)
    loaded = []
    for number, model in enumerate(models):
        graph = read(write("torchscript-traced", model, tmp_path))
        card = make_card(
            architecture=graph_name(graph.description),
            graph=graph.description,
            num_classes=CLASSES,
            class_names=tuple("abcde"),
            input_shape=(3, 16, 16),
            mean=MEAN,
            deviation=DEVIATION,
        )
        save_model(tmp_path / f"{number}.safetensors", built(graph), card)
        loaded.append(load_model(tmp_path / f"{number}.safetensors"))
    check_same_architecture(loaded[0], loaded[1])
    with pytest.raises(InputError, match="differ in architecture"):
        check_same_architecture(loaded[0], loaded[2])


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_file_that_cannot_be_a_graph_gives_one_sentence_and_writes_nothing(tmp_path: Path):
    original = trained(Mobile)
    traced = write("torchscript-traced", original, tmp_path)
    assert "it does not say how large its images are; add --input-shape C,H,W" in refusal(
        tmp_path, settings(traced).model_copy(update={"input_shape": None})
    )
    kept = write("onnx-kept", original, tmp_path)
    assert "its images are 3x16x16, not 1x16x16; leave --input-shape out" in refusal(
        tmp_path, settings(kept, input_shape=(1, 16, 16))
    )
    assert "returns 5 logits, but there are 7 classes" in refusal(tmp_path, settings(kept, num_classes=7))
    kept.write_bytes(kept.read_bytes()[:-500])
    assert "cannot be imported as a graph: it is not a readable ONNX file" in refusal(tmp_path, settings(kept))
    large = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 5)).eval()
    torch.export.save(torch.export.export(large, (torch.zeros(1, 3, 1100, 20),)), tmp_path / "large.pt2")
    assert "images of 1100x20 pixels do not fit the models" in refusal(tmp_path, settings(tmp_path / "large.pt2"))
    original[-1].bias.fill_(float("nan"))
    broken = write("torch.export", original, tmp_path)
    assert ".bias has values that are not finite" in refusal(tmp_path, settings(broken))


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("form", ["onnx-kept", "torchscript-traced", "torch.export"])
def test_a_graph_that_returns_probabilities_is_recognised(tmp_path: Path, form):
    original = trained(Mobile)
    source = write(form, nn.Sequential(original, nn.Softmax(1)).eval(), tmp_path)
    import_teacher(settings(source), tmp_path / "teacher.safetensors")
    loaded = load_model(tmp_path / "teacher.safetensors")
    assert loaded.card.outputs == "probabilities"
    assert torch.allclose(loaded.module(images(4)).softmax(1), original(images(4)).softmax(1), atol=ABSOLUTE)
    assert last_linear_layer(loaded.module, (3, 16, 16), CLASSES) is not None


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_model_in_half_precision_is_computed_in_float32(tmp_path: Path):
    original = nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.ReLU(), nn.Linear(32, CLASSES)).half().eval()
    path = tmp_path / "half.onnx"
    with quiet():
        torch.onnx.export(original, (images(1).half(),), path, dynamo=False)
    import_teacher(settings(path), tmp_path / "teacher.safetensors")
    found = load_model(tmp_path / "teacher.safetensors").module(images(4))
    assert torch.allclose(found, original.float()(images(4)), atol=ABSOLUTE)


PRECISIONS = [("half.pt", torch.bfloat16), ("half.pt", torch.float16), ("double.pt", torch.float64)]
PRECISIONS += [("half.onnx", torch.bfloat16), ("double.onnx", torch.float64)]


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("name", "precision"), PRECISIONS)
def test_a_file_in_a_precision_that_its_library_does_not_run_is_computed_in_float32(
    tmp_path: Path, name: str, precision: torch.dtype
):
    original = nn.Sequential(nn.Conv2d(3, 4, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES))
    original.eval().requires_grad_(False).to(precision)
    path, example = tmp_path / name, images(1).to(precision)
    with quiet():
        if path.suffix == ".pt":
            torch.jit.trace(original, example).save(str(path))
        else:
            torch.onnx.export(original, (example,), path, dynamo=False)
    import_teacher(settings(path), tmp_path / "teacher.safetensors")
    found = load_model(tmp_path / "teacher.safetensors").module(images(4))
    assert torch.allclose(found, original.float()(images(4)), rtol=RELATIVE, atol=ABSOLUTE)


class Casting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(768, CLASSES)

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.linear(pictures.flatten(1).half())
        return logits


@pytest.mark.usefixtures("in_process")
def test_a_file_that_casts_to_half_precision_is_refused_with_the_telling_line_of_torch(tmp_path: Path):
    torch.jit.save(torch.jit.script(Casting().half().eval()), tmp_path / "a.pt")
    sentence = refusal(tmp_path, settings(tmp_path / "a.pt"))
    assert "it has weights in float16 and does not run in float32" in sentence and "same dtype" in sentence


class Permuting(nn.Module):
    """A classifier of images (N, H, W, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES))

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.body(pictures.permute(0, 3, 1, 2))
        return logits


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("form", ["onnx-kept", "torchscript-traced", "torch.export", "torch.export-fixed"])
def test_images_with_channels_last_are_permuted_whether_or_not_the_layout_is_given(tmp_path: Path, form: str):
    original: Any = Permuting().eval().requires_grad_(False)
    write_pictures(tmp_path / "data", original.body)
    source, data = write(form, original, tmp_path, channels_last=True), {"name": f"folder:{tmp_path / 'data'}"}
    for layout in (None, "NHWC"):
        import_teacher(settings(source, input_layout=layout, data=data), tmp_path / f"{layout}.safetensors")
        loaded = load_model(tmp_path / f"{layout}.safetensors")
        assert loaded.card.input_shape == (3, 16, 16)
        assert torch.allclose(loaded.module(images(4)), original.body(images(4)), rtol=RELATIVE, atol=ABSOLUTE)
    sentence = refusal(tmp_path, settings(source, input_layout="NCHW"))
    assert "its operator conv2d fails" in sentence or "images of 16x3 pixels do not fit" in sentence


@pytest.mark.usefixtures("in_process")
def test_a_layout_that_does_not_show_is_the_one_that_is_given(tmp_path: Path):
    original = nn.Sequential(nn.Flatten(), nn.Linear(768, CLASSES)).eval().requires_grad_(False)
    torch.jit.script(original).save(str(tmp_path / "flat.pt"))
    for layout, given in ((None, images(4)), ("NHWC", images(4).permute(0, 2, 3, 1))):
        import_teacher(settings(tmp_path / "flat.pt", input_layout=layout), tmp_path / f"{layout}.safetensors")
        found = load_model(tmp_path / f"{layout}.safetensors").module(images(4))
        assert torch.allclose(found, original(given), rtol=RELATIVE, atol=ABSOLUTE)


class WithArguments(nn.Module):
    """A classifier with arguments besides the images."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(768, CLASSES)

    def forward(self, pictures: Tensor, mask: Tensor | None = None, scale: float = 2.0, flip: bool = False) -> Tensor:
        if mask is not None:
            pictures = pictures * mask
        if flip:
            pictures = pictures.flip(3)
        logits: Tensor = self.linear(pictures.flatten(1)) * scale
        return logits


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_arguments_have_their_defaults_or_those_of_the_export(tmp_path: Path):
    original = WithArguments().eval().requires_grad_(False)
    torch.jit.script(original).save(str(tmp_path / "defaults.pt"))
    torch.export.save(torch.export.export(original, (images(1), None, 3.0, True)), tmp_path / "exported.pt2")
    for name, others in (("defaults.pt", ()), ("exported.pt2", (None, 3.0, True))):
        import_teacher(settings(tmp_path / name), tmp_path / f"{name}.safetensors")
        found = load_model(tmp_path / f"{name}.safetensors").module(images(4))
        assert torch.allclose(found, original(images(4), *others), rtol=RELATIVE, atol=ABSOLUTE)
    torch.export.save(torch.export.export(original, (images(1), images(1))), tmp_path / "mask.pt2")
    sentence = refusal(tmp_path, settings(tmp_path / "mask.pt2"))
    assert "it has 2 inputs (pictures, mask); wrap the model in one whose only input is the images" in sentence


class FixedBatch(nn.Module):
    """A linear classifier whose reshape fixes the batch size, although its file does not declare it."""

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.size = size
        self.linear = nn.Linear(768, CLASSES)

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.linear(pictures.reshape(self.size, 768))
        return logits


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
def test_a_fixed_batch_size_that_is_not_declared_is_made_dynamic(tmp_path: Path, suffix):
    original, path = FixedBatch().eval().requires_grad_(False), tmp_path / f"fixed{suffix}"
    with quiet():
        if suffix == ".pt":
            torch.jit.save(torch.jit.trace(original, images(1)), path)
        else:
            axes = {"images": {0: "batch"}}
            torch.onnx.export(original, (images(1),), path, dynamo=False, input_names=["images"], dynamic_axes=axes)
    import_teacher(settings(path), tmp_path / "teacher.safetensors")
    found = load_model(tmp_path / "teacher.safetensors").module(images(4))
    assert torch.allclose(found, original.linear(images(4).flatten(1)), atol=ABSOLUTE)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_fixed_batch_of_several_images_is_made_dynamic(tmp_path: Path, suffix):
    original, path = FixedBatch(4).eval().requires_grad_(False), tmp_path / f"fixed{suffix}"
    with quiet():
        if suffix == ".pt2":
            torch.export.save(torch.export.export(original, (images(4),)), path)
        else:
            torch.onnx.export(original, (images(4),), path, dynamo=False)
    import_teacher(settings(path), tmp_path / "teacher.safetensors")
    found = load_model(tmp_path / "teacher.safetensors").module(images(7))
    assert torch.allclose(found, original.linear(images(7).flatten(1)), atol=ABSOLUTE)


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_graph_that_differs_from_its_own_library_is_refused(tmp_path: Path, monkeypatch):
    def with_another_bias(*arguments: Any) -> graph_file.GraphFile:
        graph = read_graph_file(*arguments)
        next(tensor for name, tensor in graph.tensors.items() if name.startswith("linear")).mul_(1.001)
        return graph

    read_graph_file = graph_file.read_graph_file
    monkeypatch.setattr(import_graph, "read_graph_file", with_another_bias)
    kept = write("onnx-kept", trained(Mobile), tmp_path)
    sentence = refusal(tmp_path, settings(kept))
    assert "its graph gives other logits than onnxruntime: for random images they differ by up to" in sentence


@pytest.mark.parametrize("program", ["import os; os.abort()", "import sys; sys.exit(0)", "raise SystemError"])
def test_a_crash_of_the_child_process_gives_one_sentence(tmp_path: Path, monkeypatch, program):
    kept = write("onnx-kept", trained(Mobile), tmp_path)
    monkeypatch.setattr(graph_file, "_CHILD", program)
    sentence = refusal(tmp_path, settings(kept))
    assert sentence.endswith("it is damaged, or needs more memory than a model of its size should")


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate")])
def test_a_file_that_needs_too_much_memory_is_called_that(tmp_path: Path, monkeypatch, error):
    kept = write("onnx-kept", trained(Mobile), tmp_path)
    monkeypatch.setattr(child, "read_file", Mock(side_effect=error))
    assert refusal(tmp_path, settings(kept)).endswith("it needs more memory than a model of its size should")


def test_kinds_of_files_are_told_by_their_content(tmp_path: Path):
    original = trained(Mobile)
    for form in ("onnx-kept", "torchscript-traced", "torch.export"):
        path = write(form, original, tmp_path).rename(tmp_path / "file")
        assert kind_of_graph(path) == form.partition("-")[0]
        with pytest.raises(InputError, match=r"is a graph \(.*\), not a model file; make one from it: gapssg import-t"):
            load_model(path)
    for name in ("models", "code"):  # PyTorch names the folder of an archive after the file
        torch.save(original.state_dict(), tmp_path / name)
        assert kind_of_graph(tmp_path / name) is None
    torch.export.save(torch.export.export(original, (torch.rand(2, 3, 32, 32),)), tmp_path / "models.pt2")
    read_graph_file(tmp_path / "models.pt2", "torch.export", None)
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(InputError, match="incomplete or damaged"):
        kind_of_graph(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="file is empty; copy or save it again"):
        load_model(path)


def test_a_graph_needs_no_model_and_weights_need_one(tmp_path: Path):
    original = trained(Mobile)
    torch.save(original.state_dict(), tmp_path / "weights.pt")
    sentence = refusal(tmp_path, settings(tmp_path / "weights.pt"))
    assert "is no graph that can be imported (ONNX, TorchScript or torch.export); if it has weights, add" in sentence
    kept = write("onnx-kept", original, tmp_path)
    given = settings(kept, model={"name": "wrn16_1"}, input_shape=(3, 16, 16), num_classes=5)
    assert refusal(tmp_path, given).endswith("has the graph of a model (onnx); leave --model wrn16_1 out")
    assert "--weights-key" in refusal(tmp_path, settings(kept, weights_key="ema"))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "model.name is missing: add --model, or --weights with an ONNX file"),
        ({"weights": "default"}, "model.name is missing"),
        ({"model": {"name": "wrn16_1"}}, "input_shape is missing: add --input-shape C,H,W"),
        ({"model": {"name": "graph:0123456789ab"}, "input_shape": (3, 16, 16)}, "which only its model file holds"),
    ],
)
def test_settings_name_a_model_or_a_file(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        ImportSettings.model_validate(values)


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path: Path, monkeypatch):
    kept = write("onnx-kept", trained(Mobile), tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    sentence = refusal(tmp_path, settings(kept))
    assert "needs onnx and onnxruntime, which is not installed: pip install 'gapssg[export]'" in sentence


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("outputs", ["logit", "sigmoid"])
def test_a_graph_with_one_output_is_of_two_classes(tmp_path: Path, outputs: str):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)]
    body = nn.Sequential(*layers).eval()
    module = body if outputs == "logit" else nn.Sequential(body, nn.Sigmoid()).eval()
    images = torch.randn(3, 3, 16, 16)
    torch.jit.trace(module, images).save(str(tmp_path / "one.pt"))
    import_teacher(settings(tmp_path / "one.pt", class_names=("cat", "dog")), tmp_path / "teacher.safetensors")
    loaded = load_model(tmp_path / "teacher.safetensors")
    assert loaded.card.outputs == outputs
    with torch.no_grad():
        logits, expected = loaded.module(images), body(images)
    torch.testing.assert_close(logits, torch.cat([-expected / 2, expected / 2], dim=1))


@pytest.mark.usefixtures("in_process")
def test_small_probabilities_may_be_rounded_to_0(tmp_path: Path):
    last = nn.Linear(768, 1)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, -19.0)
    with quiet():
        example = torch.randn(1, 3, 16, 16)
        torch.onnx.export(
            nn.Sequential(nn.Flatten(), last, nn.Sigmoid()), (example,), tmp_path / "a.onnx", dynamo=False
        )
    graph = graph_file.read_graph_file(tmp_path / "a.onnx", "onnx", None)
    assert (graph.logits == 0).all()  # of onnxruntime, where 1 / (1 + exp(19)) is 5.6e-9
    import_teacher(settings(tmp_path / "a.onnx"), tmp_path / "teacher.safetensors")


class _TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(768, CLASSES), nn.Linear(768, CLASSES)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        return {"first": self.first(pictures.flatten(1)), "second": self.second(pictures.flatten(1))}


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
def test_one_of_several_outputs_is_chosen_by_its_name(tmp_path: Path, suffix):
    original, path = _TwoHeads().eval().requires_grad_(False), tmp_path / f"heads{suffix}"
    with quiet():
        if suffix == ".pt":
            torch.jit.trace(original, images(2), strict=False).save(str(path))
        else:
            torch.onnx.export(original, (images(2),), path, dynamo=False, output_names=["first", "second"])
    sentence = refusal(tmp_path, settings(path))
    assert sentence.endswith(
        "2 of its 2 outputs (first, second) may be the logits; choose one with --output-part first"
    )
    sentence = refusal(tmp_path, settings(path, output_part="third"))
    assert sentence.endswith("no output third among several (first, second); correct or omit --output-part")
    import_teacher(settings(path, output_part="second"), tmp_path / "teacher.safetensors")
    loaded = load_model(tmp_path / "teacher.safetensors")
    assert torch.allclose(loaded.module(images(4)), original(images(4))["second"], atol=ABSOLUTE)
    assert loaded.card.output_part is None


class _Calibration:
    def __init__(self) -> None:
        self.batches = [{"images": images(8).numpy()}]

    def get_next(self) -> dict[str, Any] | None:
        return self.batches.pop() if self.batches else None


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_file_with_quantised_activations_is_imported_with_gradients(tmp_path: Path):
    from onnxruntime.quantization import QuantFormat, quantize_static

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten()]
    original = nn.Sequential(*layers, nn.Linear(576, CLASSES)).eval().requires_grad_(False)
    folded, path = write("onnx-folded", original, tmp_path), tmp_path / "quantised.onnx"
    with quiet():
        quantize_static(folded, path, _Calibration(), quant_format=QuantFormat.QDQ, per_channel=True)
    import_teacher(settings(path), tmp_path / "teacher.safetensors")
    module, pictures = load_model(tmp_path / "teacher.safetensors").module, images(8).requires_grad_()
    ours, theirs = (torch.autograd.grad(each(pictures).logsumexp(1).sum(), pictures)[0] for each in (module, original))
    # 8 bits of three layers: each rounds by at most 1/512 of the range of its numbers, some ten standard deviations.
    found, expected = module(pictures), original(pictures)
    assert (found - expected).norm() / expected.norm() < 3 * 10 / 512
    assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.9  # ReLUs near 0 change sides
