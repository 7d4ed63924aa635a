"""The figures of the README are those that were measured."""

from __future__ import annotations

import csv
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEACHER, STUDENT, DEFAULT = "teacher", "real images", "default"


def test_the_table_of_the_front_page_is_that_of_the_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("<!-- written by make results -->")[2].partition("<!-- end -->")[0]
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    with (ROOT / "benchmarks" / "results" / "strangers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    def mean(pair: str, method: str, column: str) -> str:
        values = [float(row[column]) for row in rows if (row["pair"], row["method"]) == (pair, method)]
        return f"{statistics.mean(values):.1%}".replace("%", " %")

    assert {row[0] for row in shown} == {row["pair"] for row in rows if row["method"] == DEFAULT}
    for pair, _, teacher, real, default, recovered, seeds in shown:
        assert teacher == mean(pair, TEACHER, "balanced")
        assert real == mean(pair, STUDENT, "balanced")
        assert default == mean(pair, DEFAULT, "balanced")
        assert recovered == mean(pair, DEFAULT, "way")
        assert int(seeds) == sum((row["pair"], row["method"]) == (pair, DEFAULT) for row in rows)


def test_the_quickstart_of_the_front_page_is_that_of_the_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    with (ROOT / "benchmarks" / "results" / "quickstart.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if row["seed"] == "0"]
    shown = readme.partition("<!-- quickstart, written by make results -->")[2].partition("<!-- end -->")[0]
    lines = shown.strip().splitlines()[2:5]
    assert len(rows) == len(lines) == 3
    for row, line in zip(rows, lines, strict=True):
        top1, agreement = (f"{float(row[key]):.1%}".replace("%", " %") for key in ("top1", "agreement"))
        loss, gap = (f"{float(row[key]):.3f}" for key in ("loss", "reality_gap"))
        cells = [row["model"], row["architecture"], f"{int(row['parameters']):,}", top1, loss, agreement, gap]
        assert re.split(" {2,}", line.strip()) == cells
    clock, processor = float(rows[0]["total_seconds"]), float(rows[0]["cpu_seconds"] or "inf")
    after = f"{clock:.0f} s" if clock <= processor else f"{processor:.0f} s of processor time"
    assert f"after {after} with {rows[0]['threads']} threads" in shown


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
