"""Compare the accuracy of the fast path with that of the plain one: digits students over several seeds.

    python -m benchmarks.seeds                         5 seeds, float32 eager against bf16 compiled
    python -m benchmarks.seeds --fast fp32 --no-compile    compare another pair

For each seed, one student is distilled with float32 eager steps and one with the fast steps, from the same teacher and
with the settings of the recipe `digits`. The means must differ by less than the larger of the two standard deviations.
Existing runs are reused, so an interruption costs at most one run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_machine, print_machine, print_table, write_results
from benchmarks.results_page import RESULTS
from gapssg import DistillSettings, PretrainSettings, distill, pretrain_teacher
from gapssg.runs.results.distillation import DistillResult
from gapssg.settings.load import load_settings

PLAIN = {"precision": "fp32", "compile": False}


def main() -> None:
    """Run all students, print the table, write CSV; exit with 1 if the means differ by more than the deviation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--fast", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's epochs")
    parser.add_argument("--directory", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--output", type=Path, default=RESULTS / "seeds.csv")
    arguments = parser.parse_args()
    teacher = arguments.directory / "teacher" / "model.safetensors"
    if not teacher.exists():
        settings = load_settings(PretrainSettings, section="pretrain-teacher", recipe="digits")
        pretrain_teacher(settings, teacher.parent, overwrite=True)
    fast = {"precision": arguments.fast, "compile": not arguments.no_compile}
    accuracies: dict[str, list[float]] = {}
    for seed in range(arguments.seeds):
        for runtime in (PLAIN, fast):
            label = name_of(runtime)
            result = student(teacher, arguments.directory / label / str(seed), seed, runtime, arguments.epochs)
            accuracies.setdefault(label, []).append(result.student.top1 or 0.0)
            seconds = result.timing.total
            print(f"seed {seed}, {label}: {result.student.top1:.2%} in {seconds:.0f} s", flush=True)
    means = {label: statistics.mean(values) for label, values in accuracies.items()}
    spreads = {label: statistics.stdev(values) for label, values in accuracies.items()}
    difference, spread = abs(means[name_of(fast)] - means[name_of(PLAIN)]), max(spreads.values())
    machine = describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print_machine(machine)
    rows = [
        (label, f"{means[label]:.2%}", f"{spreads[label]:.2%}", ", ".join(f"{value:.2%}" for value in values))
        for label, values in accuracies.items()
    ]
    print_table(f"digits students, {arguments.seeds} seeds", ("steps", "mean", "std", "by seed"), rows)
    print(f"\nThe means differ by {difference:.2%}; the larger standard deviation is {spread:.2%}.")
    figures = [
        {"steps": label, "seed": seed, "top1": top1}
        for label, values in accuracies.items()
        for seed, top1 in enumerate(values)
    ]
    write_results(arguments.output, figures, machine)
    sys.exit(0 if difference < spread else 1)


def name_of(runtime: dict[str, Any]) -> str:
    """Return the name of a configuration."""
    return f"{runtime['precision']}-{'compiled' if runtime['compile'] else 'eager'}"


def student(teacher: Path, output: Path, seed: int, runtime: dict[str, Any], epochs: int | None) -> DistillResult:
    """Return the result of a run, after running it if necessary."""
    if (output / "result.json").exists():
        return DistillResult.load(output)
    given = {"teacher": str(teacher), "seed": seed, "epochs": epochs, "eval_data.name": "digits"}
    given |= {f"runtime.{key}": value for key, value in runtime.items()}
    options = {key: ("this benchmark", value) for key, value in given.items()}
    return distill(
        load_settings(DistillSettings, section="distill", recipe="digits", options=options), output, overwrite=True
    )


if __name__ == "__main__":
    main()
