"""The export formats: functions from a module to the bytes of a file, and back to a function from images to logits.

All are traced with two images and accept batches of any size; height, width and channels are fixed.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gapssg.core.augment import Normalization

METADATA_KEY = "gapssg"
INPUT_NAME = "images"
OUTPUT_NAME = "logits"
# The oldest that the exporter writes without conversion, so that old runtimes can read the file.
OPSET = 18
_OPERATOR = re.compile(r"<OpOverload\(op='([^']+)'|target=torch\.ops\.([\w.]+)")
_FATAL = 4  # log level of onnxruntime
_TRACED_BATCH = 2  # torch.export treats a dimension of size 1 as constant

Classifier = Callable[[Tensor], Tensor]
"""Maps images (N, C, H, W) float32 on the CPU, as the file expects them, to logits (N, K) float32."""


class Format(NamedTuple):
    """An export format.

    Attributes:
        write: Maps a module in eval mode, the input shape (C, H, W) and JSON metadata to the bytes of a file.
        load: Maps these bytes to a classifier. Loading a torch format can run code, so only bytes that this process has
            written may be loaded.
        packages: Packages of the extra `export` that both need.
    """

    write: Callable[[nn.Module, tuple[int, int, int], str], bytes]
    load: Callable[[bytes], Classifier]
    packages: tuple[str, ...] = ()


class Normalized(nn.Module):
    """A classifier whose input is pixels in [0, 1]."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, module: nn.Module, normalization: Normalization) -> None:
        """Put the normalisation before `module`."""
        super().__init__()
        self.module = module
        self.register_buffer("mean", normalization.mean)
        self.register_buffer("deviation", normalization.deviation)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, K) of images (N, C, H, W) in [0, 1]."""
        logits: Tensor = self.module((images - self.mean) / self.deviation)
        return logits


def write_onnx(module: nn.Module, input_shape: tuple[int, int, int], metadata: str) -> bytes:
    """Return an ONNX file: opset 18, weights included, batch norms folded into the preceding convolutions."""
    with quiet(), _short_reason():
        program = torch.onnx.export(
            module,
            (_example(input_shape),),
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
    model.metadata_props.add(key=METADATA_KEY, value=metadata)
    return bytes(model.SerializeToString(deterministic=True))


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


def load_onnx(content: bytes) -> Classifier:
    """Return a classifier that runs an ONNX file with onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL  # errors are also raised
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def classify(images: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT_NAME], {INPUT_NAME: images.contiguous().numpy()})
        return torch.from_numpy(logits)

    return classify


def write_torch_export(module: nn.Module, input_shape: tuple[int, int, int], metadata: str) -> bytes:
    """Return a file of `torch.export.save`; batch norms are not folded."""
    buffer = io.BytesIO()
    with quiet():
        dynamic = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(module, (_example(input_shape),), dynamic_shapes=dynamic)
        torch.export.save(program, buffer, extra_files={METADATA_KEY: metadata})
    return buffer.getvalue()


def load_torch_export(content: bytes) -> Classifier:
    """Return the classifier in a file of `write_torch_export`."""
    with quiet():
        return _without_gradients(torch.export.load(io.BytesIO(content)).module())


def write_torchscript(module: nn.Module, input_shape: tuple[int, int, int], metadata: str) -> bytes:
    """Return a TorchScript file of the traced module; batch norms are not folded."""
    buffer = io.BytesIO()
    with quiet():
        traced = torch.jit.trace(module, _example(input_shape), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, buffer, _extra_files={METADATA_KEY: metadata})
    return buffer.getvalue()


def load_torchscript(content: bytes) -> Classifier:
    """Return the classifier in a file of `write_torchscript`."""
    with quiet():
        return _without_gradients(torch.jit.load(io.BytesIO(content)))  # type: ignore[no-untyped-call]


FORMATS = {
    "onnx": Format(write_onnx, load_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "torch-export": Format(write_torch_export, load_torch_export),
    "torchscript": Format(write_torchscript, load_torchscript),
}


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings, logs and prints of exporters."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _example(input_shape: tuple[int, int, int]) -> Tensor:
    return torch.zeros(_TRACED_BATCH, *input_shape)


def _without_gradients(module: Classifier) -> Classifier:
    def classify(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(images)

    return classify
