"""What int8 without data costs a model: formats, sizes, accuracy, agreement and images/s.

    python -m benchmarks.export --model quickstart/teacher/model.safetensors --pool quickstart/student --data digits

writes `benchmarks/results/export-NAME.csv`, where NAME is `--name`. Only the pool decides what is quantised; the real
images measure it. Formats whose packages are missing are left out. `--compare-biases` adds a row to each of ONNX
without `--max-drop`, with the biases as onnxruntime quantised them.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.machine import describe_machine, print_machine, print_table, write_results
from gapssg import ExportSettings, export_model, load_model
from gapssg.core.runtime import Runtime, to_unit_range
from gapssg.data.image_set import ImageSet
from gapssg.data.settings import DataSettings
from gapssg.evaluation.metrics import agreement, top_k_accuracy
from gapssg.evaluation.real_images import read_test_images
from gapssg.export.formats import ITSELF, Files, load_format
from gapssg.export.quantize import draw_images
from gapssg.export.settings import FORMAT_NAMES
from gapssg.export.verify import Examiner
from gapssg.runs.directory import SilentDisplay, pool_shards
from gapssg.runs.results.export import ExportResult

_BATCH = 250


def main() -> None:
    """Measure, print a table and write the CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, nargs="+")
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--name", default="teacher")
    parser.add_argument("--formats", nargs="+", default=[name for name in FORMAT_NAMES if load_format(name).quantizer])
    parser.add_argument("--max-drop", type=float, nargs="*", default=[], help="percentage points of agreement")
    parser.add_argument("--seeds", type=int, default=1, help="draws of the calibration images")
    parser.add_argument("--compare-biases", action="store_true")
    given = parser.parse_args()
    machine = describe_machine(torch.device("cpu"))
    print_machine(machine)
    formats = [to for to in given.formats if has_packages(to)]
    rows = []
    for model, to, seed in itertools.product(given.model, formats, range(given.seeds)):
        test = read_test_images(DataSettings(name=given.data), load_model(model), SilentDisplay())
        for most in [None, *given.max_drop]:
            int8 = {"enabled": True, "pool": given.pool, "max_drop_points": most, "min_agreement": 0}
            settings = ExportSettings(model=model, to=to, fold_normalization=True, int8=int8, seed=seed)
            rows += _rows(settings, test, given.compare_biases and to == "onnx" and most is None)
    print_table("int8 without data", list(rows[0]), [list(row.values()) for row in rows])
    write_results(Path(__file__).parent / "results" / f"export-{given.name}.csv", rows, machine)


def has_packages(to: str) -> bool:
    """Return whether the packages of a format are installed, and say so if not."""
    missing = [name for name in load_format(to).packages if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{to}: left out, because {missing[0]} is not installed")
    return not missing


def _rows(settings: ExportSettings, test: ImageSet, compares_biases: bool) -> list[dict[str, Any]]:
    files, result = exported(settings)
    assert result.int8 and result.timing  # the settings ask for int8
    runtime = Runtime(torch.device("cpu"), "fp32", compiled=False, seed=settings.seed)
    model = load_model(settings.model)
    shards = pool_shards(settings.int8.pool or settings.model)
    pool = draw_images(shards, model.card, settings.int8.calibration_images, runtime)
    before = Examiner(model, settings, runtime)
    before_pool, before_test = before.model_logits(pool.held_out), before.model_logits(test.images)
    row = {
        "format": settings.to,
        "architecture": result.model.architecture,
        "seed": settings.seed,
        "max_drop": settings.int8.max_drop_points,
        "float_layers": len(result.int8.float_layers),
        "bytes_float32": result.int8.bytes.float32,
        "top1_float32": top_k_accuracy(before_test, test.labels, 1),
    }
    biases = "corrected" if result.int8.corrected_biases else ""
    variants: list[tuple[str, Files, float | None]] = [(biases, files, result.timing.images_per_second.int8)]
    if compares_biases:
        with mock.patch("gapssg.export.formats.onnx.correct_biases"):
            variants.insert(0, ("", exported(settings)[0], None))
    rows = []
    for biases, variant, rate in variants:
        on_pool, on_test = (_logits(settings.to, variant, images) for images in (pool.held_out, test.images))
        rows.append(
            row
            | {
                "biases": biases,
                "bytes": sum(map(len, variant.values())),
                "top1": top_k_accuracy(on_test, test.labels, 1),
                "agreement_pool": agreement(before_pool, on_pool),
                "agreement_test": agreement(before_test, on_test),
                "error_test": (on_test - before_test).square().mean().sqrt().item(),
                "images_per_second_float32": result.timing.images_per_second.float32,
                "images_per_second": rate,
            }
        )
    return rows


def exported(settings: ExportSettings) -> tuple[Files, ExportResult]:
    """Return the files of an export and its result."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "model"
        result = export_model(settings, output)
        if output.is_file():
            return {ITSELF: output.read_bytes()}, result
        paths = sorted(path for path in output.rglob("*") if path.is_file())
        return {path.relative_to(output).as_posix(): path.read_bytes() for path in paths}, result


def _logits(to: str, files: Files, images: Tensor) -> Tensor:
    load = load_format(to).load
    assert load  # every format with int8 can be run
    classify = load(files)
    return torch.cat([classify(to_unit_range(batch)) for batch in torch.split(images, _BATCH)])


if __name__ == "__main__":
    main()
