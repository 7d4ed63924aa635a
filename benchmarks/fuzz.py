"""Fuzz tests with damaged and hostile files.

    python -m benchmarks.fuzz --cases 10000 --seed 0

Files are generated at random. Every target of `tests/hostile/targets.py` runs in its own process, so that crashes are
detected. A case fails if it ends in anything but success or a one-sentence error, if a file outside the output
directory changes, or if it takes more memory than the bound. The exit status is 1 if a case fails. Requires Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_machine, write_results

SHARES = {
    "model file": 0.12,
    "graph in a model file": 0.10,
    "graph file": 0.05,
    "PyTorch checkpoint": 0.05,
    "pool shard": 0.10,
    "checkpoint": 0.08,
    "shard of a run": 0.03,
    "settings": 0.10,
    "run directory": 0.10,
    "finished run": 0.10,
    "image folder": 0.10,
    "terminal": 0.07,
}
ADDRESS_SPACE = 5 * 2**30
"""Bytes that a process may map in addition to those mapped at the start; larger requests fail.

Reading a file of any size maps a buffer of the largest allowed, 4 GiB.
"""


def main() -> None:
    """Run every target in its own process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=SHARES, help="run these targets, each with all cases")
    parser.add_argument("--output", type=Path, help="CSV file for the counts, such as benchmarks/results/fuzz.csv")
    parser.add_argument("--worker", choices=SHARES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(run_worker(arguments.worker, arguments.cases, arguments.seed)))
        return
    shares = dict.fromkeys(arguments.only, 1.0) if arguments.only else SHARES
    print(f"{'target':<22}{'cases':>8}{'refused':>9}{'accepted':>10}{'failures':>10}{'peak memory':>14}{'seconds':>9}")
    totals, rows = [0, 0, 0, 0], []
    for name, share in shares.items():
        report = run_target_apart(name, max(1, round(share * arguments.cases)), arguments.seed)
        counts = [report["cases"], report["refused"], report["accepted"], len(report["failures"])]
        megabytes = round(report["memory"] / 2**20)
        names = ("target", "cases", "refused", "accepted", "failures", "megabytes")
        rows.append(dict(zip(names, (name, *counts, megabytes), strict=True)))
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        row = f"{name:<22}{counts[0]:>8}{counts[1]:>9}{counts[2]:>10}{counts[3]:>10}"
        print(f"{row}{megabytes:>10} MiB{report['seconds']:>9.0f}", flush=True)
        for failure in report["failures"][:5]:
            print(f"    {failure}")
    if arguments.output:
        write_results(arguments.output, rows, describe_machine(torch.device("cpu")))
    print(f"{'all':<22}{totals[0]:>8}{totals[1]:>9}{totals[2]:>10}{totals[3]:>10}")
    sys.exit(1 if totals[3] else 0)


def run_target_apart(name: str, cases: int, seed: int) -> dict[str, Any]:
    """Run one target in its own process; a crash is a failure."""
    command = [sys.executable, "-m", "benchmarks.fuzz", "--worker", name, "--cases", str(cases), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    failure = f"the process ended with status {done.returncode}: {done.stderr[-2000:]}"
    return {"cases": 0, "refused": 0, "accepted": 0, "failures": [failure], "memory": 0, "seconds": 0}


def run_worker(name: str, cases: int, seed: int) -> dict[str, Any]:
    """Run one target in this process."""
    from tests.hostile.targets import MOST_MEMORY, TARGETS, World, run_target

    most = 0

    def measured(world: World, case: Any) -> None:
        nonlocal most
        before = reset_peak_memory()
        try:
            use(world, case)
        finally:
            grown = memory("VmHWM") - before
            most = max(most, grown)
            assert grown <= MOST_MEMORY, f"the process grew by {grown / 2**20:.0f} MiB"

    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        run_target(name, world, 5)  # load everything that is loaded only once
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE, resource.RLIM_INFINITY))
        use, started = TARGETS[name].use, time.perf_counter()
        TARGETS[name] = TARGETS[name]._replace(use=measured)
        report = run_target(name, world, cases, seed, keep_going=True)
    return {
        "cases": report.refused + report.accepted + len(report.failures),
        "refused": report.refused,
        "accepted": report.accepted,
        "failures": report.failures,
        "memory": most,
        "seconds": time.perf_counter() - started,
    }


def reset_peak_memory() -> int:
    """Release freed memory, reset the peak, and return the resident bytes."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(field: str) -> int:
    """Return the resident bytes of this process: VmRSS is the current value, VmHWM the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
