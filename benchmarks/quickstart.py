"""Run `gapssg quickstart` on an idle machine and write the figures of the front page.

    python -m benchmarks.quickstart                 seed 0
    python -m benchmarks.quickstart --seeds 3

`make results` then writes them to `README.md` and `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_machine, print_machine, print_table, write_results
from benchmarks.results_page import RESULTS


def main() -> None:
    """Run the seeds one after the other, print the table, write CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--directory", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--output", type=Path, default=RESULTS / "quickstart.csv")
    arguments = parser.parse_args()
    figures = [row for seed in range(arguments.seeds) for row in figures_of(arguments.directory / str(seed), seed)]
    machine = describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print_machine(machine)
    print_table("gapssg quickstart", list(figures[0]), [list(row.values()) for row in figures])
    write_results(arguments.output, figures, machine)


def figures_of(output: Path, seed: int) -> list[dict[str, Any]]:
    """Run the quickstart; return a row for each of its models, with the seconds of its run and of the program."""
    command = ["quickstart", "--output", str(output), "--overwrite", "--seed", str(seed), "--json", "--quiet"]
    before, started = _processor_seconds(), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "gapssg", *command], check=True, stdout=subprocess.PIPE, text=True)
    whole = {"command_seconds": time.perf_counter() - started, "cpu_seconds": _processor_seconds() - before}
    result = json.loads(done.stdout)
    whole |= {"landscape_seconds": result["landscape"]["timing"]["total"], "total_seconds": result["timing"]["total"]}
    runs = [result["teacher"], result["student"], result["noise_baseline"]]
    labels = ["teacher, real data", *(f"student, {run['method']}" for run in runs[1:])]
    return [
        {
            "seed": seed,
            "model": label,
            **{key: model[key] for key in ("architecture", "parameters", "top1", "loss", "agreement", "reality_gap")},
            "images": result["evaluation"]["images"],
            "seconds": run["timing"]["total"],
            **whole,
        }
        for label, model, run in zip(labels, result["evaluation"]["models"], runs, strict=True)
    ]


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
