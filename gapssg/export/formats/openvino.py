"""OpenVINO IR, made from ONNX and run by OpenVINO's CPU plugin; int8 by NNCF."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gapssg.export.formats import (
    INPUT_NAME,
    ITSELF,
    Classifier,
    Files,
    Format,
    Subject,
    calibration_batches,
    metadata_text,
    quiet,
)
from gapssg.export.formats.onnx import write_onnx
from gapssg.models.description import METADATA_KEY
from gapssg.runs.results.export import ExportMetadata

_TELEMETRY = "openvino_telemetry"
_XML, _BIN = "model.xml", "model.bin"
_LAYERS = {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul", "ReduceMean"}


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Let OpenVINO and NNCF, imported in the block, lack the package by which they would send usage statistics."""
    before = {name: module for name, module in sys.modules.items() if name == _TELEMETRY}
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
        sys.modules.update(before)


def _import(name: str) -> Any:
    with without_telemetry():
        return importlib.import_module(name)


def write_openvino(subject: Subject) -> Files:
    """Return the IR, `model.xml` and `model.bin`, with float32 weights."""
    openvino = _import("openvino")
    content = write_onnx(subject)[ITSELF]
    with quiet():
        return _serialized(openvino.Core().read_model(content), subject.metadata)


def load_openvino(files: Files) -> Classifier:
    """Return a classifier that runs the IR on the CPU, in float32 also where the CPU has bfloat16."""
    core = _import("openvino").Core()
    compiled = core.compile_model(_read(files), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def classify(images: Tensor) -> Tensor:
        return torch.from_numpy(compiled({INPUT_NAME: images.contiguous().numpy()})[0].copy())

    return classify


class OpenVinoQuantizer:
    """Quantises weights, by output channel, and activations of an IR to 8-bit integers, and corrects biases, with NNCF.

    Attributes:
        layers: Convolutions, matrix products, sums and means.
        biased_layers: None; NNCF chooses the biases that it corrects.
    """

    biased_layers = None

    def __init__(self, files: Files, calibration: Tensor) -> None:
        """Prepare to quantise an IR, calibrated on inputs (N, C, H, W) float32."""
        self._files = files
        self._batches = calibration_batches(calibration)
        self.layers = [each.get_friendly_name() for each in _read(files).get_ordered_ops() if _is_layer(each)]

    def quantize(self, float_layers: Collection[str], metadata: ExportMetadata) -> Files:
        """Return the int8 IR in which these layers compute in float32."""
        nncf = _import("nncf")
        with quiet():
            ignored = nncf.IgnoredScope(names=sorted(float_layers), validate=False) if float_layers else None
            dataset = nncf.Dataset(self._batches)
            model = nncf.quantize(_read(self._files), dataset, subset_size=len(self._batches), ignored_scope=ignored)
            return _serialized(model, metadata)


def _is_layer(operator: Any) -> bool:
    kind = operator.get_type_name()
    inputs = [value.get_node().get_type_name() for value in operator.input_values()]
    is_bias = "Constant" in inputs or "Reshape" in inputs  # as ONNX convolutions have them, which are not quantised
    return kind in _LAYERS or (kind == "Add" and not is_bias)


def _read(files: Files) -> Any:
    return _import("openvino").Core().read_model(files[_XML], files[_BIN])


def _serialized(model: Any, metadata: ExportMetadata) -> Files:
    model.set_rt_info(metadata_text(metadata), [METADATA_KEY])
    with tempfile.TemporaryDirectory(prefix="gapssg-export-") as folder:
        _import("openvino").save_model(model, Path(folder) / _XML, compress_to_fp16=False)
        return {name: (Path(folder) / name).read_bytes() for name in (_XML, _BIN)}


FORMAT = Format(
    write_openvino,
    load_openvino,
    ("openvino", "nncf", "onnx", "onnxscript"),
    extra="openvino",
    is_folder=True,
    quantizer=OpenVinoQuantizer,
    importing=without_telemetry,
)
