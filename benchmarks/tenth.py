"""All methods within the same budget: CIFAR-10 (JPEG), WRN-16-2 to WRN-16-1, at 100 and 300 TFLOP.

    python -m benchmarks.tenth --data folder:cifar10-jpeg
    python -m benchmarks.tenth --data folder:cifar10-jpeg --methods gapssg-fast nayer --budgets 100 --seeds 1
    python -m benchmarks.tenth --data folder:cifar10-jpeg --methods gapssg-fast+sgd --budgets 50      an ablation
    python -m benchmarks.tenth --data folder:cifar10-jpeg --jobs 12         runs side by side, for a GPU

The teacher is that of the recipe `cifar-reduced`. A method has the settings in `METHODS`, the student's optimizer of
the default method, and as many epochs as the budget allows, by the FLOPs in teacher and student (`Work.flops`, without
the half percent of Muon, which gapssg adds). Its learning rate is selected from `RATES` by accuracy on 5,000 training
images (never on test images) with seed 0, for the lowest budget. The reported result is the top-1 on the test images
after the last epoch. Each cell is a process of its own. Existing cells of the directory are reused, and interrupted
runs are resumed; `seconds` are those of synthesis and distillation. Without any methods, only the teacher is trained.
RESULTS.md shows `--output benchmarks/results/tenth.csv`.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks.budget import settings_within
from benchmarks.machine import describe_machine, print_table, write_rows
from benchmarks.results_page import RESULTS
from gapssg import DistillResult, DistillSettings, InputError, PretrainSettings, distill, pretrain_teacher
from gapssg.core.augment import Normalization
from gapssg.core.runtime import Runtime
from gapssg.data.settings import DataSettings
from gapssg.evaluation.predict import score_on
from gapssg.evaluation.real_images import read_images
from gapssg.files import write_json
from gapssg.models.model_file import load_model
from gapssg.runs.checkpoint import has_checkpoint
from gapssg.runs.directory import SilentDisplay
from gapssg.settings.load import load_settings
from gapssg.settings.parts import RuntimeSettings

STUDENT = "wrn16_1"
RATES = (0.05, 0.1, 0.2)
TRIAL_RATE = 0.2
"""The best of `RATES` for `gapssg-fast`; `gapssg distill` has 0.1 unless another is given."""
SELECTION_IMAGES = 5000

_ALTERNATING = {"batch_size": 128, "method.synthesis_batch_size": 128, "method.rounds": 40}
_POOLED = {"batch_size": 128, "method.distillation_steps": 60}
METHODS: dict[str, dict[str, Any]] = {
    "gapssg-fast": {},
    "gapssg": {"batch_size": 128, "method.generator_steps": 40, "method.passes": 8},
    "nayer": {**_POOLED, "method.synthesis_batch_size": 256, "method.generator_steps": 15, "method.latent_size": 256},
    "fast": {**_POOLED, "method.generator_steps": 10},
    "cmi": {**_POOLED, "method.generator_steps": 40, "method.bank_size": 2560, "method.negatives": 1024},
    "deepinversion": {**_POOLED, "method.pixel_steps": 100},
    "dafl": {**_ALTERNATING, "method.generator_width": 64},
    "zskt": _ALTERNATING,
    "dfad": _ALTERNATING,
    "dfq": _ALTERNATING,
    "mad": _ALTERNATING,
}
"""Changes of the method's defaults for complete runs at a hundredth of the published compute."""
ABLATION: dict[str, dict[str, Any]] = {
    "gapssg-fast+nothing": {},  # at one learning rate only
    "gapssg-fast+sgd": {"optimizer.algorithm": "sgd"},
    "gapssg-fast+new-views": {"method.labelled_views": 0},
    "gapssg-fast+no-mixup": {"method.mixup": 0},
    "gapssg-fast+no-gap-terms": {"method.disagreement_weight": 0, "method.agreement_weight": 0},
    "gapssg-fast+no-statistics": {"method.statistics_weight": 0},
}
"""A method with one part taken away or changed; the part is named after the plus."""
_TRIALS: dict[str, dict[str, Any]] = {
    "mixup-1": {"method.mixup": 1.0},
    "views-8": {"method.labelled_views": 8},
    "generator-steps-8": {"method.generator_steps": 8},
    "distillation-steps-90": {"method.distillation_steps": 90},
    "passes-3": {"method.distillation_steps": 0, "method.passes": 3},
    "batch-64": {"batch_size": 64},
    "batch-256": {"batch_size": 256},
    "temperature-2": {"method.temperature": 2.0},
    "temperature-10": {"method.temperature": 10.0},
    "synthesis-batch-64": {"method.synthesis_batch_size": 64, "method.distillation_steps": 30},
    "statistics-0.3": {"method.statistics_weight": 0.3},
    "statistics-3": {"method.statistics_weight": 3.0},
    "statistics-10": {"method.statistics_weight": 10.0},
    "target-0.3": {"method.target_weight": 0.3},
    "disagreement-3": {"method.disagreement_weight": 3.0},
    "generator-rate-0.01": {"method.generator_learning_rate": 0.01},
    "generator-width-64": {"method.generator_width": 64},
    "weight-decay-1e-3": {"optimizer.weight_decay": 1e-3},
    "weight-decay-1e-4": {"optimizer.weight_decay": 1e-4},
    "warm-up-0.3": {"optimizer.warm_up": 0.3},
    "procedural-third": {"method.procedural_share": 1 / 3},
}
TRIALS = {f"gapssg-fast+{name}": changes for name, changes in _TRIALS.items()}
"""The default method with one setting changed, in search of a better one."""
VARIANTS = METHODS | ABLATION | TRIALS


def main() -> None:
    """Run the missing cells, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="`cifar10`, or `folder:PATH` with train/ and test/")
    parser.add_argument("--budgets", type=int, nargs="*", default=[100, 300], help="TFLOP")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=[*VARIANTS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path("runs/tenth"))
    parser.add_argument("--output", type=Path, help="table that is extended; by default tenth.csv of the directory")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    bench = Bench(arguments.data, arguments.directory)
    if arguments.cell:
        bench.complete(Cell.parsed(arguments.cell))
        return
    if not arguments.methods:
        return
    output = arguments.output or arguments.directory / "tenth.csv"
    check_teacher(output, bench.checksum)
    lowest = min(arguments.budgets)
    searched = {method: [Cell(method, lowest, rate, 0) for rate in rates_of(method)] for method in arguments.methods}
    each = [(budget, seed) for budget in arguments.budgets for seed in range(arguments.seeds)]
    best = {method: cells[0].rate for method, cells in searched.items() if len(cells) == 1}
    known = [Cell(method, budget, rate, seed) for method, rate in best.items() for budget, seed in each]
    bench.complete_all([*itertools.chain(*searched.values()), *known], arguments.jobs)
    best = {method: bench.best_of(cells).rate for method, cells in searched.items()}
    selected = [Cell(method, budget, rate, seed) for method, rate in best.items() for budget, seed in each]
    bench.complete_all(selected, arguments.jobs)
    cells = read_cells(arguments.directory, output, bench.checksum)
    write_rows(output, cells)
    print_summary([cell for cell in cells if cell["reported"]])


class Cell(NamedTuple):
    """A method with its learning rate, its budget in TFLOP and its seed."""

    method: str
    budget: int
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """The name of the cell's files."""
        return f"{self.method}-{self.budget}-{self.rate}-{self.seed}"

    @classmethod
    def parsed(cls, name: str) -> Cell:
        """Return the cell of this name."""
        method, budget, rate, seed = name.rsplit("-", 3)
        return cls(method, int(budget), float(rate), int(seed))


def settings_of(method: str) -> dict[str, Any]:
    """Return the settings of a method, or of one with a part taken away or changed."""
    return {"method.name": method.split("+")[0], **VARIANTS[method]}


def selected_settings(method: str, output: Path = RESULTS / "tenth.csv") -> dict[str, Any]:
    """Return the settings of a method with the learning rate that a table has selected for it.

    Raises `SystemExit` if there is none.
    """
    rows = csv.DictReader(output.open(newline=""))
    rates = {row["rate"] for row in rows if (row["method"], row["reported"]) == (method, "True")}
    if len(rates) != 1:
        raise SystemExit(f"{output} has no learning rate for {method}")
    return settings_of(method) | {"optimizer.learning_rate": float(rates.pop())}


def rates_of(method: str) -> tuple[float, ...]:
    """Return the learning rates that a method is tried with: one, if a part of `gapssg-fast` is changed."""
    return RATES if method in METHODS else (TRIAL_RATE,)


def resumed_or_new(settings: DistillSettings, run: Path) -> DistillResult:
    """Resume a run, or restart it if it cannot be resumed, as after a change of the settings."""
    if has_checkpoint(run):
        try:
            return distill(settings, run, resume=True)
        except InputError as error:
            print(f"restarting {run}: {error}", file=sys.stderr)
    return distill(settings, run, overwrite=True)


def check_teacher(output: Path, teacher: str) -> None:
    """Raise `SystemExit` if an earlier table is of another teacher, whose rows would be lost."""
    if output.exists() and any(row["teacher"] != teacher for row in csv.DictReader(output.open(newline=""))):
        raise SystemExit(f"{output} has cells of another teacher; name another --output")


def read_cells(directory: Path, output: Path, teacher: str) -> list[dict[str, Any]]:
    """Return the cells of a directory with this teacher and those of an earlier table, perhaps of other machines.

    A cell is reported if its learning rate is the best of all that its method is tried with.
    """
    rows = list(csv.DictReader(output.open(newline=""))) if output.exists() else []
    numbers = ("budget", "rate", "seed", "selection", "top1", "seconds")
    found = [row | {name: float(row[name]) for name in numbers} for row in rows]
    own_cells = [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]
    found += [cell for cell in own_cells if cell.get("teacher") == teacher]
    cells = {tuple(cell[name] for name in ("method", "budget", "rate", "seed")): cell for cell in found}
    for method in {key[0] for key in cells}:
        own = [cell for key, cell in cells.items() if key[0] == method]
        lowest = min(cell["budget"] for cell in own)
        tried = [cell for cell in own if (cell["budget"], cell["seed"]) == (lowest, 0)]
        is_complete = {cell["rate"] for cell in tried} >= set(rates_of(method))
        best = max(tried, key=lambda cell: cell["selection"])["rate"] if is_complete else None
        for cell in own:
            cell["reported"] = cell["rate"] == best
    return [cells[key] for key in sorted(cells)]


class Bench:
    """The folder with the teacher and the cells."""

    def __init__(self, data: str, directory: Path) -> None:
        """Train the teacher if necessary."""
        self.data, self.directory = data, directory
        self.teacher = directory / "teacher" / "model.safetensors"
        if not self.teacher.exists():
            options = {"data.name": ("--data", data)}
            settings = load_settings(
                PretrainSettings, section="pretrain-teacher", recipe="cifar-reduced", options=options
            )
            pretrain_teacher(settings, self.teacher.parent, overwrite=True)
        self.checksum = load_model(self.teacher).sha256[:12]

    def complete_all(self, cells: Iterable[Cell], jobs: int) -> None:
        """Compute the missing cells, `jobs` at once, those of the largest budgets first."""
        missing = {cell for cell in cells if not self.is_complete(cell)}
        command = [sys.executable, "-m", "benchmarks.tenth", "--data", self.data, "--directory", str(self.directory)]
        with ThreadPoolExecutor(jobs) as pool:
            order = sorted(missing, key=lambda cell: (-cell.budget, cell.seed, cell))
            ended = list(pool.map(lambda cell: subprocess.run([*command, "--cell", cell.name], check=False), order))
        failed = [cell.name for cell, process in zip(order, ended, strict=True) if process.returncode]
        if failed:
            raise SystemExit(f"failed: {', '.join(failed)}")

    def complete(self, cell: Cell) -> None:
        """Distil a student, and write its results."""
        run = self.directory / cell.name
        given = {"seed": cell.seed, "optimizer.learning_rate": cell.rate, "samples": False, **settings_of(cell.method)}
        settings = settings_within(cell.budget, self.teacher, STUDENT, given)
        result = resumed_or_new(settings, run)
        found = cell._asdict() | {
            "teacher": self.checksum,
            "epochs": settings.epochs,
            "tflop": (result.flops or 0) / 1e12,
            "top1": self.top1(run, "test", None),
            "selection": self.top1(run, "train", SELECTION_IMAGES),
            "agreement": result.student.agreement,
            "failures": "; ".join(result.failures),
            "seconds": round(result.timing.synthesis + result.timing.distillation),
            **describe_machine(Runtime.from_settings(RuntimeSettings(), 0).device),
        }
        write_json(self.file(cell), found)
        print(f"{cell.name}: {found['top1']:.2%} in {found['seconds']} s", flush=True)

    def file(self, cell: Cell) -> Path:
        """Return the file of a cell's results."""
        return self.directory / f"{cell.name}.json"

    def is_complete(self, cell: Cell) -> bool:
        """Tell whether there are results of a cell with this teacher."""
        file = self.file(cell)
        return file.exists() and json.loads(file.read_text()).get("teacher") == self.checksum

    def best_of(self, cells: Iterable[Cell]) -> Cell:
        """Return the complete cell with the highest accuracy on the images for selection."""
        return max(cells, key=lambda cell: json.loads(self.file(cell).read_text())["selection"])

    def top1(self, run: Path, split: Literal["train", "test"], images: int | None) -> float:
        """Return the student's accuracy on (at most `images` of) a split of the real images."""
        student = load_model(run / "student.safetensors")
        runtime = Runtime.from_settings(RuntimeSettings(), seed=0)
        normalization = Normalization.from_statistics(student.card.mean, student.card.deviation, runtime.device)
        found = read_images(DataSettings(name=self.data, images=images), split, SilentDisplay()).to(runtime.device)
        return score_on(found, runtime.place(student.module), normalization, runtime).top1


def print_summary(cells: list[dict[str, Any]]) -> None:
    """Print one row per method and budget: mean and standard deviation over the seeds."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["method"], cell["budget"]), []).append(cell)
    rows = []
    for (method, budget), group in groups.items():
        accuracies = [cell["top1"] for cell in group]
        spread = f"{statistics.stdev(accuracies):.2%}" if len(accuracies) > 1 else "-"
        minutes = statistics.mean(cell["seconds"] for cell in group) / 60
        rows.append((method, budget, group[0]["rate"], f"{statistics.mean(accuracies):.2%}", spread, f"{minutes:.0f}"))
    print_table("top-1 by compute budget", ("method", "TFLOP", "learning rate", "mean", "std", "minutes"), rows)


if __name__ == "__main__":
    main()
