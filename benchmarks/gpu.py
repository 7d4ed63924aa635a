"""All benchmarks for a GPU, most important first; finished stages are skipped.

    python -m benchmarks.gpu --data cifar10-jpeg --directory runs/gpu

The stages are a smoke test, numerics, step times and growth. With a folder of CIFAR-10 images (`train/` and `test/`)
follow a WRN-40-2 teacher and its WRN-16-1 student with the published settings; --more adds ResNet-34 to MobileNetV2.
Each stage writes a log to the directory. Interrupted runs are resumed by the next call.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.machine import describe_machine, print_machine, print_table, write_results
from gapssg.runs.results import load_training_result

PAIRS = {"wrn40_2": "wrn16_1", "resnet34": "mobilenetv2"}


class Reached(NamedTuple):
    """Accuracy and duration of a run."""

    run: str
    seconds: float
    top1: float | None


def main() -> None:
    """Run the unfinished stages, and print the accuracies of the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train/ and test/ of CIFAR-10 images")
    parser.add_argument("--directory", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--more", action="store_true", help="also distil ResNet-34 into MobileNetV2")
    arguments = parser.parse_args()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        sys.exit("no GPU is available; use --device cpu to try the script")
    directory: Path = arguments.directory
    directory.mkdir(parents=True, exist_ok=True)
    machine = describe_machine(torch.device(arguments.device))
    print_machine(machine)
    device = ["--device", arguments.device]
    module = [sys.executable, "-m"]
    stages = {
        "smoke": [*module, "gapssg", "quickstart", "--output", str(directory / "quickstart"), "--overwrite", *device],
        "numerics": [*module, "pytest", "tests/test_cuda.py", "tests/core", "tests/training/test_numerics.py"],
        "steps": [*module, "benchmarks.steps", *device, "--rounds", "9", "--output", str(directory / "steps.csv")],
        "growth": [*module, "benchmarks.growth", *device, "--output", str(directory)],
    }
    failed = [name for name, command in stages.items() if not run_stage(name, command, directory)]
    rows: list[Reached] = []
    if arguments.data:
        for teacher, student in list(PAIRS.items())[: 2 if arguments.more else 1]:
            reached, unfinished = distil_pair(teacher, student, arguments.data, directory, device)
            rows += reached
            failed += unfinished
        print_table("CIFAR-10 (JPEG), published settings", Reached._fields, rows)
        if rows:
            write_results(directory / "cifar10.csv", [row._asdict() for row in rows], machine)
    sys.exit(f"failed: {', '.join(failed)}; see the logs in {directory}" if failed else 0)


def distil_pair(
    teacher: str, student: str, data: Path, directory: Path, device: list[str]
) -> tuple[list[Reached], list[str]]:
    """Train a teacher and distil its student, or resume them; return their results and the failed runs."""
    images = f"folder:{data}"
    teacher_run, student_run = directory / teacher, directory / f"{teacher}-{student}"
    file = teacher_run / "model.safetensors"
    commands = {
        teacher_run: ["pretrain-teacher", "--model", teacher, "--data", images],
        student_run: ["distill", "--teacher", str(file), "--student", student, "--eval-data", images],
    }
    rows: list[Reached] = []
    for run, (command, *options) in commands.items():
        restart = [*options, "--recipe", "published", "--output", str(run), "--overwrite", *device]
        can_resume = (run / "checkpoint" / "latest.safetensors").exists()
        gapssg = [sys.executable, "-m", "gapssg", command]
        if not run_stage(run.name, [*gapssg, "--resume", str(run)] if can_resume else [*gapssg, *restart], directory):
            return rows, [run.name]
        result = load_training_result(run)
        rows.append(Reached(run.name, round(result.timing.total), result.model.top1))
    return rows, []


def run_stage(name: str, command: list[str], directory: Path) -> bool:
    """Run a command unless it succeeded before; return whether it succeeded."""
    done, log = directory / f"{name}.done", directory / f"{name}.log"
    if done.exists():
        return True
    started = time.monotonic()
    with log.open("a") as output:
        succeeded = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode == 0
    print(f"{name}: {'done' if succeeded else 'FAILED'} in {time.monotonic() - started:.0f} s, {log}", flush=True)
    if succeeded:
        done.touch()
    return succeeded


if __name__ == "__main__":
    main()
