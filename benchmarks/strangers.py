"""The default and the other methods on teachers like those that users train.

    python -m benchmarks.strangers --cifar10 FOLDER                      every pair, the default method, 3 seeds
    python -m benchmarks.strangers --pairs digits-grey28 --methods dafl --seeds 1
    python -m benchmarks.strangers --pairs letters-grey16 --student wrn16_1 --label larger-student
    python -m benchmarks.strangers --pairs letters-rgb32 --methods gapssg-fast fast nayer --tflop 114   one budget

Each pair has a teacher from a plain training loop, the same student trained on the real images (the ceiling), and
students distilled by `gapssg distill --teacher T --student S` without further settings. The metric is the share of the
gap between chance and the ceiling that a student recovers in balanced accuracy (column `way`). Existing cells are
reused, so an interruption costs at most one cell. All cells are merged into `benchmarks/results/strangers.csv`, so that
several machines can fill it. A row names the commit that produced it. RESULTS.md shows the default of this table, and
earlier trials of `strangers-earlier.csv`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.budget import parsed_settings, settings_within
from benchmarks.machine import commit, print_table, write_rows
from benchmarks.strangers_data import Split
from benchmarks.strangers_pairs import PAIRS, Pair, Training, train_model_file
from benchmarks.tenth import selected_settings
from gapssg.core.augment import Normalization
from gapssg.core.runtime import Runtime
from gapssg.data.image_set import ImageSet
from gapssg.evaluation.predict import predict
from gapssg.models.model_file import load_model
from gapssg.settings.parts import RuntimeSettings

CEILING = "real images"
"""The method name of the student that is trained on the real images."""

CEILING_RATES = (0.1, 0.05, 0.025)
CEILING_STEPS = 1920
"""As many as the student of the default method has; whole epochs."""
SNAPSHOT_EVERY = 3
"""Epochs between snapshots of a student, which change nothing else."""
_MOST_COMPARED = 2000
KEY = ("pair", "method", "seed")
"""The columns that identify a cell."""


def main() -> None:
    """Compute the missing cells, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, help="folder with train/ and test/ of CIFAR-10 images")
    parser.add_argument("--pairs", nargs="*", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--methods", nargs="*", default=["default"], help="method names; `default` passes no --method")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of distill")
    parser.add_argument("--student", help="architecture of the student instead of the pair's own")
    parser.add_argument("--label", help="method name in the table for these settings or this student")
    parser.add_argument("--directory", type=Path, default=Path("runs/strangers"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/strangers.csv"))
    parser.add_argument("--tflop", type=float, help="compute budget; settings as benchmarks.tenth selected them")
    arguments = parser.parse_args()
    selected = [selected_settings(method) if arguments.tflop else {} for method in arguments.methods]
    for name in arguments.pairs:
        place = Place(name, arguments.directory / name, arguments.cifar10)
        place.teacher()
        place.ceiling()
        for method, given in zip(arguments.methods, selected, strict=True):
            label, settings = arguments.label or method, arguments.set
            if arguments.tflop:
                label = arguments.label or f"{method}-{arguments.tflop:g}-tflop"
                settings = place.settings_within(arguments.tflop, given | parsed_settings(settings), arguments.student)
            for seed in range(arguments.seeds):
                place.student(method, seed, settings, label, arguments.student)
    cells = read_cells(arguments.directory, arguments.output)
    write_rows(arguments.output, cells)
    print_summary(cells)


class Place:
    """The folder of a pair."""

    def __init__(self, name: str, folder: Path, cifar10: Path | None) -> None:
        """Use `folder` for the pair `name`."""
        self.name, self.pair, self.folder, self.cifar10 = name, PAIRS[name], folder, cifar10
        self.folder.mkdir(parents=True, exist_ok=True)

    @cache  # noqa: B019 - a place lives as long as the program
    def images(self, split: Split) -> ImageSet:
        """Return a split, on the GPU if there is one."""
        device = Runtime.from_settings(RuntimeSettings(), 0).device
        return self.pair.source.make(split, self.cifar10).to(device)

    def teacher(self) -> Path:
        """Return the teacher's file, after training it if necessary."""
        path, pair = self.folder / "teacher.safetensors", self.pair
        self._trained("teacher", path, pair.teacher, pair.training, seed=1)
        return path

    def ceiling(self) -> None:
        """Train the student on the real images at several rates and keep the best on these, unless that is done."""
        if (self.folder / f"{CEILING}-2.json").exists():
            return
        images, started = self.images("train"), time.perf_counter()
        some = images.subsample(_MOST_COMPARED)
        found = {}
        epochs = math.ceil(CEILING_STEPS * Training.batch_size / len(images))
        for rate in CEILING_RATES:
            path = self.folder / f"ceiling-{rate:g}.safetensors"
            training = Training("sgd", rate, epochs)
            train_model_file(self.pair, self.pair.student, training, images, path, seed=2)
            found[path] = (logits_of(path, some, self.pair).argmax(1) == some.labels).double().mean().item()
        best = max(found, key=lambda path: found[path])
        path = best.replace(self.folder / "ceiling.safetensors")
        self._record(CEILING, 2, path, time.perf_counter() - started, {})

    def _trained(self, method: str, path: Path, architecture: str, training: Training, seed: int) -> None:
        if not (self.folder / f"{method}-{seed}.json").exists():
            started = time.perf_counter()
            train_model_file(self.pair, architecture, training, self.images("train"), path, seed)
            self._record(method, seed, path, time.perf_counter() - started, {})

    def student(self, method: str, seed: int, settings: list[str], label: str, architecture: str | None) -> None:
        """Distil a student, the pair's own if no architecture is given, as a user would, unless that is done."""
        run = self.folder / label / str(seed)
        if (self.folder / f"{label}-{seed}.json").exists():
            return
        command = [sys.executable, "-m", "gapssg", "distill", "--teacher", str(self.teacher()), "--output", str(run)]
        command += ["--student", architecture or self.pair.student, "--seed", str(seed), "--json", "--overwrite"]
        command += ["--set", f"snapshot_every={SNAPSHOT_EVERY}"]  # for `benchmarks.estimator`
        command += [] if method == "default" else ["--method", method]
        for value in settings:
            command += ["--set", value]
        for factory in self.pair.factories:
            command += ["--model-factory", factory]
        started = time.perf_counter()
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - started
        shown = [value.replace(str(self.folder.parent), "runs/strangers") for value in settings]
        shown += [f"student={architecture}"] if architecture else []
        self._record(label, seed, run / "student.safetensors", seconds, json.loads(ended.stdout), shown)

    def settings_within(self, tflop: float, given: dict[str, Any], architecture: str | None) -> list[str]:
        """Return settings, and as many epochs as the budget allows."""
        student = architecture or self.pair.student
        found = settings_within(tflop, self.teacher(), student, given, self.pair.factories)
        shown = {name: value for name, value in given.items() if name != "method.name"} | {"epochs": found.epochs}
        return [f"{name}={value}" for name, value in shown.items()]

    def _record(
        self,
        method: str,
        seed: int,
        path: Path,
        seconds: float,
        result: dict[str, Any],
        settings: list[str] | None = None,
    ) -> None:
        images = self.images("test")
        logits = logits_of(path, images, self.pair)
        recalls = recalls_of(logits, images)
        teacher = logits_of(self.folder / "teacher.safetensors", images, self.pair)
        cell = {
            "pair": self.name,
            "method": method,
            "seed": seed,
            "top1": (logits.argmax(1) == images.labels).double().mean().item(),
            "balanced": sum(recalls) / len(recalls),
            "lowest": min(recalls),
            "classes": images.num_classes,
            "way": None,
            "agreement_printed": result.get("student", {}).get("agreement"),
            "agreement": (logits.argmax(1) == teacher.argmax(1)).double().mean().item(),
            "failures": "; ".join(result.get("failures", [])),
            "tflop": result.get("flops", 0) / 1e12 or None,
            "seconds": seconds,
            "settings": " ".join(settings or []),
            "machine": f"{where()}, torch {torch.__version__}",
            "commit": commit(),
        }
        (self.folder / f"{method}-{seed}.json").write_text(json.dumps(cell, indent=2) + "\n")
        print({key: round(cell[key], 4) for key in ("top1", "balanced", "lowest", "seconds")}, self.name, method, seed)
        sys.stdout.flush()


def where() -> str:
    """Return the GPU or the number of threads."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"


def logits_of(path: Path, images: ImageSet, pair: Pair) -> Tensor:
    """Return the logits (N, K) of a model file."""
    model = load_model(path, pair.factories)
    runtime = Runtime.from_settings(RuntimeSettings(precision="fp32"), 0)
    normalization = Normalization.from_statistics(model.card.mean, model.card.deviation, runtime.device)
    return predict(runtime.place(model.module), images.images, normalization, runtime)


def recalls_of(logits: Tensor, images: ImageSet) -> list[float]:
    """Return the accuracy of each class."""
    right = (logits.argmax(1) == images.labels).double()
    return [right[images.labels == label].mean().item() for label in range(images.num_classes)]


def read_cells(directory: Path, output: Path) -> list[dict[str, Any]]:
    """Return the cells of a directory and of an earlier table, with the recovered share where known."""
    rows = list(csv.DictReader(output.open(newline=""))) if output.exists() else []
    cells: dict[tuple[str, ...], dict[str, Any]] = {key_of(row): parsed(row) for row in rows}
    for path in directory.glob("*/*.json"):
        cell = json.loads(path.read_text())
        cells[key_of(cell)] = cell
    ceilings = {cell["pair"]: cell["balanced"] for cell in cells.values() if cell["method"] == CEILING}
    for cell in cells.values():
        chance = 1 / cell["classes"]
        if cell["pair"] in ceilings:
            cell["way"] = (cell["balanced"] - chance) / (ceilings[cell["pair"]] - chance)
    return [cells[key] for key in sorted(cells)]


def key_of(cell: dict[str, Any]) -> tuple[str, ...]:
    """Return the key of a cell."""
    return tuple(str(cell[name]) for name in KEY)


def parsed(row: dict[str, str]) -> dict[str, Any]:
    """Return a row of the table as a cell."""
    texts = {"pair", "method", "failures", "settings", "machine", "commit"}
    numbers = {name: json.loads(text or "null") for name, text in row.items() if name not in texts}
    return row | numbers


def print_summary(cells: list[dict[str, Any]]) -> None:
    """Print one row per pair and method, with means over the seeds."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["pair"], cell["method"]), []).append(cell)
    rows = []
    for (pair, method), group in groups.items():
        figures = {key: mean_of(group, key) for key in ("balanced", "lowest", "way", "agreement_printed", "agreement")}
        shown = ["-" if value is None else f"{value:.1%}" for value in figures.values()]
        failed = sum(bool(cell["failures"]) for cell in group)
        minutes = statistics.mean(cell["seconds"] for cell in group) / 60
        rows.append((pair, method, len(group), *shown, f"{failed} of {len(group)}", f"{minutes:.1f}"))
    agreements = ("agreement, synthetic", "agreement, real")
    headings = ("pair", "method", "seeds", "balanced", "lowest class", "recovered", *agreements, "FAILED", "min")
    print_table("students by pair and method", headings, rows)


def mean_of(cells: list[dict[str, Any]], key: str) -> float | None:
    """Return the mean of a column over the cells that have a value, or None."""
    values = [cell[key] for cell in cells if cell.get(key) is not None]
    return statistics.mean(values) if values else None


if __name__ == "__main__":
    main()
