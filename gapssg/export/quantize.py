"""Post-training quantisation to 8-bit integers, calibrated on the sample pool of a run instead of data."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gapssg.core.runtime import Runtime
from gapssg.errors import InputError
from gapssg.export.formats import INPUT_NAME, METADATA_KEY, Classifier, quiet
from gapssg.models.description import ModelCard
from gapssg.runs.results import Comparison
from gapssg.synthesis.shards import read_images
from gapssg.text import percent

_MOST_HELD_OUT = 1000  # an agreement of 98 % has a standard error of half a point
_CALIBRATION_BATCH = 64
_SECONDS_OF_TIMING = 1.0


class PoolImages(NamedTuple):
    """Random images of a pool.

    Attributes:
        calibration: (N, C, H, W) uint8, for the ranges of activations.
        held_out: (M, C, H, W) uint8, other images, on which predictions are compared.
    """

    calibration: Tensor
    held_out: Tensor


def draw_images(shards: Sequence[Path], card: ModelCard, count: int, runtime: Runtime) -> PoolImages:
    """Draw at most `count` images of a pool for calibration, at most half of it, and others to compare on.

    Raises:
        InputError: The pool has a single image, or its images do not fit the model.
    """
    images = read_images(shards, card.input_shape, card.num_classes)
    if len(images) < 2:
        raise InputError(f"the pool in {shards[0].parent} has one image, which leaves none to compare on")
    order = torch.randperm(len(images), generator=runtime.random_stream("calibration"))
    count = min(count, len(images) // 2)
    return PoolImages(images[order[:count]], images[order[count : count + _MOST_HELD_OUT]])


def quantize(content: bytes, calibration: Tensor, metadata: str) -> bytes:
    """Quantise the weights and activations of a float32 ONNX file to 8-bit integers.

    QuantizeLinear and DequantizeLinear surround each operator; runtimes fuse them into integer kernels. Weights have a
    scale per output channel and 7 bits, because CPUs without VNNI instructions add pairs of products in 16 bits, which
    overflow with 8-bit weights. Activations are unsigned, with the range that calibration measured.

    Args:
        content: The ONNX file.
        calibration: (N, C, H, W) float32, as the file expects them.
        metadata: The JSON metadata of the new file.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest = iter(torch.split(calibration, _CALIBRATION_BATCH))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._rest, None)
            return None if batch is None else {INPUT_NAME: batch.contiguous().numpy()}

    with tempfile.TemporaryDirectory(prefix="gapssg-export-") as folder, quiet():
        file = Path(folder) / "int8.onnx"
        quantize_static(
            onnx.load_from_string(content),
            file,
            Batches(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        model = onnx.load(file)
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata})
    return bytes(model.SerializeToString(deterministic=True))


def check_agreement(comparison: Comparison, least: float) -> None:
    """Raise InputError unless an int8 model agrees with the float32 model on at least the share `least` of images."""
    if comparison.agreement < least:
        raise InputError(
            f"the int8 model disagrees: it agrees with the float32 model on {percent(comparison.agreement)} of "
            f"{comparison.images:,} other images of the pool, less than {percent(least)}; nothing was kept "
            "(change the limit with --min-agreement)"
        )


def images_per_second(classifiers: Sequence[Classifier], images: Tensor) -> list[float]:
    """Return the throughput of classifiers on a batch, timed alternately so that other load affects all alike."""
    for classify in classifiers:
        classify(images)  # warm-up
    seconds = [0.0 for _ in classifiers]
    rounds = 0
    while min(seconds) < _SECONDS_OF_TIMING:
        for index, classify in enumerate(classifiers):
            started = time.perf_counter()
            classify(images)
            seconds[index] += time.perf_counter() - started
        rounds += 1
    return [rounds * len(images) / each for each in seconds]
