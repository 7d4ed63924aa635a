"""Soak tests: runs that are killed repeatedly, and a very long run.

    python -m benchmarks.soak                  20 kills for each of several runs, then 2,000 epochs
    python -m benchmarks.soak --kills 3 --epochs 100

Each killed run is compared file by file with the same run without kills. The long run is monitored for growth of
memory, open files and threads. The exit status is 1 if a file differs or something grows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.machine import describe_machine, print_machine, print_table, write_results, write_teacher
from benchmarks.results_page import RESULTS
from tests.soak import Survival, commands, growth, long_run, survive_kills


def main() -> None:
    """Run all tests, print tables, write CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "soak.csv")
    arguments = parser.parse_args()
    machine = describe_machine(torch.device("cpu"))
    print_machine(machine)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_teacher(folder / "teacher.safetensors", "wrn16_1", 16)
        kills = {
            label: survive_kills(command, folder / label, arguments.kills, arguments.seed)._asdict()
            for label, command in commands(folder / "teacher.safetensors").items()
        }
        rows = [(label, *found.values()) for label, found in kills.items()]
        print_table("kills", ("run", *Survival._fields), rows)
        looks = long_run(folder, arguments.epochs, max(1, arguments.epochs // 20))
        rows = [(look.epoch, f"{look.resident_bytes / 1e6:.1f}", *look[2:]) for look in looks]
        print_table("a long run", ("epoch", "resident MB", "open files", "threads", "files outside the pool"), rows)
    failures = growth(looks) + [label for label, found in kills.items() if found["differing"]]
    write_results(arguments.output, [{"run": label, **found} for label, found in kills.items()], machine)
    print(f"\nfailed: {', '.join(failures)}" if failures else "\nAll files are identical, and nothing grows.")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
