"""Post-training quantisation to 8-bit integers, calibrated without data: on the sample pool of a run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gapssg.errors import InputError
from gapssg.export.formats import INPUT_NAME, METADATA_KEY, Classifier, quiet
from gapssg.models.description import ModelCard
from gapssg.runs.directory import pool_shards
from gapssg.runs.results import Comparison
from gapssg.synthesis.shards import read_shard
from gapssg.text import percent

_MOST_HELD_OUT = 1000  # with which an agreement of 98 % is known to half a point
_CALIBRATION_BATCH = 64
_SECONDS_OF_TIMING = 1.0


class PoolImages(NamedTuple):
    """Images of a pool, drawn at random.

    Attributes:
        calibration: (N, C, H, W) uint8, from which the ranges of activations are read.
        held_out: (M, C, H, W) uint8, others, on which predictions are compared.
    """

    calibration: Tensor
    held_out: Tensor


def read_pool(path: Path, card: ModelCard, count: int, generator: torch.Generator) -> PoolImages:
    """Draw at most `count` images of a pool to calibrate with, but no more than half, and others to compare on.

    Raises:
        InputError: There is no pool, it has a single image, or its images are not those that the model takes.
    """
    shards = pool_shards(path)
    images = torch.cat([read_shard(shard, card.input_shape, card.num_classes)[0] for shard in shards])
    if len(images) < 2:
        raise InputError(f"{path} holds a pool of one image, which leaves none to compare on; name a larger pool")
    order = torch.randperm(len(images), generator=generator)
    count = min(count, len(images) // 2)
    return PoolImages(images[order[:count]], images[order[count : count + _MOST_HELD_OUT]])


def quantize(content: bytes, calibration: Tensor, metadata: str) -> bytes:
    """Return an ONNX file of float32 with weights and activations as 8-bit integers.

    Pairs of QuantizeLinear and DequantizeLinear stand around each operator; runtimes fuse them into integer kernels.
    Weights have a scale for each output channel. They keep to 7 bits, because processors without the VNNI instructions
    add pairs of products in 16 bits, which 8-bit weights make overflow. Activations are unsigned, from the least to
    the largest value that calibration saw.

    Args:
        content: The ONNX file.
        calibration: (N, C, H, W) float32, as the file takes them.
        metadata: The text of the metadata of the new file.
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
    quantized: bytes = model.SerializeToString(deterministic=True)
    return quantized


def check_agreement(comparison: Comparison, least: float) -> None:
    """Check that an int8 model predicts often enough what the float32 model does.

    Raises:
        InputError: It does not.
    """
    if comparison.agreement < least:
        raise InputError(
            f"the int8 model disagrees: it predicts what the float32 model does on {percent(comparison.agreement)} "
            f"of {comparison.images:,} other images of the pool, less than {percent(least)}; nothing was kept "
            "(--min-agreement sets another share)"
        )


def images_per_second(classifiers: Sequence[Classifier], images: Tensor) -> list[float]:
    """Return how fast classifiers answer for a batch of images, timed in turn so that other work disturbs all alike."""
    for classify in classifiers:
        classify(images)  # the first call pays for the set-up
    seconds = [0.0 for _ in classifiers]
    rounds = 0
    while min(seconds) < _SECONDS_OF_TIMING:
        for index, classify in enumerate(classifiers):
            started = time.perf_counter()
            classify(images)
            seconds[index] += time.perf_counter() - started
        rounds += 1
    return [rounds * len(images) / each for each in seconds]
