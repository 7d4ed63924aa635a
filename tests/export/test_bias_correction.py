"""Biases of int8 ONNX files."""

from __future__ import annotations

from collections.abc import Collection
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from gapssg.evaluation.metrics import agreement
from gapssg.export.bias_correction import channel_means, correct_biases
from gapssg.export.formats import Subject
from gapssg.export.formats.onnx import OnnxQuantizer, load_onnx, write_onnx
from gapssg.export.quantize import quantize_within
from gapssg.runs.results.export import ExportMetadata, ExportProvenance, Int8Metadata
from tests.conftest import make_card

_CHANNELS, _IMAGES = 8, 40
_MOST_PRODUCTS = 9  # summed for an output of a layer with a bias; each rounds by at most 2**-24

pytestmark = pytest.mark.slow


class Depthwise(nn.Module):
    """Loses a part of all depthwise weights in 7 bits: eight of nine are a little less than half a step."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, _CHANNELS, 3, stride=2, padding=1), nn.ReLU6()]
        for _ in range(2):
            depthwise = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, groups=_CHANNELS)
            nn.init.constant_(depthwise.weight, 0.45 / 63)
            depthwise.weight.data[:, :, 1, 1] = 1
            layers += [depthwise, nn.ReLU6(), nn.Conv2d(_CHANNELS, _CHANNELS, 1, bias=False), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(_CHANNELS, 10)
        with torch.no_grad():  # predictions depend on what differs between images
            self.classifier.bias.copy_(-self(images(0)).mean(0) + self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def metadata() -> ExportMetadata:
    card = make_card()
    provenance = ExportProvenance(model_sha256="0" * 64, model=card.provenance, versions={})
    interface = {name: getattr(card, name) for name in ExportMetadata.model_fields if hasattr(card, name)}
    int8 = Int8Metadata(calibration_images=_IMAGES)
    return ExportMetadata(**{**interface, "provenance": provenance}, normalization_folded=True, int8=int8)


@pytest.fixture(scope="module")
def content(metadata: ExportMetadata) -> bytes:
    """A float32 ONNX file; four of its six layers have a bias."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return write_onnx(Subject(Depthwise().eval(), metadata))[""]


def images(seed: int, count: int = _IMAGES) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    contrast = torch.rand(count, 1, 1, 1, generator=generator)
    return contrast * torch.rand(count, 1, 16, 16, generator=generator)


@pytest.fixture(scope="module")
def quantizer(content: bytes) -> OnnxQuantizer:
    return OnnxQuantizer({"": content}, images(0))


def quantized(quantizer: OnnxQuantizer, metadata: ExportMetadata, float_layers: Collection[str] = ()) -> ModelProto:
    return onnx.load_from_string(quantizer.quantize(float_layers, metadata)[""])


def as_quantised(quantizer: OnnxQuantizer, metadata: ExportMetadata, float_layers: Collection[str] = ()) -> ModelProto:
    with mock.patch("gapssg.export.formats.onnx.correct_biases"):
        return quantized(quantizer, metadata, float_layers)


def bias_constants(model: ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The int32 values and the step of each quantised bias, by layer."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    producers = {node.output[0]: node for node in model.graph.node}
    inputs = {node.name: producers[node.input[2]].input for node in model.graph.node if len(node.input) == 3
              and node.op_type in {"Conv", "Gemm"} and node.input[2] in producers}  # fmt: skip
    return {name: (constants[bias], constants[step]) for name, (bias, step, *_) in inputs.items()}


def outputs(model: ModelProto, layer: str) -> np.ndarray:
    """The outputs (N, C, ...) float64 of a layer for the calibration images."""
    exposed = ModelProto()
    exposed.CopyFrom(model)
    (name,) = [node.output[0] for node in model.graph.node if node.name == layer]
    exposed.graph.output.append(onnx.ValueInfoProto(name=name))
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([name], {"images": images(0).numpy()})[0].astype(np.float64)


def error_over_bound(model: ModelProto, content: bytes) -> dict[str, float]:
    """The largest error of a channel's mean, over half a step of its bias and the rounding of float32, by layer."""
    ratios = {}
    for layer, (_, step) in bias_constants(model).items():
        expected, actual = outputs(onnx.load_from_string(content), layer), outputs(model, layer)
        axes = (0, *range(2, expected.ndim))
        rounding = _MOST_PRODUCTS * 2.0**-24 * np.abs(expected).max()
        ratios[layer] = (np.abs(expected.mean(axes) - actual.mean(axes)) / (step / 2 + rounding)).max()
    return ratios


def output_step(model: ModelProto) -> float:
    (last,) = [node for node in model.graph.node if node.output[0] == "logits"]
    (step,) = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == last.input[1]]
    return step.item()


def logits(content: bytes, inputs: Tensor) -> Tensor:
    return load_onnx({"": content})(inputs).double()


def test_the_means_of_all_layers_with_a_bias_are_corrected_to_half_a_step_of_it(quantizer, content, metadata):
    before = error_over_bound(as_quantised(quantizer, metadata), content)
    after = error_over_bound(quantized(quantizer, metadata), content)
    assert list(after) == list(before) == quantizer.biased_layers
    assert len(after) == 4
    assert max(before.values()) > 10
    assert max(after.values()) <= 1


def test_the_last_step_rounds_the_mean_logits_again(quantizer, metadata, content):
    """The logits are the outputs of the last layer in 8 bits, so that their means have an error of their own."""
    model = quantized(quantizer, metadata)
    last, step = quantizer.biased_layers[-1], output_step(model)
    error = np.abs(logits(model.SerializeToString(), images(0)).numpy() - outputs(model, last)).max()
    assert step / 100 < error <= step / 2 * 1.0001  # the division by the step rounds, too


def test_the_logits_lose_their_bias_and_agree_with_float32_on_other_images(quantizer, content, metadata):
    others = images(1, 500)
    expected = logits(content, others)
    before = logits(as_quantised(quantizer, metadata).SerializeToString(), others)
    after = logits(quantized(quantizer, metadata).SerializeToString(), others)
    bias_before, bias_after = ((each - expected).mean(0).abs().max() for each in (before, after))
    assert bias_after < bias_before / 4
    assert (after - expected).square().mean() < (before - expected).square().mean() / 4
    assert agreement(expected, after) > agreement(expected, before)


def test_only_the_biases_change(quantizer, metadata):
    before, after = as_quantised(quantizer, metadata), quantized(quantizer, metadata)
    changed = {
        mine.name for mine, theirs in zip(after.graph.initializer, before.graph.initializer, strict=True)
        if mine != theirs
    }  # fmt: skip
    names = {node.name: node for node in after.graph.node}
    producers = {node.output[0]: node for node in after.graph.node}
    assert changed == {producers[names[layer].input[2]].input[0] for layer in quantizer.biased_layers}
    for layer in before.graph.node:
        assert layer in after.graph.node


def test_layers_in_float32_keep_their_biases_and_the_others_are_corrected(quantizer, content, metadata):
    first, *_, last = quantizer.biased_layers
    model = quantized(quantizer, metadata, [first, last])
    assert list(bias_constants(model)) == quantizer.biased_layers[1:-1]
    assert max(error_over_bound(model, content).values()) <= 1
    constants, originals = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in each.graph.initializer}
        for each in (model, onnx.load_from_string(content))
    )
    for node in model.graph.node:
        if node.name in {first, last}:
            np.testing.assert_array_equal(constants[node.input[2]], originals[node.input[2]])


def test_a_largest_drop_needs_fewer_layers_in_float32(quantizer, content, metadata):
    """As `--max-drop` chooses them, for a drop that the corrected model holds and the uncorrected does not."""
    others = images(1, 500)
    expected = logits(content, others)

    def drop(files) -> float:
        return 1 - agreement(expected, logits(files[""], others))

    def error(files) -> float:
        return (expected - logits(files[""], others)).square().mean().item()

    most = drop({"": quantized(quantizer, metadata).SerializeToString()})
    assert quantize_within(quantizer, metadata, most, drop, error)[1] == ()
    with mock.patch("gapssg.export.formats.onnx.correct_biases"):
        assert quantize_within(quantizer, metadata, most, drop, error)[1] != ()


def test_a_bias_stays_within_32_bits(quantizer, content, metadata):
    model = as_quantised(quantizer, metadata)
    layer = quantizer.biased_layers[0]
    correct_biases(model, {layer: np.full(_CHANNELS, 1e12)}, images(0))
    assert (bias_constants(model)[layer][0] == np.iinfo(np.int32).max).all()


def test_a_model_without_biases_is_left_as_it_is():
    assert channel_means(ModelProto(), [], images(0)) == {}
