"""Tables on a Ray cluster of two nodes on this machine, whose processes and nodes are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gapssg.files import lock
from gapssg.runs.requests import Requests, Stopped
from gapssg.table import ray_cluster
from gapssg.table.ledger import Ledger, is_done
from tests.conftest import write_images
from tests.program import refusal

ray = pytest.importorskip("ray")

from tests.ray_tables import (  # noqa: E402  # it needs Ray
    METHODS,
    Watching,
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

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

TABLE = ["--rows", "digits", "--methods", "gapssg"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A cluster that this process is connected to."""
    with cluster_of_two() as nodes:
        yield nodes


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "faces")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute as a run with one processor of the cluster does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def wait_until(holds: Callable[[], bool], seconds: float = 300.0) -> None:
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_a_table_whose_processes_and_nodes_die_is_that_of_an_undisturbed_process(
    cluster: Any, images: Path, tmp_path: Path
):
    values = arguments(images, seeds=4)
    whole = here(tmp_path / "whole", values)
    root = tmp_path / "table"
    tasks = plan(root, values)
    display = Watching()
    removed: list[Any] = []

    def remove_a_node() -> None:
        if not removed:
            removed.append(cluster.list_all_nodes()[-1])
            cluster.remove_node(removed[0])
            cluster.add_node(num_cpus=1)

    display.called = remove_a_node
    with killing(tasks, kills=3, seconds_between=2.0) as kills:
        found = on_the_cluster(root, values, display)
    assert len(tasks) == 1 + len(METHODS) * 4
    assert found.failed == found.elsewhere == {}
    assert len(kills) == 3
    assert removed
    assert figures(root) == figures(tmp_path / "whole")
    assert weights(root) == weights(tmp_path / "whole")
    where = [made for entry in found.rows[0].entries for made in entry.where]
    assert len(where) == len(tasks)
    assert sum(made.attempts for made in where) >= len(tasks) + len(kills)
    assert {made.device for made in where} == {"CPU"}
    assert {made.host for made in where} == {os.uname().nodename}
    assert json.loads((root / "table.json").read_text())["rows"][0]["columns"][0]["where"]
    assert not any(entry.where for entry in whole.rows[0].entries)
    assert any(", attempt " in sentence for sentence in display.said)
    # Only the run on the removed node may not have had a checkpoint.
    assert sum("restarting" in sentence for sentence in display.said) <= 1
    assert display.progress_of
    again = on_the_cluster(root, values, done_before := Watching())
    assert sum("done before" in sentence for sentence in done_before.said) == len(tasks)
    assert again.rows == found.rows


def test_a_stopped_or_killed_driver_leaves_checkpoints_and_can_be_started_again(
    cluster: Any, images: Path, tmp_path: Path
):
    values = arguments(images, seeds=1, methods=["gapssg", "zskt"], epochs=200)
    root = tmp_path / "table"
    cells = [task.run for task in plan(root, values) if task.plan is not None]
    options = [*TABLE[:2], "--methods", "gapssg,zskt", "--seeds", "1", "--budget", "smoke", "--no-scratch"]
    options += ["--data", f"folder:{images}", "--device", "cpu", "--ray", cluster.address]
    options += [word for change in values["changes"] for word in ("--set", change)]
    command = [sys.executable, "-m", "tests.ray_tables", "table", str(root), *options]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_until(lambda: driver.poll() is not None or any((run / "checkpoint").exists() for run in cells))
        assert driver.poll() is None
        assert f"has another driver, process {driver.pid} on " in refusal("table", root, *options)
    finally:
        driver.kill()
    assert "starting on" in driver.communicate()[0]
    assert not all(map(is_done, cells))

    requests = Requests()

    def stop() -> None:
        requests.stop = signal.SIGTERM

    with pytest.raises(Stopped):
        on_the_cluster(root, values, Watching(stop), requests)
    unfinished = [run for run in cells if not is_done(run)]
    assert unfinished
    assert all((run / "checkpoint" / "latest.safetensors").exists() for run in unfinished if run.exists())
    assert not list(root.rglob("*.failed.json"))
    found = on_the_cluster(root, values)
    assert found.failed == found.elsewhere == {}
    here(tmp_path / "whole", values)
    assert weights(root) == weights(tmp_path / "whole")
    assert figures(root) == figures(tmp_path / "whole")


SEEING_A_PROCESS_DIE = """
import os, sys, time
from gapssg.table.ray_cluster import _connected, _import_ray

with _connected(sys.argv[1]):
    ray = _import_ray()
    dying = ray.remote(lambda: os.kill(os.getpid(), 9)).options(max_retries=0)
    try:
        ray.get(dying.remote())
    except ray.exceptions.WorkerCrashedError:
        time.sleep(2.0)  # Ray reports it in another thread
        print("seen")
"""


def test_what_ray_says_of_processes_that_died_is_not_shown(cluster: Any):
    command = [sys.executable, "-c", SEEING_A_PROCESS_DIE, cluster.address]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (found.stdout, found.stderr) == ("seen\n", "")


def test_an_error_in_a_thread_beside_the_runs_is_raised():
    def fail(_: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), beside(fail):
        pass


def test_bad_input_is_one_sentence_and_writes_nothing(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "table"
    of_a_run = "the 99 CPUs and 0 GPUs of a run: the largest have 1 CPUs and 0 GPUs; lower --cpus-per-run"
    assert of_a_run in refusal("table", root, *TABLE, "--ray", "auto", "--cpus-per-run", 99)
    assert "1 CPUs and 2 GPUs of a run" in refusal("table", root, *TABLE, "--ray", "auto", "--gpus-per-run", 2)
    assert "a part of a GPU, such as 0.5" in refusal("table", root, *TABLE, "--ray", "auto", "--gpus-per-run", 1.5)
    assert "more than 0" in refusal("table", root, *TABLE, "--ray", "auto", "--cpus-per-run", "nan")
    assert "use --device cuda" in refusal("table", root, *TABLE, "--ray", "auto", "--device", "cuda:1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray_cluster, "_SECONDS_TO_SEE", 0.1)
    # The processes of the cluster have other current folders, as other machines have other disks.
    sentence = refusal("table", "/proc/self/cwd/table", *TABLE, "--ray", "auto")
    assert "does not see the files in /proc/self/cwd; name a directory on storage that all nodes share" in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_second_driver_is_refused_by_the_cluster_where_file_locks_do_not_work(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = tmp_path / "table"
    ledger = Ledger(root)
    ledger.begin()
    monkeypatch.setattr(ray_cluster, "_SECONDS_TO_NOTICE", 0.0)
    with ray_cluster._owned(ledger) as board:
        (root / ".driver.lock").unlink()  # the second driver does not see this lock
        assert "has another driver, process" in refusal("table", root, *TABLE, "--ray", "auto")
        ray.kill(board)
    with lock(root / ".driver.lock"):
        assert "has another driver, process" in refusal("table", root, *TABLE, "--ray", "auto")
    assert not list(root.glob("cells"))
