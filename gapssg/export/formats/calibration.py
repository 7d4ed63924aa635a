"""Images of a run's pool, to calibrate the quantisation tools of other programs. Contains no model."""

from __future__ import annotations

import io
import json

import numpy
from PIL import Image

from gapssg.export.formats import Calibration, Files, Format, Subject
from gapssg.runs.directory import encode_png


def write_calibration(subject: Subject) -> Files:
    """Return `calibration.npz`, `calibration.json` and, of images with one or three channels, PNG files.

    The arrays are `images` (N, C, H, W) float32, the inputs of the exported model, and `targets` (N,) int64.
    """
    images = subject.calibration
    assert images is not None  # the format needs the pool
    arrays = io.BytesIO()
    numpy.savez_compressed(arrays, images=images.inputs.numpy(), targets=images.targets.numpy())
    pictures = _pictures(images)
    input_of = "x / 255" if subject.metadata.normalization_folded else "(x / 255 - mean) / deviation"
    about = {
        **subject.metadata.model_dump(mode="json"),
        "layout": "NCHW",
        "arrays": "calibration.npz: images, float32, inputs of the model; targets, int64, class indices",
        "pictures": f"8-bit values x by channel; the input of the model is {input_of}" if pictures else None,
        "targets": dict(zip(pictures, images.targets.tolist(), strict=True)) if pictures else None,
    }
    return {
        "calibration.npz": arrays.getvalue(),
        "calibration.json": json.dumps(about, indent=1, sort_keys=True).encode(),
        **pictures,
    }


def _pictures(images: Calibration) -> Files:
    """Return PNG files by path; none for images that are neither grey nor RGB, which PNG files cannot hold."""
    if images.pixels.shape[1] not in (1, 3):
        return {}
    pixels = images.pixels.permute(0, 2, 3, 1).squeeze(3).contiguous().numpy()
    return {f"images/{index:06d}.png": encode_png(Image.fromarray(each)) for index, each in enumerate(pixels)}


FORMAT = Format(write_calibration, None, extra="", is_folder=True, needs_pool=True)
