"""Files of other teams become graphs with their logits, their gradients and their batch norms."""

from __future__ import annotations

import copy
import json
import math
import zipfile
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gapssg.errors import InputError
from gapssg.models.graphs import exported_reader, torchscript_reader
from gapssg.models.graphs.description import GraphJson, check_graph, graph_name, is_graph
from gapssg.models.graphs.file import GraphFile, check_same_logits
from gapssg.models.graphs.module import build_graph
from gapssg.models.profile import executed_batch_norm_layers
from tests.models.graphs.small_models import (
    BATCH_NORMS,
    INPUT_SHAPE,
    ChannelsLast,
    Convnext,
    Mobile,
    Residual,
    Transformer,
    images,
    trained,
)
from tests.models.graphs.written import built, read, write

# Both compute in float64, with the same float32 weights.
EXACT = 1e-12
# ONNX rounds constants, and folded weights, to float32: at most 20 roundings one after another, with a factor of 16 for
# what normalisation enlarges. A gradient changes further where a ReLU's input is so near to 0 that it changes sides.
ROUNDED = 16 * 20**0.5 * 2**-24
FORMS = (
    *("onnx-kept", "onnx-folded", "onnx-fixed", "onnx-optimised", "torchscript-traced", "torchscript-scripted"),
    *("torch.export", "torch.export-fixed"),
)


def with_gradient(module: nn.Module, count: int = 3) -> tuple[Tensor, Tensor]:
    """Return logits in float64, and the gradient of a number that depends on all of them with respect to images."""
    inputs = images(count).double().requires_grad_()
    logits = copy.deepcopy(module).double()(inputs)
    (gradient,) = torch.autograd.grad(logits.log_softmax(1)[:, 0].sum(), inputs)
    return logits.detach(), gradient


def distance(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def check_same(found: nn.Module, expected: nn.Module, tolerance: float) -> None:
    for count in (1, 4):
        ours, theirs = with_gradient(found, count), with_gradient(expected, count)
        assert distance(ours[0], theirs[0]) < tolerance
        assert distance(ours[1], theirs[1]) < (tolerance if tolerance == EXACT else tolerance**0.5)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [Residual, Mobile, Transformer, Convnext])
def test_a_file_becomes_a_graph_with_its_logits_gradients_and_batch_norms(tmp_path: Path, kind, form):
    original = trained(kind)
    module = built(read(write(form, original, tmp_path)))
    check_same(module, original, ROUNDED if form.startswith("onnx") else EXACT)
    is_folded = form in ("onnx-folded", "onnx-fixed", "onnx-optimised")
    assert len(executed_batch_norm_layers(module, INPUT_SHAPE)) == (0 if is_folded else BATCH_NORMS[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Residual, Transformer])
def test_files_of_the_newer_onnx_exporter_are_read_with_their_weights_beside_them(tmp_path: Path, kind):
    original = trained(kind)
    path = write("onnx-dynamo", original, tmp_path)
    assert path.with_name(f"{path.name}.data").exists()
    check_same(built(read(path)), original, ROUNDED)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx-kept", "onnx-folded"])
def test_images_with_channels_last_are_turned(tmp_path: Path, form):
    original: Any = trained(ChannelsLast)
    module = built(read(write(form, original, tmp_path, channels_last=True)))
    check_same(module, original.inner, ROUNDED)


def test_folded_batch_norms_are_gone_and_their_convolutions_are_layers(tmp_path: Path):
    original = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 5)
    )
    original.eval().requires_grad_(False)
    original[1].running_mean.normal_()
    original[1].running_var.uniform_(0.5, 2)
    convolution, norm = cast(nn.Conv2d, original[0]), cast(nn.BatchNorm2d, original[1])
    folded = nn.Sequential(fuse_conv_bn_eval(convolution, norm), *original[2:])
    module = built(read(write("torchscript-traced", folded, tmp_path)))
    check_same(module, original, ROUNDED)
    assert [type(layer).__name__ for layer in module.children()] == ["Conv2d", "ClassifierHead"]


def test_equal_models_are_equal_graphs_whatever_wrote_them(tmp_path: Path):
    original = trained(Residual)
    forms = ("torchscript-traced", "torchscript-scripted", "torch.export")
    names = {graph_name(read(write(form, original, tmp_path)).description) for form in forms}
    assert len(names) == 1
    assert is_graph(names.pop())


def legacy(path: Path, layout: str) -> Path:
    """Rewrite an exported program in the layout of PyTorch 2.8, or of 2.7 and before, with pickled weights."""
    file = path.with_name(f"{layout}.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(file, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        program = old.read(f"{root}/models/model.json")
        config = json.loads(old.read(f"{root}/data/weights/model_weights_config.json"))["config"]
        weights = {
            name: exported_reader._tensor(old.read(f"{root}/data/weights/{each['path_name']}"), each["tensor_meta"])
            for name, each in config.items()
        }
        names = {
            "2.8": (f"{root}/models/model.json", f"{root}/data/weights/model.pt", f"{root}/data/constants/model.pt"),
            "2.7": ("serialized_exported_program.json", "serialized_state_dict.pt", "serialized_constants.pt"),
        }[layout]
        new.writestr(names[0], program)
        for name, content in zip(names[1:], (weights, {}), strict=True):
            with new.open(name, "w") as part:
                torch.save(content, part)
    return file


@pytest.mark.parametrize("layout", ["2.8", "2.7"])
def test_exported_programs_of_older_versions_are_read(tmp_path: Path, layout):
    path = write("torch.export", trained(Mobile), tmp_path)
    assert read(legacy(path, layout)).description == read(path).description


class Branching(nn.Module):
    """Has a loop, branches on shapes, a mask filled in place, and values of its own in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = images.mean(1).flatten(1)[:, :8]
        if features.dim() != 2:
            raise ValueError("not rows")
        kept: list[Tensor] = []
        for layer in self.layers:
            features = torch.relu(layer(features)) + features
            kept.append(features)
        mask = torch.zeros(features.size(1))
        mask[2:5] = 1.0
        total = kept[0]
        place = 1
        while place < len(kept):
            total = total + kept[place]
            place += 1
        return self.head(total * mask)


@pytest.mark.parametrize("form", ["torchscript-scripted", "torchscript-traced", "onnx-kept"])
def test_loops_branches_on_shapes_and_constants_filled_in_place_are_resolved(tmp_path: Path, form):
    original = trained(Branching)
    check_same(built(read(write(form, original, tmp_path))), original, ROUNDED)


class Changing(nn.Module):
    """Changes a copy, a sum and a view in place; none of what they were made of is used afterwards but the copy's."""

    def forward(self, images: Tensor) -> Tensor:
        rows = images.mean(1).flatten(1)[:, :5]
        copy = rows.clone()
        copy += 1
        total = rows * 2
        total -= copy
        flat = (total + 3).flatten()
        flat.mul_(0.5)
        return flat.reshape(-1, 5)


class ChangingAView(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        rows = images.mean(1).flatten(1)[:, :5] * 2
        rows[:, 0].add_(1)
        return rows


@pytest.mark.parametrize("form", ["torchscript-scripted", "torch.export"])
def test_changes_in_place_are_those_of_the_original_or_refused(tmp_path: Path, form):
    check_same(built(read(write(form, Changing(), tmp_path))), Changing(), EXACT)
    with pytest.raises(InputError, match="it changes a part of a tensor in place, which a graph cannot express"):
        read(write(form, ChangingAView(), tmp_path))


class Deciding(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        logits = images.mean(1).flatten(1)[:, :5]
        if bool(images.sum() > 0):
            logits = logits * 2
        return logits


class TwoInputs(nn.Module):
    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        return (images + others).mean(1).flatten(1)[:, :5]


class TwoOutputs(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = images.mean(1).flatten(1)[:, :5]
        return logits, logits


class TwoFeatures(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, images * 2


class Sorting(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(1).flatten(1).sort(1)[0][:, :5].cummax(1)[0]


class Training(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.dropout(images.mean(1).flatten(1)[:, :5], 0.5, True)


class Features(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images * 2


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (Deciding(), "its control flow depends on the values of the images"),
        (TwoInputs(), r"it has 2 inputs \(images, others\); wrap the model in one whose only input is the images"),
        (TwoOutputs(), r"2 of its 2 outputs \(0, 1\) may be the logits; choose one with --output-part 0"),
        (TwoFeatures(), r"none of its 2 outputs \(0, 1\) may be the logits; save a model that returns logits"),
        (Sorting(), "it has the operator sort, which gapssg does not know"),
        (Training(), r"it was saved in training mode; save it in evaluation mode"),
        (Features(), "it returns 2x3x16x16 for 2 images instead of logits of 2 x K"),
        (nn.Sequential(nn.Flatten(), nn.Linear(9, 5)), "its operator linear fails"),
    ],
)
def test_what_no_graph_can_express_is_refused_in_one_sentence(tmp_path: Path, module, sentence):
    torch.jit.save(torch.jit.script(module.eval()), tmp_path / "a.pt")
    with pytest.raises(InputError, match=sentence) as caught:
        read(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)


class Guarded(nn.Module):
    """A classifier with blocks under `torch.no_grad` and `torch.autocast`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(768, 5)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1)
        with torch.no_grad():
            means, scales = rows.mean(1, keepdim=True), rows.std(1, keepdim=True)
        with torch.autocast("cpu", enabled=False):
            logits: Tensor = self.linear((rows - means).float() / scales)
        return logits


def test_blocks_without_gradients_and_under_autocast_are_read(tmp_path: Path):
    original = Guarded().eval()
    found = built(read(write("torch.export", original, tmp_path)))(images(4))
    assert distance(found.double(), original(images(4)).double()) < ROUNDED


class Several(nn.Module):
    """A classifier that returns features, and the logits of several heads."""

    def __init__(self, inner: nn.Module, heads: int) -> None:
        super().__init__()
        self.inner, self.heads = inner, heads

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits = self.inner(images)
        return images * 2, *(logits * (number + 1) for number in range(self.heads))


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", ["onnx-kept", "onnx-fixed", "torchscript-traced", "torch.export", "torch.export-fixed"]
)
def test_logits_are_found_among_several_outputs(tmp_path: Path, form):
    original = trained(Mobile)
    graph = read(write(form, Several(original, 1).eval(), tmp_path))
    assert graph.part is not None
    check_same(built(graph), original, ROUNDED)


@pytest.mark.parametrize("form", ["torchscript-traced", "torch.export"])
def test_a_single_number_for_each_image_is_one_logit(tmp_path: Path, form):
    original = nn.Sequential(nn.Flatten(), nn.Linear(768, 1), nn.Flatten(0)).eval()
    graph = read(write(form, original, tmp_path))
    assert graph.num_classes == 1
    module = build_graph(check_graph(graph.description), graph.tensors, 2, INPUT_SHAPE)
    module.to_empty(device="cpu").load_state_dict(graph.tensors)
    assert distance(module(images(3)).double(), original(images(3)).double()[:, None]) < ROUNDED


def test_a_batch_size_that_cannot_be_freed_is_refused_in_one_sentence(tmp_path: Path):
    with pytest.raises(
        InputError, match=r"it works only with batches of 1 .*; save it again with a dynamic batch size"
    ):
        module = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, 768)), nn.Linear(768, 5))
        read(write("torchscript-scripted", nn.Sequential(_Once(), module), tmp_path))


class _Scaled(nn.Module):
    """Logits times a constant: a number or a tensor."""

    def __init__(self, factor: float | Tensor) -> None:
        super().__init__()
        self.body, self.factor = nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), factor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x) * self.factor
        return logits


@pytest.mark.parametrize("factor", [math.nan, torch.tensor(math.nan)], ids=["number", "tensor"])
def test_a_constant_that_is_not_a_number_is_blamed_and_not_the_batch_size(tmp_path: Path, factor):
    path = write("torchscript-traced", _Scaled(factor).eval(), tmp_path)
    with pytest.raises(InputError, match=r"^it computes with a constant that is not a number \(NaN\)"):
        read(path)


class _Once(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.sum(0, keepdim=True).expand(1, 3, 16, 16) + torch.zeros(1)


def test_loading_a_torchscript_file_that_would_run_code_is_refused(tmp_path: Path, monkeypatch):
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.training = False

        @torch.jit.export
        def __getstate__(self) -> tuple[Tensor, bool]:
            return torch.zeros(1), False

        @torch.jit.export
        def __setstate__(self, state: tuple[Tensor, bool]) -> None:
            torch.save(state[0], "evil")

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :5]

    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(Stateful()), "a.pt")
    with pytest.raises(InputError, match="which would run code when they are loaded"):
        torchscript_reader.load(Path("a.pt"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


LINEAR: GraphJson = {
    "nodes": [
        ["reshape.default", [{"value": 0}, [-1, 768]], {}],
        ["linear.default", [{"value": 1}, {"tensor": "linear_2.weight"}], {}],
    ],
    "output": 2,
}
WEIGHT = {"linear_2.weight": torch.zeros(5, 768)}


@pytest.mark.parametrize(
    "nodes",
    [
        [],
        ["relu.default"],
        [["relu.default", [{"value": 1}], {}]],
        [["relu.default", [{"value": 0, "item": -1}], {}]],
        [["relu.default", [{"value": True}], {}]],
        [["relu.default", [{"tensor": "forward"}], {}]],
        [["relu.default", [{"tensor": "tensor_1.weight"}], {}]],
        [["relu.default", [{"value": 0, "surprise": 1}], {}]],
        [["relu.default", [{"dtype": "complex64"}], {}]],
        [["relu.default", [float("nan")], {}]],
        [["relu.default", [2**63], {}]],
        [["relu.default", [10**400], {}]],
        [["relu.default", [2.0**128], {}]],
        [["relu.default", ["x" * 1000], {}]],
        [["relu.default", [[[[[1]]]]], {}]],
        [["relu.default", [{"value": 0}], {"__class__": 1, "a b": 2}]],
        [["relu.default", [{"value": 0}] * 100, {}]],
        [["relu.default", [{"value": 0}], {}]] * 20_001,
    ],
)
def test_a_description_that_is_no_graph_is_refused(nodes):
    with pytest.raises(InputError, match="the graph"):
        check_graph({"nodes": nodes, "output": max(0, min(1, len(nodes)))})


@pytest.mark.parametrize("graph", [None, [], "text", {"nodes": LINEAR["nodes"]}, {**LINEAR, "more": 1}])
def test_json_that_is_no_object_of_nodes_and_an_output_is_refused(graph: object):
    with pytest.raises(InputError, match="the graph is not a list of 1 to"):
        check_graph(graph)


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        (["from_file.default", ["/etc/passwd"], {}], "not among the operators of a classifier"),
        (["save.default", [{"value": 0}, "x"], {}], "not among the operators"),
        (["empty.memory_format", [[2, 5]], {}], "not among the operators"),
        (["__class__.default", [{"value": 0}], {}], "not among the operators"),
        (["expand.default", [{"value": 0}, [2**40, -1, -1, -1, -1]], {}], "larger than that of any classifier|cannot"),
        (["repeat.default", [{"value": 0}, [1, 1000, 1000, 1]], {}], "larger than that of any classifier"),
        (["constant_pad_nd.default", [{"value": 0}, [2**61, 2**61]], {}], "cannot be applied"),
        (["repeat.default", [{"value": 0}, [1, 0]], {}], "cannot be applied"),
        (["relu.default", [{"tensor": "tensor_1"}], {}], "the file has no tensor tensor_1"),
        (["relu.default", [{"tensor": "conv_1.weight"}], {}], "the file has no tensor conv_1.weight"),
        (["linear.default", [{"value": 0}, {"tensor": "linear_2.weight"}], {}], "cannot be applied"),
        (["relu.default", ["text"], {}], "cannot be applied"),
        (["relu.default", [{"value": 0}], {"surprise": 1}], "cannot be applied"),
        (["max_pool2d.default", [{"value": 0}, [2, 2], [0, 0]], {}], "cannot be applied"),
    ],
)
def test_a_hostile_graph_is_refused_before_memory_is_allocated(node, sentence):
    graph = check_graph({"nodes": [*LINEAR["nodes"], node], "output": 3})
    with pytest.raises(InputError, match=sentence) as caught:
        build_graph(graph, WEIGHT, 5, INPUT_SHAPE)
    assert "\n" not in str(caught.value)


def test_a_graph_may_have_every_number_of_float32_and_int64():
    largest = torch.finfo(torch.float32).max
    nodes = [["relu.default", [largest, -largest, 2**63 - 1, -(2**63)], {}]]
    assert check_graph({"nodes": nodes, "output": 1})["nodes"] == nodes


def test_a_graph_without_logits_or_with_tensors_of_other_names_is_refused():
    assert build_graph(check_graph(LINEAR), WEIGHT, 5, INPUT_SHAPE) is not None
    with pytest.raises(InputError, match="the output of the graph is not 4 logits for each image"):
        build_graph(LINEAR, WEIGHT, 4, INPUT_SHAPE)
    with pytest.raises(InputError, match="the output of the graph is not 5 logits"):
        build_graph({**LINEAR, "output": 1}, WEIGHT, 5, INPUT_SHAPE)
    nodes = [LINEAR["nodes"][0], ["linear.default", [*LINEAR["nodes"][1][1], {"tensor": "tensor_3"}], {}]]
    with pytest.raises(InputError, match="the tensors of linear_2 have other names"):
        build_graph({"nodes": nodes, "output": 2}, {**WEIGHT, "tensor_3": torch.zeros(5)}, 5, INPUT_SHAPE)


class Constant(nn.Module):
    logits: Tensor

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


@pytest.mark.parametrize(
    ("ours", "theirs", "sentence"),
    [
        ([[1.0, 2.0]], [[1.0, float("nan")]], "has logits that are not finite for the images by onnxruntime; check"),
        ([[1.0, float("nan")]], [[1.0, 2.0]], "its graph gives other logits than onnxruntime: .* they are not finite;"),
        ([[1.0, 2.0]], [[1.0], [2.0]], "other logits than onnxruntime: .* they have the shape 1x2 instead of 2x1;"),
        ([[1.0, 2.0]], [[1.5, 2.0]], "other logits than onnxruntime: .* they differ by up to 0.25 of the largest"),
    ],
)
def test_the_sentence_says_which_logits_are_wrong_and_how(ours, theirs, sentence):
    graph = GraphFile(
        "onnx", Path("model.onnx"), LINEAR, {}, INPUT_SHAPE, 2, 0.0, images(1), torch.tensor(theirs), None
    )
    with pytest.raises(InputError, match=f"^model.onnx .*{sentence}"):
        check_same_logits(graph, Constant(torch.tensor(ours)), graph.images, graph.logits, "the images")
    check_same_logits(graph, Constant(torch.ones(1, 2)), graph.images, torch.ones(1, 2), "the images")
