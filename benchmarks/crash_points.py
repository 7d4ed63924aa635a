"""Crash tests: a kill and two power failures before each file operation, and a kill within each write.

    python -m benchmarks.crash_points
    python -m benchmarks.crash_points --only landscape --only table

After each crash the command is resumed, or restarted with --overwrite if there is nothing to resume, and must end
with the files of an uninterrupted run. The exit status is 1 if a case fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.machine import describe_machine, print_table, write_results
from tests.crash_points import in_small, scenarios, try_crashes


def main() -> None:
    """Run all cases; print a table and the failures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="run only this command (repeatable; default: all)")
    parser.add_argument(
        "--output", type=Path, help="CSV file for the counts, such as benchmarks/results/crash-points.csv"
    )
    parser.add_argument("--every", type=int, default=1, help="try every n-th crash")
    arguments = parser.parse_args()
    rows, failures = [], []
    with tempfile.TemporaryDirectory() as name, in_small():
        for command, scenario in scenarios(Path(name)).items():
            if arguments.only and command not in arguments.only:
                continue
            folder = Path(name) / command
            folder.mkdir()
            outcome = try_crashes(scenario, folder, arguments.every)
            rows.append((command, outcome.points, outcome.states, outcome.points - len(outcome.failures)))
            failures += [f"{command}: {failure}" for failure in outcome.failures]
            print(*rows[-1], flush=True)
    print_table("crash points", ("command", "crashes", "different states", "passed"), rows)
    if arguments.output:
        names = ("command", "crashes", "states", "hold")
        counts = [dict(zip(names, row, strict=True)) for row in rows]
        write_results(arguments.output, counts, describe_machine(torch.device("cpu")))
    print("\n".join(failures) or "\nAll cases passed.")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
