from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gapssg.errors import InputError
from gapssg.figures import COLUMN
from gapssg.files import write_json
from gapssg.table.figures import (
    RowCell,
    RowCurves,
    accuracy_figure,
    gap_figure,
    mean_curve,
    read_curves,
    read_row,
    write_row_figures,
)
from tests.results import make_distill_result

TEACHER_TOP1 = 0.96


def epoch_event(epoch: int, epochs: int, top1: float | None, **values: Any) -> dict[str, Any]:
    gaps = {"reality_gap_before": 0.5 / epoch, "reality_gap_after": 0.25 / epoch, "agreement_before": None}
    timing = {"synthesis": 1.0, "distillation": 1.0, "images_per_second": 1.0}
    event = {"event": "epoch", "epoch": epoch, "epochs": epochs, "top1": top1, "loss": None, "timing": timing}
    return {**event, **gaps, **values}


def make_run(
    folder: Path, accuracies: Sequence[float | None], *, sha256: str = "t", architecture: str = "wrn16_1"
) -> Path:
    """A run directory whose student has these accuracies after its epochs."""
    folder.mkdir(parents=True)
    events = [
        {"event": "start", "message": "distilling"},
        *(epoch_event(epoch, len(accuracies), top1) for epoch, top1 in enumerate(accuracies, 1)),
        {"event": "end", "top1": accuracies[-1]},
    ]
    write_events(folder, events)
    teacher = None if accuracies[-1] is None else TEACHER_TOP1
    result = make_distill_result(accuracies[-1], teacher, architecture=architecture, teacher_sha256=sha256)
    write_json(folder / "result.json", result.model_dump(mode="json"))
    return folder


def write_events(run: Path, events: Sequence[Mapping[str, Any]]) -> None:
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


@pytest.fixture
def cells(tmp_path: Path) -> list[RowCell]:
    """Two seeds of two methods."""
    accuracies = {
        ("noise", 0): [0.1, 0.4],
        ("noise", 1): [0.2, 0.6],
        ("gapssg", 0): [0.5, 0.9],
        ("gapssg", 1): [0.7, 0.8],
    }
    return [RowCell(name, seed, make_run(tmp_path / f"{name}-{seed}", a)) for (name, seed), a in accuracies.items()]


def lines_of(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def span_of(band: Any) -> dict[float, tuple[Any, Any]]:
    """The lowest and highest value of a filled area by x."""
    at: dict[float, list[float]] = {}
    for x, y in band.get_paths()[0].vertices.tolist():
        at.setdefault(x, []).append(y)
    return {x: (pytest.approx(min(ys)), pytest.approx(max(ys))) for x, ys in at.items()}


def test_curves_are_those_of_the_events(tmp_path: Path):
    run = make_run(tmp_path / "run", [0.5, None, 0.75])
    curves = read_curves(run)
    assert curves.epochs == 3
    assert curves.top1 == {1: 0.5, 3: 0.75}
    assert curves.gap_before == {1: 0.5, 2: 0.25, 3: 0.5 / 3}
    assert curves.gap_after == {1: 0.25, 2: 0.125, 3: 0.25 / 3}
    assert curves.teacher_top1 == TEACHER_TOP1


def test_an_event_without_an_accuracy_is_an_epoch_without_evaluation(tmp_path: Path):
    run = make_run(tmp_path / "run", [0.5, 0.75])
    first = epoch_event(1, 2, None)
    del first["top1"], first["agreement_before"]
    write_events(run, [first, epoch_event(2, 2, 0.75)])
    assert read_curves(run).top1 == {2: 0.75}


def test_rollbacks_and_a_run_that_became_longer_leave_one_value_an_epoch(tmp_path: Path):
    run = make_run(tmp_path / "run", [0.5, 0.75])
    rollback = {"event": "rollback", "epoch": 2, "part": "training", "learning_rate": 0.1}
    warning = {"event": "warning", "epoch": 2, "message": "collapsed"}
    write_events(run, [epoch_event(1, 1, 0.5), rollback, rollback, warning, epoch_event(2, 2, 0.75)])
    curves = read_curves(run)
    assert curves.epochs == 2
    assert curves.top1 == {1: 0.5, 2: 0.75}


def test_the_mean_and_its_deviation_are_those_of_the_seeds():
    curve = mean_curve([{1: 0.1, 2: 0.4}, {1: 0.2, 2: 0.6}, {1: 0.6, 2: 0.8}])
    assert curve.x == [1, 2]
    assert curve.mean == pytest.approx([0.3, 0.6])
    assert curve.deviation == pytest.approx([0.07**0.5, 0.2])  # (0.04 + 0.01 + 0.09) / 2, (0.04 + 0 + 0.04) / 2


def test_one_seed_has_no_deviation():
    assert mean_curve([{1: 0.1, 2: 0.4}]).deviation == [0, 0]


def test_missing_values_of_a_seed_are_interpolated():
    curve = mean_curve([{1: 0.0, 2: 0.2, 4: 0.4}, {2: 0.4, 4: 0.8}, {1: 0.0, 3: 0.9, 4: 0.9}])
    assert curve.x == [2, 3, 4]  # the second has nothing before 2
    assert curve.mean == pytest.approx([(0.2 + 0.4 + 0.45) / 3, (0.3 + 0.6 + 0.9) / 3, (0.4 + 0.8 + 0.9) / 3])


def test_the_accuracy_figure_has_the_mean_of_each_method_and_the_teacher(cells: list[RowCell]):
    axes = accuracy_figure(read_row(cells)).axes[0]
    lines = lines_of(axes)
    assert list(lines) == ["noise", "gapssg", "teacher: 96.0 %"]
    assert lines["noise"] == ([1, 2], pytest.approx([15, 50]))
    assert lines["gapssg"] == ([1, 2], pytest.approx([60, 85]))
    assert lines["teacher: 96.0 %"][1] == pytest.approx([96, 96])
    assert axes.get_xlabel() == "Epoch"
    root = 2**0.5
    noise, gapssg = (span_of(band) for band in axes.collections)
    assert noise == {1: (15 - 5 * root, 15 + 5 * root), 2: (50 - 10 * root, 50 + 10 * root)}
    assert gapssg == {1: (60 - 10 * root, 60 + 10 * root), 2: (85 - 5 * root, 85 + 5 * root)}


def test_runs_of_different_lengths_are_drawn_over_the_completed_share(cells: list[RowCell], tmp_path: Path):
    longer = RowCell("dafl", 0, make_run(tmp_path / "dafl", [0.1, 0.2, 0.3, None, 0.5]))
    axes = accuracy_figure(read_row([*cells, longer])).axes[0]
    assert lines_of(axes)["dafl"] == ([20, 40, 60, 100], pytest.approx([10, 20, 30, 50]))
    assert lines_of(axes)["noise"] == ([50, 100], pytest.approx([15, 50]))
    assert "Share" in axes.get_xlabel()


def test_a_method_looks_the_same_in_every_row_and_like_no_other(tmp_path: Path):
    names = [f"{name}" for name in ("gapssg", "dafl", "zskt", "dfad", "dfq", "deepinversion", "cmi", "fast", "mad")]
    names += ["noise", "gapssg-fast", "gapssg, fixed schedule", "gapssg, no regulatory factor"]
    row = [RowCell(name, 0, make_run(tmp_path / name, [0.5, 0.6])) for name in names]

    def looks(cells: list[RowCell]) -> dict[Any, Any]:
        lines = accuracy_figure(read_row(cells)).axes[0].lines
        return {line.get_label(): (line.get_color(), line.get_linestyle()) for line in lines}

    whole = looks(row)
    assert len(set(whole.values())) == len(names) + 1
    assert looks([row[7], row[0]]).items() <= whole.items()


def test_the_gap_figure_splits_the_accuracy_gap_at_the_best_student(cells: list[RowCell]):
    figure = gap_figure(read_row(cells))
    upper, lower = figure.axes
    lines = lines_of(upper)
    assert lines["student of gapssg"] == ([1, 2], pytest.approx([60, 85]))
    assert lines["teacher: 96.0 %"][1] == pytest.approx([96, 96])
    assert lines["estimate of T*: best student"][1] == pytest.approx([90, 90])
    areas = {band.get_label(): span_of(band) for band in upper.collections}
    assert areas["inherent gap, estimated: 6.0 points"] == {1: (90, 96), 2: (90, 96)}
    assert areas["derived gap, estimated: 5.0 points at the end"] == {1: (60, 90), 2: (85, 90)}
    assert "accuracy gap at the end: 11.0 points" in figure.legends[0].get_title().get_text()
    gaps = lines_of(lower)
    assert gaps["before distillation"] == ([1, 2], pytest.approx([0.5, 0.25]))
    assert gaps["after distillation"] == ([1, 2], pytest.approx([0.25, 0.125]))


def test_any_epoch_of_any_method_may_raise_the_estimate(cells: list[RowCell], tmp_path: Path):
    row = read_row([*cells, RowCell("dafl", 0, make_run(tmp_path / "longer", [0.6, 0.95, 0.7]))])
    assert row.best_top1 == 0.95
    assert lines_of(gap_figure(row).axes[0])["student of gapssg"] == ([1, 2], pytest.approx([60, 85]))


def test_a_student_above_its_teacher_leaves_no_inherent_gap(cells: list[RowCell], tmp_path: Path):
    row = read_row([*cells, RowCell("dafl", 0, make_run(tmp_path / "dafl", [0.5, 0.98]))])
    upper = gap_figure(row).axes[0]
    assert "estimate of T*: best student, not below the teacher" in lines_of(upper)
    labels = [band.get_label() for band in upper.collections]
    assert "derived gap, estimated: 13.0 points at the end" in labels
    assert not any("inherent" in label for label in labels)


def test_without_gapssg_the_gap_is_that_of_the_first_method(cells: list[RowCell]):
    assert "student of noise" in lines_of(gap_figure(read_row(cells[:2])).axes[0])


def test_a_run_without_evaluation_is_left_out(cells: list[RowCell], tmp_path: Path):
    row = read_row([*cells, RowCell("dafl", 0, make_run(tmp_path / "dafl", [None, None]))])
    assert isinstance(row, RowCurves)
    assert list(row.methods) == ["noise", "gapssg"]


def test_both_figures_are_written_at_the_width_of_a_column_and_the_same_each_time(cells: list[RowCell], tmp_path: Path):
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
        files = write_row_figures("digits", cells, folder)
        names = ["digits-accuracy.png", "digits-accuracy.svg", "digits-gap.png", "digits-gap.svg"]
        assert files == [folder / name for name in names]
        assert sorted(folder.iterdir()) == files
    for file in files:
        assert file.read_bytes() == (folders[0] / file.name).read_bytes()
    for name in ("digits-accuracy.png", "digits-gap.png"):
        with Image.open(folders[0] / name) as picture:
            assert picture.width / picture.info["dpi"][0] == pytest.approx(COLUMN, abs=0.3)
    words = re.findall(r"<!-- (.*?) -->", (folders[0] / "digits-gap.svg").read_text())
    for label in ("Epoch", "Top-1 accuracy, %", "Reality gap", "estimate of T*: best student"):
        assert label in words


GOOD = json.dumps(epoch_event(1, 2, 0.5))


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "epoch", "epoch": 2',
        "[1, 2]",
        '{"epoch": 2}',
        "[" * 100_000,
        "\x00\x01",
        json.dumps(epoch_event(2, 2, 1.5)),
        json.dumps(epoch_event(2, 2, float("nan"))),
        json.dumps(epoch_event(2, 2, 0.5, reality_gap_after="0.5")),
        json.dumps(epoch_event(2, 2, 0.5, reality_gap_before=None)),
        json.dumps(epoch_event(1, 2, 0.5)),
        json.dumps(epoch_event(2, 10**30, 0.5)),
    ],
    ids=lambda line: repr(line[:40]),
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str):
    run = make_run(tmp_path / "run", [0.5, 0.6])
    (run / "events.jsonl").write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(InputError, match=r"line 2 of .*events\.jsonl is damaged: .+") as error:
        read_curves(run)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(run)) + 200


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([], "has no distillation epoch"),
        ([epoch_event(1, 3, 0.5), epoch_event(2, 3, 0.5)], "ends after epoch 2 of 3; finish the run with --resume"),
        ([epoch_event(1, 2, 0.5), epoch_event(2, 2, None)], "is damaged: .* not after the last epoch"),
    ],
)
def test_an_incomplete_record_is_refused(tmp_path: Path, events: list[dict[str, Any]], reason: str):
    run = make_run(tmp_path / "run", [0.5, 0.6])
    write_events(run, events)
    with pytest.raises(InputError, match=reason):
        read_curves(run)


@pytest.mark.parametrize("result", ["", "{}", '{"teacher": {"sha256": "t", "top1": 2}, "student": {}}'])
def test_a_damaged_result_is_named(tmp_path: Path, result: str):
    run = make_run(tmp_path / "run", [0.5])
    (run / "result.json").write_text(result)
    with pytest.raises(InputError, match=r"result\.json is damaged"):
        read_curves(run)


def test_an_unfinished_run_is_named(tmp_path: Path):
    run = make_run(tmp_path / "run", [0.5])
    (run / "result.json").unlink()
    with pytest.raises(InputError, match=r"result\.json does not exist"):
        read_curves(run)


def test_nothing_is_written_without_an_accuracy(tmp_path: Path):
    cell = RowCell("gapssg", 0, make_run(tmp_path / "run", [None, None]))
    folder = tmp_path / "figures"
    folder.mkdir()
    for none in ([], [cell]):
        with pytest.raises(InputError, match="no run of the row has an accuracy to draw; distil with --eval-data"):
            write_row_figures("digits", none, folder)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("other", [{"sha256": "u"}, {"architecture": "wrn16_2"}])
def test_runs_of_different_pairs_are_not_compared(cells: list[RowCell], tmp_path: Path, other: dict[str, str]):
    stranger = RowCell("dafl", 0, make_run(tmp_path / "dafl", [0.5], **other))
    with pytest.raises(InputError, match=r"dafl has another teacher or student than .*noise-0"):
        read_row([*cells, stranger])


def test_a_seed_counts_once(cells: list[RowCell], tmp_path: Path):
    again = RowCell("noise", 1, make_run(tmp_path / "again", [0.5, 0.5]))
    with pytest.raises(InputError, match="seed 1 of noise is given twice"):
        read_row([*cells, again])


def test_a_row_is_not_a_path(cells: list[RowCell], tmp_path: Path):
    with pytest.raises(InputError, match="cannot name the files of a figure"):
        write_row_figures("../digits", cells, tmp_path)
