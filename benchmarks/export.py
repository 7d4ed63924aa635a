"""What int8 without data costs a model: formats, sizes, accuracy, agreement and images/s.

    python -m benchmarks.export --model quickstart/teacher/model.safetensors --pool quickstart/student --data digits

writes `benchmarks/results/export-NAME.csv`, where NAME is `--name`. Only the pool decides what is quantised; the real
images measure it. Formats whose packages are missing are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_machine, print_machine, print_table, write_results
from gapssg import ExportSettings, export_model, load_model
from gapssg.core.runtime import Runtime, to_unit_range
from gapssg.data.image_set import ImageSet
from gapssg.data.settings import DataSettings
from gapssg.evaluation.metrics import agreement, top_k_accuracy
from gapssg.evaluation.real_images import read_test_images
from gapssg.export.formats import ITSELF, load_format
from gapssg.export.settings import FORMAT_NAMES
from gapssg.export.verify import Examiner
from gapssg.runs.directory import SilentDisplay

_BATCH = 250


def main() -> None:
    """Measure, print a table and write the CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--name", default="teacher")
    parser.add_argument("--formats", nargs="+", default=[name for name in FORMAT_NAMES if load_format(name).quantizer])
    parser.add_argument("--max-drop", type=float, nargs="*", default=[], help="percentage points of agreement")
    given = parser.parse_args()
    machine = describe_machine(torch.device("cpu"))
    print_machine(machine)
    test = read_test_images(DataSettings(name=given.data), load_model(given.model), SilentDisplay())
    rows = []
    for to in given.formats:
        if any(importlib.util.find_spec(package) is None for package in load_format(to).packages):
            print(f"{to}: left out, because its packages are not installed")
            continue
        for most in [None, *given.max_drop]:
            int8 = {"enabled": True, "pool": given.pool, "max_drop_points": most, "min_agreement": 0}
            rows.append(_row(ExportSettings(model=given.model, to=to, fold_normalization=True, int8=int8), test))
    print_table("int8 without data", list(rows[0]), [list(row.values()) for row in rows])
    write_results(Path(__file__).parent / "results" / f"export-{given.name}.csv", rows, machine)


def _row(settings: ExportSettings, test: ImageSet) -> dict[str, Any]:
    target = load_format(settings.to)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "model"
        result = export_model(settings, output)
        paths = sorted(output.iterdir()) if target.is_folder else [output]
        files = {path.name if target.is_folder else ITSELF: path.read_bytes() for path in paths}
    assert target.load and result.int8 and result.timing  # every format with int8 can be run
    classify = target.load(files)
    logits = torch.cat([classify(to_unit_range(batch)) for batch in torch.split(test.images, _BATCH)])
    runtime = Runtime(torch.device("cpu"), "fp32", compiled=False, seed=settings.seed)
    before = Examiner(load_model(settings.model), settings, runtime).model_logits(test.images)
    return {
        "format": settings.to,
        "architecture": result.model.architecture,
        "max_drop": settings.int8.max_drop_points,
        "float_layers": len(result.int8.float_layers),
        "bytes_float32": result.int8.bytes.float32,
        "bytes": result.int8.bytes.int8,
        "top1_float32": top_k_accuracy(before, test.labels, 1),
        "top1": top_k_accuracy(logits, test.labels, 1),
        "agreement_pool": result.int8.pool.agreement,
        "agreement_test": agreement(before, logits),
        "images_per_second_float32": result.timing.images_per_second.float32,
        "images_per_second": result.timing.images_per_second.int8,
    }


if __name__ == "__main__":
    main()
