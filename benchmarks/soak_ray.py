"""Soak test of a table on a local Ray cluster whose processes and nodes are killed.

    python -m benchmarks.soak_ray                  100 cells, at least 30 kills
    python -m benchmarks.soak_ray --cells 10 --kills 4

The table is compared with that of one process that nobody disturbs: all figures and all weights. The exit status is 1
if one differs, a run failed, or fewer processes were killed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
import torch
from ray.cluster_utils import Cluster

from benchmarks.machine import describe_machine, print_machine, print_table, write_results
from benchmarks.results_page import RESULTS
from tests.conftest import write_images
from tests.ray_tables import (
    METHODS,
    arguments,
    beside,
    cluster_of_two,
    figures,
    here,
    killing,
    on_the_cluster,
    plan,
    weights,
)


def main() -> None:
    """Make both tables, print what happened, write CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100, help="rounded up to a multiple of the methods")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--minutes-between-nodes", type=float, default=1.0)
    parser.add_argument("--output", type=Path, default=RESULTS / "soak-ray.csv")
    given = parser.parse_args()
    torch.set_num_threads(1)  # as a run of one processor of the cluster
    machine = {**describe_machine(torch.device("cpu")), "ray": ray.__version__}
    print_machine(machine)
    with tempfile.TemporaryDirectory() as name:
        found = soak(Path(name), given.cells, given.kills, given.epochs, 60 * given.minutes_between_nodes)
    print_table("a table on Ray", tuple(found), [tuple(found.values())])
    write_results(given.output, [found], machine)
    failed = found["failed"] or found["differing"] or found["kills"] < given.kills
    print("\nfailed" if failed else "\nAll figures and weights are identical.")
    sys.exit(1 if failed else 0)


def soak(folder: Path, cells: int, kills: int, epochs: int, seconds_between_nodes: float) -> dict[str, float]:
    """Make a table on a cluster of two nodes, and the same in this process; return counts and durations."""
    values = arguments(write_images(folder / "faces"), seeds=-(-cells // len(METHODS)), epochs=epochs)
    began = time.monotonic()
    here(folder / "whole", values)
    undisturbed = time.monotonic() - began
    with cluster_of_two() as nodes:
        tasks = plan(folder / "table", values)
        began = time.monotonic()
        with replacing_nodes(nodes, seconds_between_nodes) as removed, killing(tasks, kills, 3.0) as killed:
            result = on_the_cluster(folder / "table", values)
        disturbed = time.monotonic() - began
    table, whole = weights(folder / "table"), weights(folder / "whole")
    attempts = [made.attempts for row in result.rows for entry in row.entries for made in entry.where]
    return {
        "cells": len(tasks) - 1,
        "kills": len(killed),
        "nodes removed": len(removed),
        "attempts": sum(attempts),
        "most attempts of a run": max(attempts),
        "failed": len(result.failed) + len(result.elsewhere),
        "differing": sum(table.get(name) != whole.get(name) for name in table | whole)
        + (figures(folder / "table") != figures(folder / "whole")),
        "seconds": round(disturbed, 1),
        "seconds of one undisturbed process": round(undisturbed, 1),
    }


@contextmanager
def replacing_nodes(nodes: Cluster, seconds_between: float) -> Iterator[list[float]]:
    """Remove the second node again and again, and add another, until the block ends; yield the times of it."""
    removed: list[float] = []

    def replace(ended: threading.Event) -> None:
        while not ended.wait(seconds_between):
            nodes.remove_node(nodes.list_all_nodes()[-1])
            removed.append(time.monotonic())
            nodes.add_node(num_cpus=1)

    with beside(replace):
        yield removed


if __name__ == "__main__":
    main()
