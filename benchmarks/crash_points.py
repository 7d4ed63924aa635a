"""Crashes at every point: before each operation on files a kill and two power failures, and within each write a kill.

    python -m benchmarks.crash_points
    python -m benchmarks.crash_points --only landscape --only table

After each crash the command is resumed, or restarted with --overwrite where there is nothing to resume, and must end
with the files of a run that nothing interrupted. Exit status 1 if one does not.
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
    """Crash everywhere, print a table and what did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="a command of the table; all of them if none is named")
    parser.add_argument("--output", type=Path, help="CSV for the counts, such as benchmarks/results/crash-points.csv")
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
    print_table("crash points", ("command", "crashes", "different states", "hold"), rows)
    if arguments.output:
        names = ("command", "crashes", "states", "hold")
        counts = [dict(zip(names, row, strict=True)) for row in rows]
        write_results(arguments.output, counts, describe_machine(torch.device("cpu")))
    print("\n".join(failures) or "\nEvery crash holds.")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
