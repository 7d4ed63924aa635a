"""Running a table: runs that are made, skipped, resumed or left to others, and the summary."""

from __future__ import annotations

import csv
import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from gapssg.errors import InputError, RunError, Taken
from gapssg.files import lock, write_json
from gapssg.models import MODELS, ModelEntry
from gapssg.runs.directory import SilentDisplay
from gapssg.runs.events import Event, Note
from gapssg.runs.requests import Requests, Stopped
from gapssg.runs.results.distillation import DistillResult
from gapssg.runs.results.table import MethodEntry, TableResult, TableSummary
from gapssg.runs.results.training import PretrainResult
from gapssg.synthesis.gapssg import GapSSGSettings
from gapssg.table import figures, one_run
from gapssg.table import run as runs
from gapssg.table.ledger import Ledger
from gapssg.table.place import CellDisplay, Ending
from gapssg.table.plan import Task, plan_tasks
from gapssg.table.settings import TableSettings, parse_variant
from gapssg.table.students import students_of
from gapssg.table.summary import summarise, write_summary
from gapssg.training.settings import DistillSettings, PretrainSettings
from tests.conftest import write_images
from tests.program import gapssg, refusal
from tests.results import make_distill_result, make_pretrain_result

ROW = "cifar10-wrn40_2-wrn16_1"
OF_FAST = "the learning rate ends at 0, not at 2e-4"


@pytest.fixture(autouse=True)
def known_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take GapSSG's published settings for known for every pair, so that its cells have no mark but those tested."""
    monkeypatch.setattr(GapSSGSettings, "published_pair", None)


class Engine:
    """Replaces training and distillation: writes results, or raises the errors that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, bool, bool]] = []
        self.fails: dict[str, Exception | Stopped] = {}
        monkeypatch.setattr(one_run, "distill", self._call)
        monkeypatch.setattr(one_run, "pretrain_teacher", self._call)
        monkeypatch.setattr(runs, "_SECONDS_BETWEEN_LOOKS", 0.01)

    def _call(
        self, settings: PretrainSettings | DistillSettings, output: Path, *, overwrite: bool, resume: bool, **_: Any
    ) -> DistillResult | PretrainResult:
        name = f"{output.parent.name}/{settings.seed}"
        self.calls.append((name, resume, overwrite))
        output.mkdir(parents=True, exist_ok=True)
        (output / "settings.toml").write_text(settings.to_toml())
        if name in self.fails and not overwrite:
            raise self.fails[name]
        return write_run(output, settings.seed, 0.9 + settings.seed / 100)

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]


def write_run(
    output: Path, seed: int, top1: float, seconds: float = 4.0, device: str = "cpu"
) -> DistillResult | PretrainResult:
    make = make_pretrain_result if "pretrained" in output.parts else make_distill_result
    result = make(top1, seconds=seconds, seed=seed, device=device)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "result.json", result.model_dump(mode="json"))
    return result


@pytest.fixture(autouse=True)
def nothing_is_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip fsync, which other tests check, to save time."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    return Engine(monkeypatch)


def plan(root: Path, **changes: Any) -> list[Task]:
    values = {"rows": [ROW], "methods": ["gapssg", "fast"], "seeds": 2, **changes}
    return plan_tasks(TableSettings.model_validate(values), root)


def columns_of(summary: TableSummary, index: int = 0) -> dict[str, MethodEntry]:
    return {entry.column: entry for entry in summary.rows[index].columns}


def test_every_run_is_made_once_after_its_teacher(engine: Engine, tmp_path: Path):
    summary = runs.run_table(plan(tmp_path / "table"), tmp_path / "table")
    assert engine.names[0] == "cifar10-wrn40_2/0"
    assert sorted(engine.names[1:]) == [
        *("cifar10-wrn16_1/0", "cifar10-wrn16_1/1", "fast/0", "fast/1", "gapssg/0", "gapssg/1")
    ]
    assert summary.failed == summary.elsewhere == {}
    first = list(engine.calls)
    runs.run_table(plan(tmp_path / "table", seeds=3), tmp_path / "table")
    assert sorted(engine.names[len(first) :]) == ["cifar10-wrn16_1/2", "fast/2", "gapssg/2"]


def test_other_settings_are_another_line_of_the_table(engine: Engine, tmp_path: Path):
    root = tmp_path / "table"
    runs.run_table(plan(root, seeds=1), root)
    summary = runs.run_table(plan(root, seeds=1, changes=["epochs=9"]), root)
    assert engine.names.count("gapssg/0") == 2
    assert [row.changes for row in summary.rows] == [(), ("epochs=9",)]
    assert columns_of(summary, 1)["gapssg"].marks == ("b",)
    assert summary.notes == {"a": OF_FAST, "b": "with epochs=9"}


def interrupt(task: Task, *, has_checkpoint: bool = True) -> Path:
    """Write what an interrupted run leaves."""
    (task.run / "checkpoint").mkdir(parents=True)
    (task.run / "settings.toml").write_text(task.settings.to_toml())
    if has_checkpoint:
        (task.run / "checkpoint" / "latest.safetensors").touch()
    return task.run


def test_images_of_another_size_are_another_line_with_a_teacher_of_its_own(engine: Engine, tmp_path: Path):
    root = tmp_path / "table"
    runs.run_table(plan(root, seeds=1), root)
    summary = runs.run_table(plan(root, seeds=1, image_size=16, methods=["fast"]), root)
    assert [row.changes for row in summary.rows] == [(), ("image_size=16",)]
    teachers = [row.teacher.runs for row in summary.rows]
    assert teachers[0] != teachers[1]
    assert set(columns_of(summary)) == {"gapssg", "fast"}
    assert set(columns_of(summary, 1)) == {"fast"}


def test_a_line_shows_the_cells_of_the_last_requested_teacher(engine: Engine, tmp_path: Path):
    root = tmp_path / "table"
    tasks = plan(root, seeds=1)
    runs.run_table(tasks, root)
    for file in (root / "cells").rglob("gapssg/*.json"):
        file.write_text(file.read_text().replace(tasks[0].run.name.split("-")[-1], "0123456789ab"))
    summary = summarise(Ledger(root))
    assert set(columns_of(summary)) == {"fast"}
    assert [row.teacher.runs for row in summary.rows] == [(str(tasks[0].run.relative_to(root)),)]


def test_the_table_shows_the_last_requested_cells(engine: Engine, tmp_path: Path):
    root = tmp_path / "table"
    for weight in (0.1, 0.2, 0.1):
        variant = parse_variant(f"v:method.gap_weight={weight}").to_dict()
        tasks = plan(root, methods=[], variants=[variant], seeds=1)
        summary = runs.run_table(tasks, root)
        assert columns_of(summary)["v"].runs == (str(tasks[-1].run.relative_to(root)),)
        assert list(summary.notes.values()) == [f"v is with method.gap_weight={weight}"]
    assert engine.names.count("v/0") == 2


def test_an_interrupted_run_is_resumed_on_its_device(engine: Engine, tmp_path: Path):
    root = tmp_path / "table"
    Ledger(root).begin()
    run = interrupt(plan(root, runtime={"device": "cpu"})[0])
    runs.run_table(plan(root), root)
    assert engine.calls[0] == ("cifar10-wrn40_2/0", True, False)
    assert 'device = "cpu"' in (run / "settings.toml").read_text()


def test_a_resumed_run_keeps_what_it_writes_and_may_have_more_rollbacks(engine: Engine, tmp_path: Path):
    root = tmp_path / "table"
    before = ["evaluate_every=3", "snapshot_every=2", "samples=false", "max_rollbacks=1"]
    Ledger(root).begin()
    run = interrupt(plan(root, changes=before)[-1])
    tasks = plan(root, changes=["evaluate_every=5", "max_rollbacks=7"])
    assert tasks[-1].run == run
    runs.run_table(tasks, root)
    assert ("fast/1", True, False) in engine.calls
    settings = tomllib.loads((run / "settings.toml").read_text())
    assert {key: settings[key] for key in ("evaluate_every", "snapshot_every", "samples", "max_rollbacks")} == {
        **{"evaluate_every": 3, "snapshot_every": 2, "samples": False, "max_rollbacks": 7}
    }


def test_a_run_without_a_checkpoint_is_restarted(engine: Engine, tmp_path: Path):
    root = tmp_path / "table"
    Ledger(root).begin()
    interrupt(plan(root)[0], has_checkpoint=False)
    runs.run_table(plan(root), root)
    assert engine.calls[0] == ("cifar10-wrn40_2/0", False, True)


def test_a_run_that_cannot_be_resumed_is_kept(engine: Engine, tmp_path: Path):
    root = tmp_path / "table"
    Ledger(root).begin()
    run = interrupt(plan(root)[0])
    engine.fails["cifar10-wrn40_2/0"] = InputError("the images are others")
    summary = runs.run_table(plan(root), root)
    assert ("cifar10-wrn40_2/0", False, True) not in engine.calls
    assert (run / "checkpoint" / "latest.safetensors").exists()
    (sentence,) = summary.failed.values()
    assert sentence == f"the images are others; the run is kept; to restart it, remove {run}"


class Asking(SilentDisplay):
    """Collects messages, and requests a stop in an epoch of a run."""

    def __init__(self, run: str | None) -> None:
        self.run = run
        self.requests = Requests()
        self.said: list[str] = []

    def event(self, event: Event) -> None:
        assert isinstance(event, Note)
        self.said.append(event.message)

    def progress(self, task: str, done: int, total: int) -> None:
        if self.run is not None and self.run in task and "epoch" in task:
            self.requests.stop = 15


def test_runs_are_resumed_after_folders_have_moved(tmp_path: Path):
    tiny = ModelEntry("tests.tiny:tiny", "for tests")
    base = tmp_path / "first"
    write_images(base / "faces")

    def run(root: Path, stop_in: str | None = None) -> tuple[TableResult, list[str]]:
        values = {"data": f"folder:{base / 'faces'}", "budget": "smoke", "runtime": {"device": "cpu"}}
        display = Asking(stop_in)
        tasks = plan(root, rows=["digits"], methods=["zskt"], seeds=1, scratch=False, **values)
        return runs.run_table(tasks, root, display=display, requests=display.requests), display.said

    with mock.patch("gapssg.models.names.MODELS", {**MODELS, "wrn16_1": tiny, "wrn16_2": tiny}):
        whole, _ = run(tmp_path / "whole")
        for part, place in (("teacher", "second"), ("zskt", "third")):
            with pytest.raises(Stopped):
                run(base / "table", part)
            base = base.rename(tmp_path / place)
        found, said = run(base / "table")
    assert found.failed == {}
    assert not any("restart" in sentence for sentence in said)
    cell = found.rows[0].columns[0].runs[0]
    assert cell == whole.rows[0].columns[0].runs[0]
    for file in ("student.safetensors", "best.safetensors"):
        assert (base / "table" / cell / file).read_bytes() == (tmp_path / "whole" / cell / file).read_bytes()


def test_any_error_ends_only_its_run_and_its_traceback_is_kept(engine: Engine, tmp_path: Path):
    root = tmp_path / "table"
    engine.fails["gapssg/1"] = RuntimeError("not enough memory: you tried to allocate 9 bytes\nin C++")
    summary = runs.run_table(plan(root), root)
    assert sorted(engine.names)[-3:] == ["fast/1", "gapssg/0", "gapssg/1"]
    (sentence,) = summary.failed.values()
    assert sentence.startswith("RuntimeError: not enough memory: you tried to allocate 9 bytes (its traceback is in ")
    (file,) = root.rglob("*.failed.json")
    assert str(file) in sentence
    assert "in _call\n    raise self.fails[name]" in json.loads(file.read_text())["traceback"]
    assert columns_of(summary)["gapssg"].failed == (1,)


def test_the_failure_of_a_run_that_has_finished_since_is_cleared(engine: Engine, tmp_path: Path):
    root = tmp_path / "table"
    engine.fails["gapssg/1"] = RunError("the disk is full")
    summary = runs.run_table(plan(root), root)
    assert columns_of(summary)["gapssg"].failed == (1,)
    write_run(next(task.run for task in plan(root) if task.label.endswith("gapssg, seed 1")), 1, 0.9)
    again = runs.run_table(plan(root), root)
    assert columns_of(again)["gapssg"].failed == ()
    assert list(again.notes.values()) == [OF_FAST]


def test_a_failed_run_is_reported_and_the_others_are_made(engine: Engine, tmp_path: Path):
    root = tmp_path / "table"
    engine.fails["gapssg/1"] = RunError("the student diverged.")
    summary = runs.run_table(plan(root), root)
    assert summary.failed == {f"{ROW}, gapssg, seed 1": "the student diverged."}
    cells = columns_of(summary)
    assert (cells["gapssg"].seeds, cells["gapssg"].failed) == ((0,), (1,))
    assert cells["fast"].seeds == (0, 1)
    assert summary.notes == {"a": "failed with 1 of the seeds (seed 1: the student diverged)", "b": OF_FAST}
    engine.fails.clear()
    again = runs.run_table(plan(root), root)
    assert columns_of(again)["gapssg"].seeds == (0, 1)
    assert list(again.notes.values()) == [OF_FAST]


def test_a_cell_is_not_started_without_its_teacher(engine: Engine, tmp_path: Path):
    engine.fails["cifar10-wrn40_2/0"] = RunError("the disk is full")
    summary = runs.run_table(plan(tmp_path / "table"), tmp_path / "table")
    assert list(summary.failed.values()) == ["the disk is full"]
    assert sorted(engine.names) == ["cifar10-wrn16_1/0", "cifar10-wrn16_1/1", "cifar10-wrn40_2/0"]
    assert summary.rows[0].teacher.failed == (0,)


def test_a_stop_ends_the_table_and_fails_nothing(engine: Engine, tmp_path: Path):
    root = tmp_path / "table"
    engine.fails["gapssg/0"] = Stopped(2)
    with pytest.raises(Stopped):
        runs.run_table(plan(root), root)
    assert engine.names[-1] == "gapssg/0"
    assert not list(root.rglob("*.failed.json"))


def test_a_stop_in_the_last_epoch_of_a_run_ends_the_table_after_it(engine: Engine, tmp_path: Path):
    requests = Requests()
    requests.stop = 15
    with pytest.raises(Stopped):
        runs.run_table(plan(tmp_path / "table"), tmp_path / "table", requests=requests)
    assert engine.names == ["cifar10-wrn40_2/0"]
    assert json.loads((tmp_path / "table" / "table.json").read_text())["rows"][0]["teacher"]["seeds"] == [0]


def lock_of(run: Path) -> Path:
    run.parent.mkdir(parents=True, exist_ok=True)
    return run.parent / f".{run.name}.lock"


def test_a_cell_that_another_process_makes_is_left_to_it(engine: Engine, tmp_path: Path):
    root = tmp_path / "table"
    taken = next(task for task in plan(root) if task.label.endswith("gapssg, seed 0"))
    Ledger(root).begin()
    with lock(lock_of(taken.run)):
        summary = runs.run_table(plan(root), root)
    assert list(summary.elsewhere) == [taken.label]
    assert summary.elsewhere[taken.label].startswith("process ")
    assert "gapssg/0" not in engine.names
    assert "gapssg/1" in engine.names


def test_two_processes_on_one_cell_are_refused_with_the_first_ones_name(engine: Engine, tmp_path: Path):
    root = tmp_path / "table"
    tasks = plan(root, methods=["gapssg"], seeds=1, scratch=False)
    Ledger(root).begin()
    write_run(tasks[0].run, 0, 0.9)
    with lock(lock_of(tasks[1].run)), pytest.raises(Taken, match="by process") as caught:
        runs.run_table(tasks, root)
    assert tasks[1].label in str(caught.value)
    assert engine.calls == []


def test_the_teacher_of_another_process_is_waited_for(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "table"
    tasks = plan(root)
    Ledger(root).begin()
    held = lock(lock_of(tasks[0].run))
    looks = []

    def wait(_: float) -> None:
        looks.append(list(engine.names))
        if len(looks) == 2:
            write_run(tasks[0].run, 0, 0.95)
            held.close()

    monkeypatch.setattr("gapssg.table.run.time.sleep", wait)
    runs.run_table(tasks, root)
    assert len(looks) == 2
    assert sorted(looks[0]) == ["cifar10-wrn16_1/0", "cifar10-wrn16_1/1"]  # what needs no teacher is made meanwhile
    assert "cifar10-wrn40_2/0" not in engine.names
    assert "fast/1" in engine.names


class Elsewhere(SilentDisplay):
    """A place whose runs are made at the same time, end in the opposite order, and are each interrupted once."""

    def __init__(self, room: int, by_hand: str = "") -> None:
        self.room = room
        self.by_hand = by_hand
        self.running: list[Task] = []
        self.most_at_once = 0
        self.interrupted: set[str] = set()
        self.stopped: list[str] = []

    def has_room(self) -> bool:
        return len(self.running) < self.room

    def start(self, task: Task) -> None:
        assert task.teacher is None or (task.teacher / "result.json").exists()
        with pytest.raises(Taken):
            lock(lock_of(task.run))
        self.running.append(task)
        self.most_at_once = max(self.most_at_once, len(self.running))

    def ended(self, *, wait: bool) -> Iterator[tuple[Path, Ending]]:
        if wait and self.running:
            task = self.running.pop()
            if task.label not in self.interrupted:
                self.interrupted.add(task.label)
                yield task.run, Ending(stopped=2)
            elif self.by_hand and self.by_hand in task.label:
                yield task.run, Ending(holder="process 1 on another")
            else:
                yield task.run, one_run.make_run(task, CellDisplay(self, task.label), Requests())

    def stop(self) -> None:
        self.stopped += [task.label for task in self.running]


def test_runs_of_another_place_are_made_at_the_same_time(engine: Engine, tmp_path: Path):
    root, place = tmp_path / "table", Elsewhere(room=3)
    engine.fails["fast/1"] = RunError("the disk is full")
    summary = runs.run_table(plan(root), root, place=place)
    here = runs.run_table(plan(tmp_path / "here"), tmp_path / "here")
    assert place.most_at_once == 3
    assert sorted(engine.names[:7]) == sorted(engine.names[7:])
    assert summary == here
    assert list(summary.failed.values()) == ["the disk is full"]
    for task in plan(root):
        lock(lock_of(task.run)).close()


def test_a_run_of_another_place_that_is_resumed_by_hand_is_left(engine: Engine, tmp_path: Path):
    root = tmp_path / "table"
    summary = runs.run_table(plan(root), root, place=Elsewhere(room=9, by_hand="gapssg, seed 1"))
    assert summary.elsewhere == {f"{ROW}, gapssg, seed 1": "process 1 on another"}
    assert "gapssg/1" not in engine.names
    assert len(engine.names) == len(plan(root)) - 1


def test_runs_of_another_place_are_stopped_with_the_table(engine: Engine, tmp_path: Path):
    root, place, requests = tmp_path / "table", Elsewhere(room=9), Requests()
    requests.stop = 15
    with pytest.raises(Stopped):
        runs.run_table(plan(root), root, place=place, requests=requests)
    assert place.stopped == [plan(root)[0].label]
    assert engine.calls == []


@pytest.fixture
def finished(tmp_path: Path) -> Iterator[Path]:
    """A table whose runs have known results."""
    root = tmp_path / "table"
    tasks = plan(root, seeds=3)
    Ledger(root).begin()
    for task in tasks:
        if task.plan is not None:
            Ledger(root).save_plan(task.plan)
    accuracies = {"gapssg": (0.90, 0.92, 0.91), "fast": (0.80,), "wrn16_1": (0.93, 0.95), "wrn40_2": (0.949,)}
    for task in tasks:
        found = accuracies[task.plan.column if task.plan else task.run.parent.name.removeprefix("cifar10-")]
        if task.settings.seed < len(found):
            device = "cuda:0" if task.settings.seed == 2 else "cpu"
            write_run(task.run, task.settings.seed, found[task.settings.seed], 10.0 * task.settings.seed, device)
    write_summary(Ledger(root))
    yield root


def test_figures_are_means_and_sample_deviations_of_the_last_epochs(finished: Path):
    summary = TableSummary.read((finished / "table.json").read_bytes(), "table.json")
    assert summary.format == 1
    row = summary.rows[0]
    ours, fast = row.columns
    assert ours.top1 == pytest.approx(0.91)
    assert ours.deviation == pytest.approx(0.01)  # of 0.90, 0.92, 0.91: the root of (0.0001 + 0.0001) / 2
    assert (ours.seconds, ours.device, ours.seeds) == (10.0, "cpu and cuda:0", (0, 1, 2))
    assert (ours.published_top1, ours.published_deviation) == (pytest.approx(0.9045), pytest.approx(0.002))
    assert (fast.top1, fast.deviation, fast.published_top1) == (0.8, None, pytest.approx(0.8929))
    assert row.scratch.deviation == pytest.approx(0.02 / 2**0.5)
    assert (row.teacher.top1, row.teacher.published_top1) == (0.949, pytest.approx(0.9487))
    for run in ours.runs:
        assert (finished / run / "result.json").exists()


def test_the_markdown_has_rows_and_columns_as_published(finished: Path):
    lines = (finished / "table.md").read_text().splitlines()
    assert "| row | teacher | scratch | gapssg | fast |" in lines
    figures = "94.90, n=1 (94.87) | 94.00 ± 1.41, n=2 (91.12) | 91.00 ± 1.00, n=3 (90.45 ± 0.20) | 80.00, n=1 (89.29) a"
    assert f"| {ROW} | {figures} |" in lines
    assert f"| {ROW} | 0 | 5 | 10 | 0 |" in lines


def test_students_that_are_not_usable_are_marked(finished: Path):
    for seed, failures in (
        (1, ["the teacher answers all images with class 'cat'", "no class is 'dog'"]),
        (2, ["lost"]),
    ):
        (file,) = finished.glob(f"cells/*/gapssg/seed-{seed}-*/result.json")
        write_json(file, {**json.loads(file.read_text()), "failures": failures})
    summary = write_summary(Ledger(finished))
    ours, fast = summary.rows[0].columns
    (mark,) = ours.marks
    note = "not usable with 2 of the seeds (seed 1: the teacher answers all images with class 'cat')"
    assert summary.notes[mark] == note
    assert mark not in fast.marks
    assert (ours.not_usable, fast.not_usable) == ((1, 2), ())
    assert f"91.00 ± 1.00, n=3 (90.45 ± 0.20) {mark} |" in (finished / "table.md").read_text()
    assert f"{mark}: {note}." in (finished / "table.md").read_text()


def test_the_csv_has_a_line_for_each_figure(finished: Path):
    lines = list(csv.DictReader((finished / "table.csv").read_text().splitlines()))
    assert [line["column"] for line in lines] == ["teacher", "scratch", "gapssg", "fast"]
    ours = lines[2]
    assert (ours["row"], ours["budget"], ours["seeds"]) == (ROW, "full", "0 1 2")
    assert float(ours["top1"]) == pytest.approx(0.91)
    assert float(ours["published_top1"]) == pytest.approx(0.9045)


def test_lines_of_one_row_are_distinguished_by_their_changes(engine: Engine, tmp_path: Path):
    root = tmp_path / "table"
    for epochs in (8, 9):
        changes = {"changes": [f"epochs={epochs}", "batch_size=4"], "pretrain_changes": ["epochs=2"]}
        runs.run_table(plan(root, methods=["gapssg"], seeds=1, budget="short", **changes), root)
    lines = [line for line in csv.DictReader((root / "table.csv").read_text().splitlines())]
    assert [line["changes"] for line in lines if line["column"] == "gapssg"] == [
        f"epochs={epochs}; batch_size=4; pretrain epochs=2" for epochs in (8, 9)
    ]
    assert lines[-1]["notes"] == (
        "budget short, which is not the published one; teacher and scratch student trained with epochs=2; "
        "with epochs=9, batch_size=4"
    )
    markdown = (root / "table.md").read_text()
    assert markdown.count(f"| {ROW} (short, epochs=9, batch_size=4, pretrain epochs=2) |") == 2


def test_figures_are_named_by_their_line_and_drawn_even_if_others_cannot_be(
    finished: Path, monkeypatch: pytest.MonkeyPatch
):
    drawn = []

    def write(name: str, *_: Any) -> None:
        drawn.append(name)
        if "short" in name:
            raise InputError("a run of the row has another teacher")

    monkeypatch.setattr(figures, "write_row_figures", write)
    summary = summarise(Ledger(finished))
    (row,) = summary.rows
    changed = ("pretrain optimizer.milestones=[0.5, 0.7]",)
    lines = (
        row,
        row.model_copy(update={"budget": "short"}),
        row.model_copy(update={"changes": ("epochs=9", *changed)}),
        row.model_copy(update={"changes": ("epochs 9", *changed)}),
    )
    failed = figures.write_table_figures(finished, summary.model_copy(update={"rows": lines}))
    long = f"{ROW}-epochs-9-pretrain-optimizer.milestones-0.5-0.7-"
    assert drawn == [ROW, f"{ROW}-short", long, f"{long}-2"]
    assert failed == {f"{ROW}-short": "a run of the row has another teacher"}


def test_the_students_of_a_line_are_those_of_the_lowest_seeds(finished: Path):
    runs = students_of(finished, None)
    assert [run.parent.name for run in runs] == ["gapssg", "fast"]
    assert all(run.name.startswith("seed-0-") and (run / "result.json").is_file() for run in runs)
    for task in plan(finished, changes=["epochs=9"]):  # another line, without a finished run
        if task.plan is not None:
            Ledger(finished).save_plan(task.plan)
    with pytest.raises(InputError, match=rf"has 2 such lines; choose one with --row: {ROW}, {ROW}-epochs-9$"):
        students_of(finished, None)
    assert students_of(finished, ROW) == runs  # the line of exactly this name
    with pytest.raises(InputError, match=rf"{ROW}-epochs-9 in .* has no finished run; continue it with gapssg table"):
        students_of(finished, f"{ROW}-epochs-9")
    with pytest.raises(InputError, match=r"has 0 such lines; choose one with --row"):
        students_of(finished, "digits")


def test_show_prints_the_ledger_and_needs_no_figure_to_be_there(finished: Path, tmp_path: Path):
    shown = gapssg("table", finished, "--show").stdout
    assert "91.00 ± 1.00" in shown
    assert "90.45 ± 0.20" in shown
    as_json = json.loads(gapssg("table", finished, "--show", "--json").stdout)
    assert as_json == {"command": "table", **json.loads((finished / "table.json").read_text())}
    Ledger(tmp_path / "empty").begin()
    assert json.loads(gapssg("table", tmp_path / "empty", "--show", "--json").stdout)["rows"] == []


def test_a_directory_that_is_not_a_table_is_refused(finished: Path, tmp_path: Path):
    assert "holds no table" in refusal("table", tmp_path / "absent", "--show")
    assert "--rows is missing" in refusal("table", tmp_path / "absent")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    rows = ["--rows", "digits", "--methods", "gapssg"]
    assert "holds other files than a table" in refusal("table", tmp_path / "other", *rows)
    assert "did you mean digits" in refusal("table", tmp_path / "new", "--rows", "digit")
    sentence = refusal("table", tmp_path / "new", *rows, "--set", "method.rounds=3")
    assert "digits, gapssg: method.rounds (from --set) is not a setting of gapssg, but of dafl" in sentence
    assert not (tmp_path / "new").exists()
    result = next(finished.glob("cells/*/*/*/result.json"))
    result.write_text("{}")
    assert "result.json is damaged" in refusal("table", finished, "--show")


def test_a_newer_format_is_refused(finished: Path):
    before = (finished / "table.json").read_text()
    (finished / "table.json").write_text(before.replace('"format": 1', '"format": 2'))
    for arguments in (["--show"], ["--rows", "digits"]):
        sentence = refusal("table", finished, *arguments)
        assert sentence.endswith("was written by a newer gapssg (format 2; this one knows 1); update gapssg")
    with pytest.raises(InputError, match="newer"):
        summarise_checked(finished)


def summarise_checked(root: Path) -> TableSummary:
    ledger = Ledger(root)
    ledger.begin()
    return summarise(ledger)


@pytest.mark.slow
def test_the_program_makes_a_table_and_a_failure_is_exit_status_1(tmp_path: Path):
    tiny = ModelEntry("tests.tiny:tiny", "for tests")
    images = write_images(tmp_path / "faces")
    arguments = [tmp_path / "table", "--rows", "digits", "--methods", "gapssg,dafl", "--seeds", 2, "--budget", "smoke"]
    arguments += ["--data", f"folder:{images}", "--device", "cpu", "--set", "method.generator_width=4"]
    arguments += ["--variant", "noise-like:method.name=noise", "--set", "method.latent_size=8"]
    with mock.patch("gapssg.models.names.MODELS", {**MODELS, "wrn16_1": tiny, "wrn16_2": tiny}):
        sentence = refusal("table", *arguments)
        assert "method.generator_width (from --set) is not a setting of noise" in sentence
        arguments[arguments.index("noise-like:method.name=noise")] = "alone:method.gap_weight=0"
        first = gapssg("table", *arguments, "--json")
        again = gapssg("table", *arguments, "--json")
        kept = gapssg("table", *arguments, "--set", "snapshot_every=7", "--json")
        failing = gapssg("table", *arguments, "--set", "pool=/absent", "--json", status=1)
        shutil.copytree(tmp_path / "table", tmp_path / "other")
        for file in (tmp_path / "other" / "cells").rglob("gapssg/seed-0-*/result.json"):
            result = json.loads(file.read_text())
            write_json(file, {**result, "teacher": {**result["teacher"], "sha256": "another"}})
        arguments[0] = tmp_path / "other"
        mixed = gapssg("table", *arguments, "--json")
    summary = json.loads(first.stdout)
    (row,) = summary["rows"]
    assert row["row"] == "faces-wrn16_2-wrn16_1"
    assert [(entry["column"], entry["seeds"]) for entry in row["columns"]] == [
        *(("gapssg", [0, 1]), ("dafl", [0, 1]), ("alone", [0, 1]))
    ]
    assert all(entry["marks"] for entry in row["columns"])
    assert (tmp_path / "table" / row["columns"][2]["runs"][0] / "student.safetensors").exists()
    line = "faces-wrn16_2-wrn16_1-smoke-method.generator_width-4-method.latent_size-8"
    drawn = sorted(file.name for file in (tmp_path / "table" / "figures").iterdir())
    assert drawn == [f"{line}-{name}" for name in ("accuracy.png", "accuracy.svg", "gap.png", "gap.svg")]
    assert "faces-wrn16_2-wrn16_1, gapssg, seed 1: top-1" in first.stderr
    assert again.stderr.count("done before\n") == 9
    # Settings that change no result are no departure; what is missing for them is said.
    assert json.loads(again.stdout) == json.loads(kept.stdout) == summary
    assert kept.stderr.count("done before; not made again for snapshot_every=7 (it had none)\n") == 6
    assert "/absent" in next(iter(json.loads(failing.stdout)["failed"].values()))
    assert json.loads(mixed.stdout)["rows"][0]["columns"]
    assert f"no figures of {line}: " in mixed.stderr
    assert "has another teacher or student" in mixed.stderr


@pytest.mark.parametrize("text", ["=HYPERLINK(A1)", "+1", "-1", "@SUM(A1)", "\uff1d1", "\t=1"])
def test_texts_of_a_plan_are_not_formulas_in_the_csv(finished: Path, text: str):
    for file in (finished / "cells").glob("*/*/*.json"):
        write_json(file, {**json.loads(file.read_text()), "changes": [text], "departures": [text]})
    write_summary(Ledger(finished))
    for line in csv.DictReader((finished / "table.csv").read_text().splitlines()):
        for cell in (line["changes"], line["notes"]):
            assert cell[:1] not in ("=", "+", "-", "@", "\t", "\uff1d")


@pytest.mark.parametrize(
    "text", ["[a](http://x)", "<img src=x>", "**a**", "`a`", "a | b", "![a](b)", "&lt;", "_a_", "~~a~~", "$a$", "\\"]
)
def test_texts_of_a_plan_are_not_markup_in_the_markdown(finished: Path, text: str):
    for file in (finished / "cells").glob("*/*/*.json"):
        write_json(file, {**json.loads(file.read_text()), "changes": [text], "departures": [text]})
    write_summary(Ledger(finished))
    markdown = (finished / "table.md").read_text()
    assert text == "\\" or not re.search(rf"(?<!\\){re.escape(text)}", markdown)
    assert markdown.count("\\\\") == (3 if text == "\\" else 0)
    # Without the backslashes, which Markdown removes, it is the original text.
    assert text in re.sub(r"\\(.)", r"\1", markdown)
