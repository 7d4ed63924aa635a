"""A LiteRT (TensorFlow Lite) flatbuffer, run by LiteRT's interpreter; int8 by AI Edge Quantizer."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gapssg.export.formats import ITSELF, Classifier, Files, Format, Subject, quiet
from gapssg.runs.results.export import ExportMetadata


def write_litert(subject: Subject) -> Files:
    """Return a `.tflite` file for one image (1, C, H, W)."""
    import litert_torch

    with quiet(), tempfile.TemporaryDirectory(prefix="gapssg-export-") as folder:
        file = Path(folder) / "model.tflite"
        litert_torch.convert(subject.module, (subject.example[:1],)).export(str(file))
        return {ITSELF: file.read_bytes()}


def load_litert(files: Files) -> Classifier:
    """Return a classifier that runs a `.tflite` file image by image."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=files[ITSELF])
    interpreter.allocate_tensors()
    (given,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()

    def logits(image: Tensor) -> Tensor:
        interpreter.set_tensor(given["index"], image.numpy())
        interpreter.invoke()
        return torch.from_numpy(interpreter.get_tensor(returned["index"]))

    def classify(images: Tensor) -> Tensor:
        return torch.cat([logits(image) for image in torch.split(images.contiguous(), 1)])

    return classify


class LiteRtQuantizer:
    """Quantises weights, by output channel, and activations of a `.tflite` file to 8-bit integers.

    Activations have the range from the smallest to the largest value on the calibration images; the moving average that
    AI Edge Quantizer takes by itself depends on the last of them and cuts logits off. Input and output stay float32.

    Attributes:
        layers: All operators that can compute in 8 bits, by their number and kind in the float32 file.
        biased_layers: Empty; biases are not corrected.
    """

    biased_layers: Sequence[str] = ()

    def __init__(self, files: Files, calibration: Tensor) -> None:
        """Prepare to quantise a `.tflite` file, calibrated on inputs (N, C, H, W) float32."""
        from ai_edge_quantizer.calibrator import Calibrator
        from ai_edge_quantizer.utils.qsv_utils import min_max_update

        self._content = files[ITSELF]
        self._scopes = _scopes(self._content)
        self.layers = list(self._scopes)
        with quiet():
            # Its faster mode, by a profiler, takes the -inf around the images of a max-pool for their smallest value.
            calibrator = Calibrator(self._content, torch.get_num_threads(), qsv_update_func=min_max_update)
            ((signature, names),) = calibrator.get_signature_list().items()
            (name,) = names["inputs"]
            images = [{name: image.numpy()} for image in torch.split(calibration.contiguous(), 1)]
            calibrator.calibrate({signature: images}, _recipe(()))
        self._ranges = calibrator.get_model_qsvs()

    def quantize(self, float_layers: Collection[str], metadata: ExportMetadata) -> Files:
        """Return the int8 file in which these layers compute in float32."""
        from ai_edge_quantizer import Quantizer

        recipe = _recipe([self._scopes[layer] for layer in float_layers])
        with quiet():
            quantizer = Quantizer(self._content, recipe.get_quantization_recipe())
            made = quantizer.quantize(self._ranges, enable_progress_report=False)
        return {ITSELF: bytes(made.quantized_model)}


def _recipe(float_scopes: Collection[str]) -> Any:
    """Return the recipe of int8 with float32 for input, output and the operators of these scopes."""
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName
    from ai_edge_quantizer.recipe_manager import RecipeManager

    recipe = RecipeManager()
    every, left_out = TFLOperationName.ALL_SUPPORTED, AlgorithmName.NO_QUANTIZE
    recipe.add_static_config(".*", every, activation_num_bits=8, weight_num_bits=8)
    for kind in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
        recipe.add_quantization_config(".*", kind, algorithm_key=left_out)
    for scope in sorted(float_scopes):
        recipe.add_quantization_config(f"^{re.escape(scope)}$", every, algorithm_key=left_out)
    return recipe


def _scopes(content: bytes) -> dict[str, str]:
    """Return the scopes, which recipes match, of the operators that int8 recipes quantise, by layer."""
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.utils.tfl_flatbuffer_utils import TFL_OP_CODE_TO_NAME, get_op_scope, read_model

    model, recipe, scopes = read_model(content), _recipe(()), {}
    graph = model.subgraphs[0]  # others are the bodies of composite operators
    for index, operator in enumerate(graph.operators):
        kind = TFL_OP_CODE_TO_NAME.get(model.operatorCodes[operator.opcodeIndex].builtinCode)
        scope = get_op_scope(operator, graph.tensors)
        if kind is not None and recipe.get_quantization_configs(kind, scope)[0] != AlgorithmName.NO_QUANTIZE:
            scopes[f"{kind.value} {index}"] = scope
    return scopes


FORMAT = Format(
    write_litert,
    load_litert,
    ("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
    extra="litert",
    quantizer=LiteRtQuantizer,
)
