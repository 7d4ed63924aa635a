"""The figures of the README are those that were measured."""

from __future__ import annotations

import csv
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
    assert len(rows) == 3
    for row in rows:
        assert f"{float(row['top1']):.1%}".replace("%", " %") in readme
        assert f"{float(row['loss']):.3f}" in readme
        assert f"{int(row['parameters']):,}" in readme


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
