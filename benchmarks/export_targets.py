"""All targets of `gapssg export` for one model: outcome, size, agreement, accuracy, and the speed on one processor.

    taskset -c 0 python -m benchmarks.export_targets --model quickstart/student --data digits

exports a run to every target whose packages are installed, in float32 and, where it can, in int8, and merges the rows
into `benchmarks/results/export-targets.csv`: targets whose packages need another environment are added by running it
there. Times are processor time, which other programs hardly change; `taskset` gives each runtime one processor, of
which they otherwise take different numbers.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.export import exported, has_packages
from benchmarks.machine import Step, describe_machine, print_machine, print_table, write_rows
from gapssg import ExportSettings, load_model
from gapssg.core.runtime import Runtime
from gapssg.data.image_set import ImageSet
from gapssg.data.settings import DataSettings
from gapssg.evaluation.metrics import agreement, top_k_accuracy
from gapssg.evaluation.real_images import read_test_images
from gapssg.export.formats import Classifier, load_format, without_gradients
from gapssg.export.settings import FORMAT_NAMES
from gapssg.export.verify import Examiner
from gapssg.models.frozen import frozen
from gapssg.models.model_path import model_file
from gapssg.runs.directory import SilentDisplay

_TABLE = Path(__file__).parent / "results" / "export-targets.csv"
_ORDER = ("pytorch", *FORMAT_NAMES)
_CALLS = {1: 500, 64: 30}  # how often so many images are timed


def main() -> None:
    """Measure, print a table and merge the rows into the CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a run, whose pool calibrates int8")
    parser.add_argument("--data", required=True)
    given = parser.parse_args()
    machine = {"load": os.getloadavg()[0], **describe_machine(torch.device("cpu"))}  # the load of other programs
    print_machine(machine)
    settings = ExportSettings(model=given.model, to="onnx", fold_normalization=True)
    model = load_model(given.model)
    test = read_test_images(DataSettings(name=given.data), model, SilentDisplay())
    examiner = Examiner(model, settings, Runtime(torch.device("cpu"), "fp32", compiled=False, seed=settings.seed))
    rows = [row | machine for row in _rows(examiner, test)]
    print_table("targets", list(rows[0]), [list(row.values()) for row in rows])
    write_rows(_TABLE, merged(rows, _TABLE))


def _rows(examiner: Examiner, test: ImageSet) -> Iterator[dict[str, Any]]:
    """Yield the figures of the model in PyTorch and of every export."""
    path = examiner.settings.model
    with frozen(examiner.exported_module()) as module:
        facts: dict[str, Any] = {"target": "pytorch", "precision": "float32", "packages": f"torch {torch.__version__}"}
        facts |= {"outcome": "the model itself", "bytes": model_file(path).stat().st_size}
        yield facts | _figures(without_gradients(module), examiner, test)
    for to in FORMAT_NAMES:
        target = load_format(to)
        if target.needs_pool or not has_packages(to):  # images are no model
            continue
        for precision in ("float32", "int8") if target.quantizer else ("float32",):
            int8 = {"enabled": precision == "int8", "min_agreement": 0}
            files, result = exported(ExportSettings(model=path, to=to, fold_normalization=True, int8=int8))
            versions = {name: result.versions[name].partition("-")[0] for name in target.packages or ["torch"]}
            packages = ", ".join(map(" ".join, versions.items()))
            facts = {"target": to, "precision": precision, "packages": packages}
            facts |= {"outcome": "verified" if result.verification else "not verified", "bytes": result.bytes}
            yield facts | _figures(target.load and target.load(files), examiner, test)


def _figures(classify: Classifier | None, examiner: Examiner, test: ImageSet) -> dict[str, float | None]:
    """Return agreement, accuracy and speed; all are None of what nothing here can run."""
    if classify is None:
        return dict.fromkeys(("agreement", "top1", "ms", "images_per_second"))
    logits = examiner.logits(classify, test.images)
    batches = {count: examiner.inputs(test.images[:count]) for count in _CALLS}
    one, many = (_median_seconds(partial(classify, batches[count]), calls) for count, calls in _CALLS.items())
    return {
        "agreement": agreement(examiner.model_logits(test.images), logits),
        "top1": top_k_accuracy(logits, test.labels, 1),
        "ms": 1000 * one,
        "images_per_second": len(batches[64]) / many,
    }


def _median_seconds(step: Step, calls: int) -> float:
    """Return the median processor time of a call."""
    seconds = []
    for _ in range(calls):
        started = time.process_time()
        step()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def merged(rows: Sequence[dict[str, Any]], table: Path) -> list[dict[str, Any]]:
    """Return the rows of an earlier table, replaced by these of the same target and precision."""
    earlier = list(csv.DictReader(table.open(newline=""))) if table.exists() else []
    cells = {(_ORDER.index(row["target"]), row["precision"]): row for row in [*earlier, *rows]}
    return [cells[key] for key in sorted(cells)]


if __name__ == "__main__":
    main()
