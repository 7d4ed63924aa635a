"""Exports for runtimes other than onnxruntime and PyTorch; each is skipped if its extra is not installed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
import torch

from gapssg import ExportSettings, export_model, load_model
from gapssg.export.formats import ITSELF, load_format
from gapssg.synthesis.shards import PoolOrigin, write_shard
from tests.conftest import write_teacher

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a model and a pool of 60 images of noise."""
    return make_run(tmp_path_factory.mktemp("run"), "wrn16_1")


def make_run(folder: Path, architecture: str) -> Path:
    write_teacher(folder / "student.safetensors", architecture)
    (folder / "pool").mkdir()
    images = torch.randint(0, 256, (60, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_shard(folder / "pool" / "shard-0001.safetensors", images, torch.arange(60) % 10, PoolOrigin("gapssg", "0"))
    return folder


def skip_without(to: str) -> None:
    wanted = load_format(to)
    for package in wanted.packages:
        if find_spec(package) is None:
            pytest.skip(f"{package} of the extra {wanted.extra} is not installed")


@pytest.mark.parametrize("to", ["openvino", "executorch", "litert"])
def test_a_format_of_another_runtime_gives_the_logits_of_the_model(run: Path, tmp_path: Path, to: str):
    skip_without(to)
    result = export_model(ExportSettings(model=run, to=to), tmp_path / "model")
    verification = result.verification
    assert verification.random.images == 64
    assert verification.random.relative_difference <= verification.tolerance < 1e-3
    assert verification.random.agreement == 1
    assert result.timing.images_per_second.float32 > 0


def test_a_core_ml_package_is_complete_and_not_verified(run: Path, tmp_path: Path):
    skip_without("coreml")
    result = export_model(ExportSettings(model=run, to="coreml"), tmp_path / "model.mlpackage")
    assert result.verification is result.timing is None
    import coremltools

    description = coremltools.utils.load_spec(str(tmp_path / "model.mlpackage")).description
    assert json.loads(description.metadata.userDefined["gapssg"]) == result.metadata.model_dump(mode="json")


def test_an_openvino_folder_can_be_read_by_openvino_alone(run: Path, tmp_path: Path):
    skip_without("openvino")
    result = export_model(ExportSettings(model=run, to="openvino"), tmp_path / "model")
    import openvino

    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.bin", "model.xml"]
    model = openvino.Core().read_model(tmp_path / "model" / "model.xml")
    assert json.loads(model.get_rt_info("gapssg").value) == result.metadata.model_dump(mode="json")
    assert str(model.input("images").get_partial_shape()) == "[?,1,16,16]"
    images = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        expected = load_model(run / "student.safetensors").module(images)
    torch.testing.assert_close(torch.from_numpy(compiled({"images": images.numpy()})[0]), expected, rtol=0, atol=1e-5)
    for folder in (Path(openvino.__file__).parents[1], Path(__file__).parents[2], tmp_path):
        assert str(folder).encode() not in (tmp_path / "model" / "model.xml").read_bytes()


def test_int8_of_openvino_computes_in_8_bits_but_for_the_float_layers(run: Path, tmp_path: Path):
    skip_without("openvino")
    import openvino

    from gapssg.export.formats.openvino import OpenVinoQuantizer

    def convolutions_in_int8(folder: Path) -> int:
        operators = openvino.Core().read_model(folder / "model.xml").get_ops()
        return sum(
            each.get_type_name() == "Constant" and str(each.get_element_type()) == "<Type: 'int8_t'>" and
            len(each.get_output_shape(0)) == 4
            for each in operators
        )  # fmt: skip

    int8 = {"enabled": True, "min_agreement": 0}
    whole = export_model(ExportSettings(model=run, to="openvino", int8=int8), tmp_path / "whole")
    assert whole.int8.bytes.int8 < whole.int8.bytes.float32 / 2
    assert convolutions_in_int8(tmp_path / "whole") == 15
    plain = export_model(ExportSettings(model=run, to="openvino"), tmp_path / "plain")
    plain_files = {name: (tmp_path / "plain" / name).read_bytes() for name in ("model.xml", "model.bin")}
    quantizer = OpenVinoQuantizer(plain_files, torch.rand(20, 1, 16, 16))
    chosen = [name for name in quantizer.layers if "Conv" in name][:4]
    for name, content in quantizer.quantize(chosen, plain.metadata).items():
        (tmp_path / name).write_bytes(content)
    assert convolutions_in_int8(tmp_path) == 15 - len(chosen)


def test_int8_of_litert_computes_in_8_bits_but_for_the_float_layers(run: Path, tmp_path: Path):
    skip_without("litert")
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer.utils.tfl_flatbuffer_utils import read_model

    from gapssg.export.formats.litert import LiteRtQuantizer

    def convolutions_in_int8(content: bytes) -> int:
        (graph,) = read_model(content).subgraphs
        weights = [graph.tensors[each.inputs[1]] for each in graph.operators if len(each.inputs) == 3]
        return sum(tensor.type == INT8 and len(tensor.shape) == 4 for tensor in weights)

    INT8 = 9  # in the schema of TensorFlow Lite
    int8 = {"enabled": True, "min_agreement": 0}
    whole = export_model(ExportSettings(model=run, to="litert", int8=int8), tmp_path / "whole.tflite")
    content = (tmp_path / "whole.tflite").read_bytes()
    assert whole.int8.bytes.int8 == len(content) < whole.int8.bytes.float32 / 2
    assert whole.int8.corrected_biases == 0
    assert convolutions_in_int8(content) == 15
    interpreter = Interpreter(model_content=content)
    for details in (*interpreter.get_input_details(), *interpreter.get_output_details()):
        assert details["dtype"] is numpy.float32
    plain = export_model(ExportSettings(model=run, to="litert"), tmp_path / "plain.tflite")
    quantizer = LiteRtQuantizer({ITSELF: (tmp_path / "plain.tflite").read_bytes()}, torch.rand(20, 1, 16, 16))
    chosen = [name for name in quantizer.layers if "CONV" in name][:4]
    files = quantizer.quantize(chosen, plain.metadata)
    assert convolutions_in_int8(files[ITSELF]) == 15 - len(chosen)
    without = quantizer.quantize(quantizer.layers, plain.metadata)
    assert convolutions_in_int8(without[ITSELF]) == 0


def test_int8_of_litert_takes_the_range_of_all_calibration_images(run: Path, tmp_path: Path):
    skip_without("litert")
    from gapssg.export.formats.litert import LiteRtQuantizer, load_litert

    result = export_model(ExportSettings(model=run, to="litert"), tmp_path / "plain.tflite")
    plain = {ITSELF: (tmp_path / "plain.tflite").read_bytes()}
    generator = torch.Generator().manual_seed(0)
    strong, weak = 10 * torch.rand(1, 1, 16, 16, generator=generator), torch.rand(40, 1, 16, 16, generator=generator)
    for images in (torch.cat([strong, weak]), torch.cat([weak, strong])):
        int8 = LiteRtQuantizer(plain, images).quantize((), result.metadata)
        before, after = (load_litert(files)(strong) for files in (plain, int8))
        assert (after - before).abs().max() < 0.1 * before.abs().max()


def test_int8_of_litert_takes_a_padded_max_pool(tmp_path: Path):
    skip_without("litert")
    run = make_run(tmp_path, "torchvision:shufflenet_v2_x0_5")
    int8 = {"enabled": True, "min_agreement": 0}
    result = export_model(ExportSettings(model=run, to="litert", int8=int8), tmp_path / "model.tflite")
    assert result.int8.pool.relative_difference < 0.1
