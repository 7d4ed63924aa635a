"""Tables of tiny models on a Ray cluster whose processes and nodes end early; `benchmarks/soak_ray.py` has larger ones.

`python -m tests.ray_tables ARGUMENTS` is the program with tiny models.
"""

from __future__ import annotations

import csv
import logging
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import ray
from ray.cluster_utils import Cluster

from gapssg.models import MODELS, ModelEntry
from gapssg.runs.directory import SilentDisplay
from gapssg.runs.events import Event, Note, ProgressOfRuns
from gapssg.runs.requests import Requests
from gapssg.runs.results.table import TableResult
from gapssg.table import ray_cluster
from gapssg.table.ledger import is_done, read_attempts
from gapssg.table.place import Ending
from gapssg.table.plan import Task, plan_tasks
from gapssg.table.ray_cluster import Share
from gapssg.table.run import run_table
from gapssg.table.settings import TableSettings

_make_on_a_node = ray_cluster._make_on_a_node
METHODS = ("gapssg", "dafl", "zskt")


@contextmanager
def tiny_models() -> Iterator[None]:
    """Let the models of the row `digits` have one convolution, also in the processes of a cluster."""
    tiny = ModelEntry("tests.tiny:tiny", "for tests")
    with (
        mock.patch("gapssg.models.names.MODELS", {**MODELS, "wrn16_1": tiny, "wrn16_2": tiny}),
        mock.patch.object(ray_cluster, "_make_on_a_node", make),
    ):
        yield


def make(order: Any, board: Any) -> Ending:
    """Make a run of tiny models in a process of the cluster."""
    with tiny_models():
        return _make_on_a_node(order, board)


@contextmanager
def cluster_of_two() -> Iterator[Cluster]:
    """Connect this process to a cluster of two nodes with a processor each until the block ends."""
    # By default Ray lowers the priority of its processes, which would starve beside other tests.
    with mock.patch.dict(os.environ, {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled"}):
        # Without handlers of exits, which only the main thread may register: the block shuts the nodes down.
        nodes = Cluster(
            initialize_head=True, shutdown_at_exit=False, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        try:
            nodes.add_node(num_cpus=1)
            ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
            yield nodes
        finally:
            ray.shutdown()
            nodes.shutdown()


def arguments(images: Path, seeds: int, methods: Sequence[str] = METHODS, epochs: int = 6) -> dict[str, Any]:
    """Return the settings of a table whose cells take a second."""
    return {
        "rows": ["digits"],
        "methods": list(methods),
        "seeds": seeds,
        "budget": "smoke",
        "scratch": False,
        "data": f"folder:{images}",
        "runtime": {"device": "cpu"},
        "changes": ["method.generator_width=4", "method.latent_size=8", f"epochs={epochs}", "evaluate_every=1"],
    }


class Watching(SilentDisplay):
    """Collects what the driver shows, and calls a function when it shows progress of runs."""

    def __init__(self, called: Callable[[], None] | None = None) -> None:
        self.said: list[str] = []
        self.progress_of: set[str] = set()
        self.called = called

    def event(self, event: Event) -> None:
        if isinstance(event, Note):
            self.said.append(event.message)
        elif isinstance(event, ProgressOfRuns):
            self.progress_of |= {run.label for run in event.runs}
            if event.runs and self.called is not None:
                self.called()


def plan(root: Path, values: dict[str, Any]) -> list[Task]:
    """Return the runs of a table."""
    return plan_tasks(TableSettings.model_validate(values), root)


def on_the_cluster(
    root: Path, values: dict[str, Any], display: SilentDisplay | None = None, requests: Requests | None = None
) -> TableResult:
    """Make a table of tiny models on the cluster that this process is connected to."""
    tasks, display, requests = plan(root, values), display or SilentDisplay(), requests or Requests()
    with (
        tiny_models(),
        ray_cluster.ray_cluster("auto", Share(), tasks, root, display=display, requests=requests) as place,
    ):
        return run_table(tasks, root, display=display, requests=requests, place=place)


def here(root: Path, values: dict[str, Any]) -> TableResult:
    """Make a table of tiny models in this process."""
    with tiny_models():
        return run_table(plan(root, values), root)


class Kill(NamedTuple):
    """A signal to the process of a run that had a checkpoint."""

    run: Path
    signal: int


@contextmanager
def killing(tasks: Sequence[Task], kills: int, seconds_between: float) -> Iterator[list[Kill]]:
    """Kill, until the block ends, a process in the middle of its run, again and again, but each run at most twice.

    Each third signal is SIGTERM, by which a machine announces its end; the others are SIGKILL.
    """
    done: list[Kill] = []

    def kill_all(ended: threading.Event) -> None:
        while len(done) < kills and not ended.wait(0.01):
            counts = Counter(kill.run for kill in done)
            runs = sorted((task.run for task in tasks if counts[task.run] < 2), key=counts.__getitem__)
            found = next((kill for run in runs if (kill := _kill(run, len(done))) is not None), None)
            if found is not None:
                done.append(found)
                ended.wait(seconds_between)

    with beside(kill_all):
        yield done


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Work in another thread until the block ends, which sets the event; raise what the work raised."""
    ended = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        working = threads.submit(work, ended)
        try:
            yield
        finally:
            ended.set()
    working.result()


def _kill(run: Path, count: int) -> Kill | None:
    """Kill the process of a run that has a checkpoint; return None if there is none, or if the run ended before."""
    attempts = read_attempts(run)
    if attempts is None or is_done(run) or not (run / "checkpoint" / "latest.safetensors").exists():
        return None
    match = re.fullmatch(r"process (\d+) on .+", attempts.process)
    assert match is not None
    process, number = int(match[1]), signal.SIGTERM if count % 3 == 2 else signal.SIGKILL
    try:
        os.kill(process, number)
    except ProcessLookupError:  # it was killed before, and its run has not been started again
        return None
    give_up = time.monotonic() + 60
    with suppress(ProcessLookupError):
        while time.monotonic() < give_up and not is_done(run):
            os.kill(process, 0)
            time.sleep(0.01)
    return None if is_done(run) else Kill(run, number)


def figures(root: Path) -> list[dict[str, str]]:
    """Return the lines of `table.csv` without times."""
    lines = csv.DictReader((root / "table.csv").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def weights(root: Path) -> dict[str, bytes]:
    """Return the model files of a table by their path."""
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in sorted(root.rglob("*.safetensors"))
        if file.parent.name not in ("checkpoint", "pool")
    }


if __name__ == "__main__":
    from gapssg.__main__ import main

    with tiny_models():
        main()
