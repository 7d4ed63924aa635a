"""Makes the runs of a table on a Ray cluster: one task a run, on storage that all nodes share. Ray is used only here.

This process owns the cells and locks them. A task makes a run as a process of one machine does, and takes the run from
its previous attempt, whose node may be dead without having released the lock.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from gapssg._version import __version__
from gapssg.errors import GapssgError, InputError, Taken, import_extra, shortened
from gapssg.files import holder_of, lock, probe_file, signature, user_path
from gapssg.runs.directory import Display, SilentDisplay, take_from
from gapssg.runs.events import Event, Note, ProgressOfRuns, Remaining, RunProgress
from gapssg.runs.requests import Requests, Stopped
from gapssg.runs.results.distillation import load_training_result
from gapssg.safe_paths import inside
from gapssg.table.ledger import Failure, Ledger, is_done, read_attempts, record_attempt
from gapssg.table.place import CellDisplay, Ending
from gapssg.table.plan import Task

_NAMESPACE = "gapssg"
_KINDS = ("CPU", "GPU")
_DRIVER_LOCK = ".driver.lock"
_ENVIRONMENT = ("GAPSSG_DATA",)
# Each run that is started or queued takes two file descriptors, and many systems allow 1,024.
_MOST_AT_ONCE = 256
# How often Ray starts a run again whose process or node died.
_MOST_RETRIES = 20
_SECONDS_TO_ACCEPT = 5.0
_SECONDS_TO_CONNECT = 120.0
# A node starts a process, which imports torch, to answer.
_SECONDS_TO_ANSWER = 300.0
# Network file systems show a new file after a while.
_SECONDS_TO_SEE = 10.0
# A cluster notices after a while that a driver was killed; one of a `ray://` address waits for 30 s.
_SECONDS_TO_NOTICE = 45.0
_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class Share:
    """What a run takes of a node."""

    cpus: float = 1.0
    """Processor cores."""
    gpus: float | None = None
    """GPUs, or a part of one; None is one GPU if the cluster has any and the runs may use them."""

    def check(self) -> None:
        """Raise `InputError` if Ray cannot allot it."""
        if not (math.isfinite(self.cpus) and self.cpus > 0):
            raise InputError(f"--cpus-per-run {self.cpus:g} must be more than 0")
        gpus = self.gpus or 0.0
        if not (math.isfinite(gpus) and gpus >= 0 and (gpus <= 1 or gpus == int(gpus))):
            raise InputError(f"--gpus-per-run {gpus:g} must be a part of a GPU, such as 0.5, or a whole number")


@dataclass(frozen=True)
class _Order:
    """What a worker must know to make a run."""

    root: str
    """The directory of the table, which a worker reaches as an untrusted one."""
    run: str
    """The run directory, relative to it."""
    task: Task
    """The task; its paths stand for nothing here."""
    driver: str
    """The process that owns the table."""
    folder: str
    """Its current folder, from which relative paths start."""
    environment: Mapping[str, str]
    """Its environment variables that settings depend on."""
    version: str
    """Its version of this program."""


@contextmanager
def ray_cluster(
    address: str, share: Share, tasks: Sequence[Task], root: Path, *, display: Display, requests: Requests
) -> Iterator[RayCluster]:
    """Connect to a cluster, and own the table in `root` until the block ends.

    Args:
        address: `auto`, `HOST:PORT` or `ray://HOST:PORT`; unused if this process is connected already.
        share: What a run takes of a node.
        tasks: The runs that will be made.
        root: The table's directory, on storage that all nodes share.
        display: Shows the runs.
        requests: Requests to them; this process attends to them until the block ends.

    Raises:
        InputError: Ray is not installed, the address does not answer, no node has what a run takes, a node does not
            share the storage or has another version of this program, another driver owns the table, or the directory
            holds no table; nothing has been written.
    """
    share.check()
    ray = _import_ray()
    root = user_path(root).absolute()
    with _connected(address):
        share = _checked_share(share, tasks)
        _check_nodes(share, root)
        ledger = Ledger(root)
        ledger.begin()
        with _owned(ledger) as board:
            requests.attended = True
            try:
                yield RayCluster(ledger, share, board, display)
            finally:
                requests.attended = False
                with suppress(ray.exceptions.RayError):
                    ray.kill(board)


class RayCluster:
    """Carries out runs as tasks of a Ray cluster."""

    def __init__(self, ledger: Ledger, share: Share, board: Any, display: Display) -> None:
        """Make the runs of a table, each with its share of a node; they report to the actor `board`."""
        self._ledger = ledger
        self._board = board
        self._display = display
        self._make = _import_ray().remote(_make_on_a_node)
        self._options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_retries": _MOST_RETRIES}
        self._started: dict[Any, Task] = {}
        self._progress: dict[str, RunProgress] = {}
        self._news: Any = None
        self._count = 0

    def has_room(self) -> bool:
        """Tell whether another run may be queued now."""
        return len(self._started) < _MOST_AT_ONCE

    def start(self, task: Task) -> None:
        """Queue a run."""
        order = _Order(
            root=str(self._ledger.root),
            run=str(Path(task.run).relative_to(Path(self._ledger.root))),
            task=replace(task, run=Path(), teacher=None, plan=None),
            driver=signature(),
            folder=os.getcwd(),
            environment={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            version=__version__,
        )
        make = self._make.options(name=task.label, **self._options)
        self._started[make.remote(order, self._board)] = task
        self._count += 1

    def ended(self, *, wait: bool) -> Iterable[tuple[Path, Ending]]:
        """Return the runs that have ended since the last call; show the others."""
        if not self._started:
            return
        ray = _import_ray()
        seconds = _SECONDS_BETWEEN_LOOKS if wait else 0
        done, _ = ray.wait(list(self._started), num_returns=1, timeout=seconds)
        if wait:
            self._show_news()
        for each in done:
            task = self._started.pop(each)
            self._progress.pop(task.label, None)
            yield task.run, self._ending(each, task)

    def stop(self) -> None:
        """Stop all runs, each after a checkpoint, and wait for it."""
        ray = _import_ray()
        count = len(self._started)
        for each in self._started:
            ray.cancel(each)
        while self._started:
            self._display.progress("stopping runs", count - len(self._started), count)
            for _ in self.ended(wait=True):
                pass

    def _ending(self, reference: Any, task: Task) -> Ending:
        ray = _import_ray()
        try:
            ending: Ending = ray.get(reference)
            return ending
        except ray.exceptions.TaskCancelledError:
            return Ending(stopped=signal.SIGINT)
        except ray.exceptions.RayError as error:
            lines = str(error).strip().split("\n")
            reason = shortened(lines[-1] if isinstance(error, ray.exceptions.RayTaskError) else lines[0], 300)
            return _failed(task, f"Ray gave the run up ({reason}); the same command resumes it")

    def _show_news(self) -> None:
        """Show what the runs have reported, and ask for more; a board that does not answer is not waited for."""
        ray = _import_ray()
        if self._news is not None:
            ready, _ = ray.wait([self._news], timeout=0)
            if not ready:
                return
            with suppress(ray.exceptions.RayError):
                self._show(ray.get(self._news))
        self._news = self._board.take.remote()

    def _show(self, news: Sequence[tuple[str, str, Event]]) -> None:
        running = {task.label for task in self._started.values()}
        for label, host, event in news:
            if isinstance(event, Note):
                self._display.event(event)
            elif isinstance(event, Remaining) and label in running:
                self._progress[label] = RunProgress(label=label, host=host, **dict(event))
        self._display.event(ProgressOfRuns(runs=tuple(self._progress[label] for label in sorted(self._progress))))
        self._display.progress("runs", self._count - len(self._started), self._count)


class _Board:
    """In the cluster: shows by its name that the table has a driver, and keeps what the runs report until it asks."""

    def __init__(self, driver: str) -> None:
        self._driver = driver
        self._news: list[tuple[str, str, Event]] = []

    def driver(self) -> str:
        return self._driver

    def report(self, label: str, host: str, event: Event) -> None:
        self._news.append((label, host, event))

    def take(self) -> list[tuple[str, str, Event]]:
        news, self._news = self._news, []
        return news


class _Reports(CellDisplay):
    """Shows a run to the driver."""

    def __init__(self, label: str, board: Any) -> None:
        super().__init__(_Remote(label, board), label)

    def event(self, event: Event) -> None:
        """Pass on warnings, rollbacks and the remaining time, which comes once a second."""
        if isinstance(event, Remaining):
            self._display.event(event)
        else:
            super().event(event)


class _Remote(SilentDisplay):
    def __init__(self, label: str, board: Any) -> None:
        self._label = label
        self._board = board

    def event(self, event: Event) -> None:
        self._board.report.remote(self._label, platform.node(), event)


def _make_on_a_node(order: _Order, board: Any) -> Ending:
    """Make a run in a process of the cluster; SIGTERM ends the process after a checkpoint, and Ray tries again."""
    root = inside(Path(order.root))
    task = replace(order.task, run=root / order.run)
    obstacle = _obstacle(str(root / _DRIVER_LOCK), order.driver, order.version)
    if obstacle is not None:
        return _failed(task, f"{platform.node()} {obstacle}")
    with suppress(OSError):  # absolute paths do not need it
        os.chdir(order.folder)
    os.environ.update(order.environment)
    display = _Reports(task.label, board)
    try:
        with _stopping_on_signals() as requests:
            return _make_on_this_node(task, display, requests)
    except GapssgError as error:
        return _failed(task, str(error).split("\n")[0])
    except Stopped as stopped:
        if stopped.signal_number == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)  # to the handler of Ray, which ends the process
        return Ending(stopped=stopped.signal_number)


def _make_on_this_node(task: Task, display: CellDisplay, requests: Requests) -> Ending:
    if is_done(task.run):  # the previous attempt ended before Ray knew
        result = load_training_result(task.run)
        return Ending(top1=result.model.top1, seconds=result.timing.total)
    device = _given_device()
    before = read_attempts(task.run)
    if before is not None:  # before this attempt is recorded, so that the next one finds the lock if this node dies
        take_from(task.run, before.process)
    record_attempt(task.run, platform.node(), device, signature())
    again = "" if before is None else f", attempt {before.attempts + 1}"
    from gapssg.runs.checkpoint import has_checkpoint
    from gapssg.table.one_run import make_run

    begins = "resuming" if has_checkpoint(task.run) else "starting"
    display.say(f"{begins} on {platform.node()} ({device}{again})")
    return make_run(task, display, requests)


def _failed(task: Task, sentence: str) -> Ending:
    return Ending(failure=Failure(seed=task.settings.seed, message=sentence))


def _given_device() -> str:
    """Return the device that Ray allots to this task; without a GPU, hide those of the node."""
    gpus = _import_ray().get_gpu_ids()
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return "CPU"
    return f"GPU {', '.join(map(str, gpus))}"


@contextmanager
def _stopping_on_signals() -> Iterator[Requests]:
    """Turn SIGTERM, and SIGINT, by which Ray cancels a task, into requests until the block ends."""
    requests = Requests()

    def stop(number: int, _: FrameType | None) -> None:
        if requests.stop is None:
            requests.stop = number
            if not requests.attended:
                raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _obstacle(file: str, content: str, version: str) -> str | None:
    """Return why this node cannot make runs, by a file of the driver and its version of gapssg; None if it can."""
    if version != __version__:
        return f"has gapssg {__version__}, and this machine {version}; install the same version"
    give_up = time.monotonic() + _SECONDS_TO_SEE
    while True:
        with suppress(InputError):
            if holder_of(Path(file)) == content:
                return None
        if time.monotonic() > give_up:
            return f"does not see the files in {Path(file).parent}; name a directory on storage that all nodes share"
        time.sleep(0.1)


def _import_ray() -> Any:
    # Ray reads it when it is imported. `log_to_driver` does not concern what Ray itself says of processes that died.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    return import_extra("ray", "ray", "--ray")


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Connect to a cluster, which must answer, until the block ends."""
    ray = _import_ray()
    if ray.is_initialized():
        yield
        return
    _check_that_it_answers(address)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"--ray {address}: {shortened(str(error).split(chr(10))[0], 300)}") from error
    for number, handler in handlers.items():  # Ray replaces them
        signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _check_that_it_answers(address: str) -> None:
    """Check an address in another process, because Ray waits for minutes for one that is silent."""
    if address != "auto":
        host, colon, port = address.removeprefix("ray://").rpartition(":")
        if not (host and colon and port.isdecimal()):
            raise InputError(f"--ray {address} is no address; use auto, HOST:PORT or ray://HOST:PORT")
        try:
            socket.create_connection((host, int(port)), _SECONDS_TO_ACCEPT).close()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"--ray {address} does not answer ({reason}); start Ray there with `ray start`") from error
    code = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)"
    try:
        tried = subprocess.run(
            [sys.executable, "-c", code, address],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_SECONDS_TO_CONNECT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"--ray {address} has not answered as a Ray cluster for {_SECONDS_TO_CONNECT:.0f} s"
        ) from error
    if tried.returncode != 0:
        lines = tried.stderr.decode(errors="replace").split("\n")
        reason = next((line for line in reversed(lines) if line.strip()), f"exit status {tried.returncode}")
        raise InputError(f"--ray {address}: {shortened(reason, 300)}")


def _checked_share(share: Share, tasks: Sequence[Task]) -> Share:
    """Return what a run takes, after checking that a node has it, and that no run names a GPU, which Ray allots."""
    devices = {task.settings.runtime.device for task in tasks}
    if named := sorted(device for device in devices if device.startswith("cuda:")):
        raise InputError(f"--device {named[0]}: Ray allots the GPUs; use --device cuda")
    if share.gpus is None:
        has_gpus = any(node.get("GPU") for node in map(_resources, _nodes()))
        share = replace(share, gpus=1.0 if has_gpus and devices != {"cpu"} else 0.0)
    if not _nodes_for(share):
        most = {kind: max((_resources(node).get(kind, 0.0) for node in _nodes()), default=0.0) for kind in _KINDS}
        raise InputError(
            f"no node of the cluster has the {share.cpus:g} CPUs and {share.gpus:g} GPUs of a run: the largest have "
            f"{most['CPU']:g} CPUs and {most['GPU']:g} GPUs; lower --cpus-per-run or --gpus-per-run"
        )
    return share


def _nodes() -> list[Mapping[str, Any]]:
    return [node for node in _import_ray().nodes() if node["Alive"]]


def _resources(node: Mapping[str, Any]) -> Mapping[str, float]:
    resources: Mapping[str, float] = node["Resources"]
    return resources


def _nodes_for(share: Share) -> list[Mapping[str, Any]]:
    wanted = {"CPU": share.cpus, "GPU": share.gpus or 0.0}
    return [
        node for node in _nodes() if all(_resources(node).get(kind, 0.0) >= count for kind, count in wanted.items())
    ]


def _check_nodes(share: Share, root: Path) -> None:
    """Check that each node that can make a run sees what this process writes, and has the same program."""
    ray = _import_ray()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    content = signature()
    with probe_file(root, content) as file:
        asked = {}
        for node in _nodes_for(share):
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ask = ray.remote(_obstacle).options(num_cpus=0, scheduling_strategy=place, max_retries=1)
            asked[ask.remote(str(file), content, __version__)] = f"node {node['NodeManagerHostname']}"
        ray.wait(list(asked), num_returns=len(asked), timeout=_SECONDS_TO_ANSWER)
        for reference, name in asked.items():
            try:
                obstacle = ray.get(reference, timeout=0)
            except ray.exceptions.GetTimeoutError as error:
                raise InputError(f"{name} has not answered for {_SECONDS_TO_ANSWER:.0f} s") from error
            except ray.exceptions.RayError as error:
                reason = shortened(str(error).strip().split("\n")[-1], 300)
                raise InputError(f"{name} cannot run this program ({reason}); install gapssg there") from error
            if obstacle is not None:
                raise InputError(f"{name} {obstacle}")


@contextmanager
def _owned(ledger: Ledger) -> Iterator[Any]:
    """Own a table until the block ends, by a lock on this machine and by the name of an actor in the cluster.

    Yields the actor; raises `InputError` if another driver owns the table.
    """
    try:
        held = lock(ledger.root / _DRIVER_LOCK)
    except Taken as error:
        raise _owned_by(ledger, error.holder) from error
    with held:
        yield _create_board(ledger)


def _create_board(ledger: Ledger) -> Any:
    ray = _import_ray()
    name = f"table {ledger.root.resolve()}"
    board = ray.remote(_Board).options(name=name, namespace=_NAMESPACE, num_cpus=0, max_restarts=-1)
    give_up = time.monotonic() + _SECONDS_TO_NOTICE
    while True:
        try:
            return board.remote(signature())
        except ValueError as error:  # the name is taken, perhaps by a driver that was killed just now
            if time.monotonic() > give_up:
                with suppress(ray.exceptions.RayError, ValueError):
                    holder = ray.get(ray.get_actor(name, _NAMESPACE).driver.remote(), timeout=_SECONDS_TO_ANSWER)
                    raise _owned_by(ledger, holder) from error
                raise _owned_by(ledger, "another process") from error
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _owned_by(ledger: Ledger, driver: str) -> InputError:
    return InputError(
        f"{ledger.root} has another driver, {driver}; wait for it, or stop it and start this command again"
    )
