"""What `distill --until-settled` saves and costs: runs of the default method with and without it.

    python -m benchmarks.settled                                                        digits, a new teacher
    python -m benchmarks.settled --data folder:FOLDER --teacher FILE --seeds 3 --name cifar10
    python -m benchmarks.settled --data folder:FOLDER --model wrn40_2 --teacher-epochs 60 --set epochs=100 --name long

FOLDER has train/ and test/ of labelled images. Finished runs in `--directory` are reused. Writes
`benchmarks/results/settled-NAME.csv`: a row for each run.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_machine, print_machine, print_table, write_results
from benchmarks.results_page import RESULTS
from gapssg.runs.results.distillation import DistillResult

KINDS = {"all epochs": [], "until settled": ["--until-settled"]}


def main() -> None:
    """Make the missing runs, print what was saved and lost, write CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--teacher", type=Path, help="model file; by default a new --model is trained")
    parser.add_argument("--model", default="wrn16_2")
    parser.add_argument("--teacher-epochs", type=int, default=20)
    parser.add_argument("--student", default="wrn16_1")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of distill")
    parser.add_argument("--name", default="digits", help="of the CSV file")
    parser.add_argument("--directory", type=Path, default=Path("runs/settled"))
    arguments = parser.parse_args()
    folder = arguments.directory / arguments.name
    teacher = arguments.teacher or folder / "teacher" / "model.safetensors"
    if not teacher.exists():
        options = ["--data", arguments.data, "--model", arguments.model, "--epochs", str(arguments.teacher_epochs)]
        run("pretrain-teacher", *options, "--batch-size", "64", "--overwrite", "--output", str(teacher.parent))
    rows = [
        row_of(kind, seed, folder / f"{kind} {seed}".replace(" ", "-"), teacher, arguments)
        for seed in range(arguments.seeds)
        for kind in KINDS
    ]
    machine = describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print_machine(machine)
    print_table("distill --until-settled", list(rows[0]), [list(row.values()) for row in rows])
    full, settled = ([row for row in rows if row["kind"] == kind] for kind in KINDS)
    saved = 1 - sum(row["tflop"] for row in settled) / sum(row["tflop"] for row in full)
    lost = statistics.mean(row["top1"] for row in full) - statistics.mean(row["top1"] for row in settled)
    print(f"\nsaves {saved:.1%} of the operations and costs {100 * lost:.2f} points of top-1 accuracy")
    del machine["threads"]  # of this process; a run that was made earlier may have had others
    write_results(RESULTS / f"settled-{arguments.name}.csv", rows, machine)


def row_of(kind: str, seed: int, output: Path, teacher: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Make a run, unless that is done; return its row."""
    if not (output / "result.json").exists():
        changes = [word for value in arguments.set for word in ("--set", value)]
        words = ["--teacher", str(teacher), "--student", arguments.student, "--eval-data", arguments.data]
        words += ["--seed", str(seed), *KINDS[kind], *changes, "--overwrite", "--output", str(output)]
        run("distill", *words)
    result = DistillResult.load(output)
    settling = result.settling
    return {
        **{"data": result.data.partition(":")[0] if result.data else None, "teacher": result.teacher.architecture},
        **{"student": result.student.architecture, "settings": " ".join(arguments.set), "seed": seed, "kind": kind},
        **{"epochs": result.epochs, "settled_after": None if settling is None else settling.settled_after},
        **{"top1": result.student.top1, "teacher_top1": result.teacher.top1, "tflop": (result.flops or 0) / 1e12},
        "seconds": result.timing.total,
    }


def run(*words: str) -> None:
    """Run a command, whose result stays in its directory."""
    subprocess.run([sys.executable, "-m", "gapssg", *words, "--quiet"], check=True)


if __name__ == "__main__":
    main()
