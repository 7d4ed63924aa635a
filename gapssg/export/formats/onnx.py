"""ONNX, run by onnxruntime; int8 by onnxruntime's static quantisation."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gapssg.export.bias_correction import biased_layers, channel_means, correct_biases
from gapssg.export.formats import (
    INPUT_NAME,
    ITSELF,
    OUTPUT_NAME,
    Classifier,
    Files,
    Format,
    Subject,
    calibration_batches,
    quiet,
)
from gapssg.files import canonical_json
from gapssg.models.checksum import BLANK, CHECKSUM, with_checksum
from gapssg.models.description import METADATA_KEY
from gapssg.runs.results.export import ExportMetadata

# The oldest that the exporter writes without conversion, so that old runtimes can read the file.
OPSET = 18
_OPERATOR = re.compile(r"<OpOverload\(op='([^']+)'|target=torch\.ops\.([\w.]+)")
_FATAL = 4  # log level of onnxruntime
# Operators that onnxruntime computes in 8 bits and that are not elementwise on one input, which follow their producer.
_QUANTIZED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "GlobalAveragePool", "AveragePool", "ReduceMean"}


def write_onnx(subject: Subject) -> Files:
    """Return an ONNX file: opset 18, weights included, batch norms folded into the preceding convolutions."""
    with quiet(), _short_reason():
        program = torch.onnx.export(
            subject.module,
            (subject.example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # None only with the old exporter
    model = program.model_proto
    # Nodes name their source files, with folders of this machine.
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        part.ClearField("metadata_props")
    return _serialized(model, subject.metadata)


def _serialized(model: Any, metadata: ExportMetadata) -> Files:
    import onnx

    description = {**metadata.model_dump(mode="json"), CHECKSUM: BLANK}
    onnx.helper.set_model_props(model, {METADATA_KEY: canonical_json(description)})
    return {ITSELF: with_checksum(bytes(model.SerializeToString(deterministic=True)))}


@contextmanager
def _short_reason() -> Iterator[None]:
    """Replace the long message of the ONNX exporter by the unknown operator or the first cause."""
    try:
        yield
    except torch.onnx.OnnxExporterError as error:
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__) is not None:
            causes.append(cause)
        operator = _OPERATOR.search("\n".join(map(str, causes)))
        if operator is None:
            raise RuntimeError(str(causes[-1])) from error
        name = operator[1] or operator[2]
        raise RuntimeError(f"the operator {name} cannot be translated to ONNX") from error


def load_onnx(files: Files) -> Classifier:
    """Return a classifier that runs an ONNX file with onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL  # errors are also raised
    session = onnxruntime.InferenceSession(files[ITSELF], options, providers=["CPUExecutionProvider"])

    def classify(images: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT_NAME], {INPUT_NAME: images.contiguous().numpy()})
        return torch.from_numpy(logits)

    return classify


class OnnxQuantizer:
    """Quantises weights and activations of a float32 ONNX file to 8-bit integers.

    QuantizeLinear and DequantizeLinear surround each operator; runtimes fuse them into integer kernels. Weights have a
    scale per output channel and 7 bits, because CPUs without VNNI instructions add pairs of products in 16 bits, which
    overflow with 8-bit weights. Activations are unsigned, with the range that calibration measured. Biases are
    corrected.

    Attributes:
        layers: Convolutions, matrix products, sums, products and average pools.
        biased_layers: Those with a bias, which is corrected.
    """

    def __init__(self, files: Files, calibration: Tensor) -> None:
        """Prepare to quantise an ONNX file, calibrated on inputs (N, C, H, W) float32."""
        import onnx

        self._content = files[ITSELF]
        self._calibration = calibration
        self._ranges: bytes | None = None  # of activations, as onnxruntime stores them
        model = onnx.load_from_string(self._content)
        self.layers = [node.name for node in model.graph.node if node.op_type in _QUANTIZED]
        self.biased_layers = biased_layers(model)
        self._means = channel_means(model, self.biased_layers, calibration)

    def quantize(self, float_layers: Collection[str], metadata: ExportMetadata) -> Files:
        """Return the int8 file in which these layers compute in float32."""
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        batches = ({INPUT_NAME: batch} for batch in calibration_batches(self._calibration))
        with tempfile.TemporaryDirectory(prefix="gapssg-export-") as folder, quiet():
            file, ranges = Path(folder) / "int8.onnx", Path(folder) / "ranges.json"
            if self._ranges is not None:
                ranges.write_bytes(self._ranges)
            quantize_static(
                onnx.load_from_string(self._content),
                file,
                SimpleNamespace(get_next=lambda: next(batches, None)),  # all that it calls of a data reader
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=sorted(float_layers),
                calibration_cache_path=ranges,
            )
            self._ranges = ranges.read_bytes()
            model = onnx.load(file)
        means = {layer: mean for layer, mean in self._means.items() if layer not in float_layers}
        correct_biases(model, means, self._calibration)
        return _serialized(model, metadata)


FORMAT = Format(write_onnx, load_onnx, ("onnx", "onnxscript", "onnxruntime"), quantizer=OnnxQuantizer)
