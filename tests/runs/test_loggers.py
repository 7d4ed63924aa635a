"""Runs are written for experiment trackers, offline."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from gapssg import distill
from gapssg.errors import InputError, RunError, Taken
from gapssg.files import lock
from gapssg.runs import loggers
from gapssg.runs.directory import SilentDisplay
from gapssg.runs.events import DistillationEpoch, Event, Warned
from gapssg.runs.loggers import Logger, LoggingDisplay, Picture
from tests.interruptions import InterruptingDisplay, Interruption
from tests.program import refusal
from tests.run_fixtures import events, files_of, settings
from tests.tiny import TINY_NOISE, tiny_model, write_tiny_teacher


@pytest.fixture
def teacher(tmp_path: Path):
    with tiny_model():
        yield write_tiny_teacher(tmp_path / "tiny.safetensors")


def run_of(teacher: Path, run: Path, names: list[str], display: Any = None, **changes: Any) -> None:
    """Make, or resume, a run that is written for these trackers."""
    options = {name: changes.pop(name, False) for name in ("resume", "overwrite")}
    values = settings(teacher, **{**TINY_NOISE, "epochs": 3, **changes})
    with LoggingDisplay(names, display or SilentDisplay(), run, values, DistillationEpoch) as both:
        distill(values, run, display=both, **options)


class Memory(Logger):
    """A tracker that keeps everything in memory."""

    runs: ClassVar[dict[str, dict[int, Mapping[str, float]]]] = {}
    pictures: ClassVar[list[Any]] = []
    ends: ClassVar[list[bool]] = []
    fails_at = 0

    def start(self, run: Path, settings: Mapping[str, Any], known_as: str | None) -> str:
        assert settings["method.name"] == "noise"
        if self.fails_at < 0:
            raise ConnectionError("no server")
        self.epochs = self.runs.setdefault(known_as or f"{run.name}-{len(self.runs)}", {})
        return known_as or list(self.runs)[-1]

    def log(self, epoch: int, numbers: Mapping[str, float], picture: Picture | None) -> None:
        if epoch == self.fails_at:
            raise ConnectionError("connection lost")
        self.epochs.setdefault(epoch, numbers)
        self.pictures.append(picture)

    def end(self, is_finished: bool) -> None:
        self.ends.append(is_finished)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> type[Memory]:
    for name, empty in {"runs": {}, "pictures": [], "ends": [], "fails_at": 0}.items():
        monkeypatch.setattr(Memory, name, empty)
    monkeypatch.setattr(loggers, "LOGGERS", {"json": Memory})
    return Memory


def test_a_tracker_gets_every_epoch_with_its_numbers_and_samples(memory: type[Memory], teacher: Path, tmp_path: Path):
    run_of(teacher, tmp_path / "run", ["json"])
    (epochs,) = memory.runs.values()
    recorded = [event for event in events(tmp_path / "run") if event["event"] == "epoch"]
    assert list(epochs) == [1, 2, 3]
    for event in recorded:
        assert epochs[event["epoch"]]["reality_gap_after"] == event["reality_gap_after"]
        assert epochs[event["epoch"]]["health/diversity"] == event["health"]["diversity"]
    assert all(picture.dtype == np.uint8 and picture.ndim == 3 for picture in memory.pictures)
    assert memory.ends == [True]


def test_a_resumed_run_continues_the_same_run_there(memory: type[Memory], teacher: Path, tmp_path: Path):
    run = tmp_path / "run"
    with pytest.raises(Interruption):
        run_of(teacher, run, ["json"], InterruptingDisplay(14), checkpoint_every=1)
    assert memory.ends == [False]
    run_of(teacher, run, ["json"], checkpoint_every=1, resume=True)
    (epochs,) = memory.runs.values()
    assert list(epochs) == [1, 2, 3]
    (run / "loggers.json").write_text(json.dumps({"ids": {"json": "../x"}}))
    with pytest.raises(InputError, match=r"loggers.json is damaged"):
        run_of(teacher, run, ["json"], checkpoint_every=1, epochs=4, resume=True)


def test_a_tracker_that_fails_is_left_out_with_a_warning(memory: type[Memory], teacher: Path, tmp_path: Path):
    class Collecting(SilentDisplay):
        messages: ClassVar[list[str]] = []

        def event(self, event: Event) -> None:
            if isinstance(event, Warned):
                self.messages.append(event.message)

    memory.fails_at = 2
    display = Collecting()
    run_of(teacher, tmp_path / "run", ["json"], display)
    told = [message for message in display.messages if message.startswith("json gets no more epochs")]
    assert told == ["json gets no more epochs: connection lost; --resume with --logger json adds them"]
    assert (tmp_path / "run" / "student.safetensors").is_file()
    assert [list(epochs) for epochs in memory.runs.values()] == [[1]]
    memory.fails_at = 0
    run_of(teacher, tmp_path / "run", ["json"], resume=True)  # of a finished run
    assert [list(epochs) for epochs in memory.runs.values()] == [[1, 2, 3]]


def test_a_tracker_that_does_not_start_ends_the_run_in_one_sentence(
    memory: type[Memory], teacher: Path, tmp_path: Path
):
    memory.fails_at = -1
    with pytest.raises(RunError, match=r"--logger json does not start: no server; fix it or leave it out$"):
        run_of(teacher, tmp_path / "run", ["json"])
    assert not (tmp_path / "run").exists()
    memory.fails_at = 0
    run_of(teacher, tmp_path / "run", ["json"])
    before = files_of(tmp_path / "run")
    memory.fails_at = -1
    for options in ({"overwrite": True, "seed": 1}, {"resume": True, "epochs": 4}):
        with pytest.raises(RunError, match="no server"):
            run_of(teacher, tmp_path / "run", ["json"], **options)
        assert files_of(tmp_path / "run") == before
    memory.fails_at = 0
    with closing(lock(tmp_path / "run" / ".lock")), pytest.raises(Taken):  # as of another process that writes there
        run_of(teacher, tmp_path / "run", ["json"], resume=True, epochs=4)
    assert memory.ends == [True]  # only that of the finished run
    run_of(teacher, tmp_path / "run", ["json"], overwrite=True)  # is another run there, not the one it replaces
    assert len(memory.runs) == 2


def test_a_tracker_that_lacks_a_package_says_how_to_install_it(
    memory: type[Memory], teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def start(*_: object) -> str:
        raise ModuleNotFoundError("No module named 'alembic'", name="alembic")

    monkeypatch.setattr(memory, "start", start)
    expected = '--logger json needs alembic, which is not installed: pip install "gapssg[json]"'
    with pytest.raises(RunError, match=f"^{re.escape(expected)}$"):
        run_of(teacher, tmp_path / "run", ["json"])
    assert not (tmp_path / "run").exists()


def test_a_tracker_hears_nothing_of_a_run_that_is_refused(memory: type[Memory], teacher: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.safetensors"):
        run_of(tmp_path / "none.safetensors", tmp_path / "run", ["json"])
    assert not memory.runs


def test_unknown_and_missing_trackers_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = ["pretrain-teacher", "--data", "digits", "--model", "wrn10_half", "--output", tmp_path / "run", "--logger"]
    assert refusal(*run, "wandbb") == "--logger wandbb is not one of tensorboard, wandb, mlflow (did you mean wandb?)"
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    expected = '--logger mlflow needs mlflow, which is not installed: pip install "gapssg[mlflow]"'
    assert refusal(*run, "mlflow") == expected
    assert not (tmp_path / "run").exists()


def records_in(content: bytes) -> Iterator[bytes]:
    """Read a `.wandb` file: 7 bytes of its own, then the format of LevelDB's logs, with blocks of 32 KiB."""
    whole, at = b"", 7
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # no room for a header: padding
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, last
            yield whole
            whole = b""


@pytest.mark.slow
def test_wandb_offline_has_the_epochs_of_a_run_and_of_its_continuation(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run = tmp_path / "run"
    run_of(teacher, run, ["wandb"], epochs=1)
    run_of(teacher, run, ["wandb"], epochs=2, resume=True)
    wandb.teardown()  # ends the process that writes the files
    identifier = json.loads((run / "loggers.json").read_text())["ids"]["wandb"]
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{identifier}.wandb"))
    assert len(files) == 2  # one for each process, of the same run
    found: dict[int, float] = {}
    for file in files:
        for data in records_in(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if "reality_gap_after" in items:
                found[record.history.step.num] = json.loads(items["reality_gap_after"])
    epochs = [event for event in events(run) if event["event"] == "epoch"]
    assert found == {event["epoch"]: event["reality_gap_after"] for event in epochs}


@pytest.mark.slow
def test_mlflow_says_of_a_folder_of_files_what_to_set(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("mlflow", minversion="3.7")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    with pytest.raises(RunError, match="MLFLOW_ALLOW_FILE_STORE=true"):
        run_of(teacher, tmp_path / "run", ["mlflow"], epochs=1)


@pytest.mark.slow
def test_the_extra_of_mlflow_has_what_its_default_store_imports():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = " ".join(project["optional-dependencies"]["mlflow"])
    pytest.importorskip("mlflow")
    store = importlib.util.find_spec("mlflow.store.db.utils")
    assert store is not None and store.origin is not None
    tree = ast.parse(Path(store.origin).read_text(encoding="utf-8"))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    needed = {name.partition(".")[0] for name in imported} & {"alembic", "sqlalchemy"}
    assert needed and all(name in extra for name in needed)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["default", "folder"])
def test_mlflow_has_each_epoch_once_after_a_continuation(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    if store == "folder":
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    else:
        pytest.importorskip("alembic")
        monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run_of(teacher, run, ["mlflow"], epochs=1)
    run_of(teacher, run, ["mlflow"], epochs=2, resume=True)
    identifier = json.loads((run / "loggers.json").read_text())["ids"]["mlflow"]
    client = MlflowClient()
    history = client.get_metric_history(identifier, "reality_gap_after")
    epochs = [event for event in events(run) if event["event"] == "epoch"]
    assert [(each.step, each.value) for each in history] == [(e["epoch"], e["reality_gap_after"]) for e in epochs]
    stored = client.get_run(identifier)
    assert (stored.info.status, stored.info.run_name) == ("FINISHED", "run")
    assert stored.data.params["method.name"] == "noise"
