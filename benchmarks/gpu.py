"""All benchmarks for a GPU in resumable stages, most important first; finished stages are skipped.

    python -m benchmarks.gpu --data cifar10-jpeg --directory runs/gpu                        everything
    python -m benchmarks.gpu --data cifar10-jpeg --stages teacher published --resnet34       the published procedure
    python -m benchmarks.gpu --data cifar10-jpeg --stages strangers tenth --jobs 12          tables, runs side by side

Stages that are timed run alone; the later ones share the GPU (`--jobs` at once), so their seconds
say little. Each stage writes a log to the directory. Interrupted runs are resumed by the next call.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.machine import describe_machine, print_machine, print_table, write_results
from benchmarks.no_batch_norm import TEACHERS
from benchmarks.strangers_pairs import PAIRS as STRANGERS
from benchmarks.tenth import ABLATION, METHODS
from gapssg.runs.checkpoint import has_checkpoint
from gapssg.runs.results.distillation import DistillResult, load_training_result

PAIRS = {"wrn40_2": "wrn16_1", "resnet34": "mobilenetv2"}
TEACHER_EPOCHS = 30
"""A published teacher takes 200 epochs; one cycle reaches nearly the same accuracy in fewer."""
ALONE = ("numerics", "smoke", "steps", "profile", "growth", "teacher", "published", "fast", "procedural")
SHARED = ("tenth", "curve", "ablation", "strangers", "no_batch_norm")
PROCEDURAL = f"method.procedural_share={1 / 3}"
CURVE = ("gapssg-fast+procedural-third", "gapssg-fast", "gapssg")
"""The methods whose accuracy is measured against work."""
Command = list[str]


class Reached(NamedTuple):
    """Accuracy and duration of a run."""

    run: str
    pflop: float | None
    seconds: int
    synthesis_seconds: int | None
    distillation_seconds: int | None
    top1: float | None


def main() -> None:
    """Run the unfinished stages, and print the accuracies of the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train/ and test/ of CIFAR-10 images")
    parser.add_argument("--directory", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--stages", nargs="*", choices=(*ALONE, *SHARED), default=(*ALONE, *SHARED))
    parser.add_argument("--jobs", type=int, default=8, help="runs at once of the stages that share the GPU")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--resnet34", action="store_true", help="also ResNet-34 to MobileNetV2")
    arguments = parser.parse_args()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        sys.exit("no GPU is available; use --device cpu to try the script")
    directory: Path = arguments.directory
    directory.mkdir(parents=True, exist_ok=True)
    machine = describe_machine(torch.device(arguments.device))
    print_machine(machine)
    teachers = list(PAIRS)[: 2 if arguments.resnet34 else 1]
    failed = []
    in_turn = [*commands_alone(directory, arguments.data, teachers, arguments.device)]
    if arguments.data:
        in_turn += commands_of_cells(directory, arguments.data, arguments.seeds, arguments.jobs)
    for name, command in in_turn:
        if name.split("-")[0] in arguments.stages and not run_stage(name, command, directory):
            failed.append(name)
    together = {
        name: command
        for name, command in commands_together(directory, arguments.data, arguments.seeds)
        if name.split("-")[0] in arguments.stages
    }
    with ThreadPoolExecutor(arguments.jobs) as pool:
        done = list(pool.map(lambda name: run_stage(name, together[name], directory), together))
    failed += [name for name, succeeded in zip(together, done, strict=True) if not succeeded]
    rows = [reached(file.parent) for file in sorted(directory.glob("*/result.json"))]
    print_table("CIFAR-10 (JPEG)", Reached._fields, rows)
    if rows:
        write_results(directory / "gpu-cifar10.csv", [row._asdict() for row in rows], machine)
    sys.exit(f"failed: {', '.join(failed)}; see the logs in {directory}" if failed else 0)


def commands_alone(
    directory: Path, data: Path | None, teachers: list[str], device: str
) -> Iterator[tuple[str, Command]]:
    """Yield name and command of each stage that has the GPU to itself."""
    python, on = [sys.executable, "-m"], ["--device", device]
    yield "numerics", [*python, "pytest", "-q", "tests/test_cuda.py", "tests/core", "tests/training/test_numerics.py"]
    yield "smoke", [*python, "gapssg", "quickstart", "--output", str(directory / "quickstart"), "--overwrite", *on]
    yield "steps", [*python, "benchmarks.steps", *on, "--rounds", "9", "--output", str(directory / "gpu-steps.csv")]
    yield "profile", [*python, "benchmarks.gpu_profile", "--compile", "--output", str(directory / "gpu-profile.csv")]
    yield "growth", [*python, "benchmarks.growth", *on, "--output", str(directory)]
    if data is None:
        return
    images = f"folder:{data}"
    for teacher in teachers:
        student, file = PAIRS[teacher], directory / f"teacher-{teacher}" / "model.safetensors"
        training = ["pretrain-teacher", "--model", teacher, "--data", images, "--epochs", str(TEACHER_EPOCHS)]
        distillation = ["distill", "--teacher", str(file), "--student", student, "--eval-data", images]
        distillation += ["--set", "evaluate_every=20", "--no-samples"]
        for name, command in {
            f"teacher-{teacher}": training,
            f"published-{teacher}-{student}": [*distillation, "--recipe", "published", "--compile"],
            # About a tenth of the work of the published run.
            f"fast-{teacher}-{student}": [*distillation, "--epochs", "480"],
            f"procedural-{teacher}-{student}": [*distillation, "--epochs", "435", "--set", PROCEDURAL],
        }.items():
            yield name, resumable(directory / name, [*command, *on])


def resumable(run: Path, command: Command) -> Command:
    """Return the command of a run, or that which resumes it."""
    gapssg = [sys.executable, "-m", "gapssg"]
    if has_checkpoint(run):
        return [*gapssg, command[0], "--resume", str(run)]
    return [*gapssg, *command, "--output", str(run), "--overwrite"]


def commands_together(directory: Path, data: Path | None, seeds: int) -> Iterator[tuple[str, Command]]:
    """Yield name and command of each stage that may share the GPU."""
    python = [sys.executable, "-m"]
    for pair in STRANGERS:
        given = ["--cifar10", str(data)] if data else []
        where = ["--directory", str(directory / "strangers"), "--output", str(directory / f"strangers-{pair}.csv")]
        yield (
            f"strangers-{pair}",
            [*python, "benchmarks.strangers", *given, *where, "--pairs", pair, "--seeds", str(seeds)],
        )
    if data is None:
        return
    for teacher in TEACHERS:
        where = [
            "--directory",
            str(directory / "no_batch_norm"),
            "--output",
            str(directory / f"no_batch_norm-{teacher}.csv"),
        ]
        options = ["--cifar10", str(data), "--teachers", teacher, "--seeds", str(seeds)]
        yield f"no_batch_norm-{teacher}", [*python, "benchmarks.no_batch_norm", *options, *where]


def commands_of_cells(directory: Path, data: Path, seeds: int, jobs: int) -> Iterator[tuple[str, Command]]:
    """Yield name and command of each stage that makes `jobs` runs at once by itself."""
    tenth = [sys.executable, "-m", "benchmarks.tenth", "--data", f"folder:{data}"]
    tenth += ["--directory", str(directory / "tenth"), "--jobs", str(jobs), "--seeds", str(seeds)]
    for stage, methods, budgets in (
        ("tenth", METHODS, ["100", "300"]),
        ("curve", CURVE, ["100", "300", "1000"]),
        ("ablation", ABLATION, ["50"]),
    ):
        yield stage, [*tenth, "--output", str(directory / f"{stage}.csv"), "--methods", *methods, "--budgets", *budgets]


def reached(run: Path) -> Reached:
    """Return accuracy and duration of a finished run."""
    result = load_training_result(run)
    seconds, top1 = round(result.timing.total), result.model.top1
    if not isinstance(result, DistillResult):
        return Reached(run.name, None, seconds, None, None, top1)
    synthesis, distillation = round(result.timing.synthesis), round(result.timing.distillation)
    return Reached(run.name, round((result.flops or 0) / 1e15, 2), seconds, synthesis, distillation, top1)


def run_stage(name: str, command: Command, directory: Path) -> bool:
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
