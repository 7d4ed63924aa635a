"""The figures of the README are those that were measured."""

from __future__ import annotations

import ast
import builtins
import csv
import importlib
import re
import statistics
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEACHER, STUDENT, DEFAULT = "teacher", "real images", "default"


def test_the_table_of_the_front_page_is_that_of_the_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("<!-- written by make results -->")[2].partition("<!-- end -->")[0]
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    files = {name: _rows(name) for name in ("strangers", "strangers-gpu")}

    def mean(rows: list[dict[str, str]], method: str, column: str) -> float:
        return statistics.mean(float(row[column]) for row in rows if row["method"] == method)

    def percent(value: float) -> str:
        return f"{value:.1%}".replace("%", " %")

    measured = {row["pair"] for rows in files.values() for row in rows if row["method"] == DEFAULT}
    assert [row[0] for row in shown] == sorted(measured)
    for pair, classes, teacher, real, default, recovered, of_teacher, seeds in shown:
        # The file with the most students of the pair has their teacher, too.
        own = [[row for row in rows if row["pair"] == pair] for rows in files.values()]
        rows = max(own, key=lambda rows: sum(row["method"] == DEFAULT for row in rows))
        assert teacher == percent(mean(rows, TEACHER, "balanced"))
        assert real == percent(mean(rows, STUDENT, "balanced"))
        assert default == percent(mean(rows, DEFAULT, "balanced"))
        assert recovered == percent(mean(rows, DEFAULT, "way"))
        gaps = [mean(rows, method, "balanced") - 1 / int(classes) for method in (DEFAULT, TEACHER)]
        assert of_teacher == percent(gaps[0] / gaps[1])
        assert int(seeds) == sum(row["method"] == DEFAULT for row in rows)


def _rows(name: str) -> list[dict[str, str]]:
    with (ROOT / "benchmarks" / "results" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


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


def test_the_python_of_the_front_page_defines_all_of_its_names():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^    from (?:.|\n    |\n\n    )*", readme, re.MULTILINE)
    defined = set(dir(builtins))
    for statement in ast.parse(textwrap.dedent(block)).body:
        names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
        assert {each.id for each in names if isinstance(each.ctx, ast.Load)} <= defined
        defined |= {each.id for each in names}
        if isinstance(statement, ast.ImportFrom):
            defined |= {each.name for each in statement.names}
            assert all(hasattr(importlib.import_module(statement.module or ""), each.name) for each in statement.names)


def test_the_manual_does_not_deny_the_gpu_of_the_front_page():
    readme, manual = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/manual.md"))
    assert "H100" in readme
    limits = manual.partition("\n## Limits\n")[2]
    assert "an NVIDIA H100" in limits
    assert "every figure here is from processors" not in limits


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
