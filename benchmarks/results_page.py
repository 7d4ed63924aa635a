"""Write the tables of `README.md` and `benchmarks/RESULTS.md` from `benchmarks/results/*.csv`.

    python -m benchmarks.results_page

The text of RESULTS.md is that of `benchmarks/RESULTS.md.jinja`.
"""

from __future__ import annotations

import csv
import math
import statistics
from pathlib import Path

import jinja2

RESULTS = Path(__file__).parent / "results"
STRANGERS = ("strangers", "strangers-gpu")
Value = str | float | None
Row = dict[str, Value]
_FOLDER = Path(__file__).parent
_TEXTS = {"commit", "python", "torch"}  # columns without numbers, although 3706620 and 2.10 look like some
_QUICKSTART, _TABLE, _END = (
    "<!-- quickstart, written by make results -->\n",
    "<!-- written by make results -->\n",
    "<!-- end -->",
)


def main() -> None:
    """Write the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.globals.update(results=results, names_of=names_of, mean=mean, spread=spread, exponent=exponent)
    environment.globals.update(share_of_teacher=share_of_teacher)
    environment.filters |= {"number": number, "percent": percent}
    (_FOLDER / "RESULTS.md").write_text(environment.get_template("RESULTS.md.jinja").render())
    readme = _FOLDER.parent / "README.md"
    text = readme.read_text()
    for begin, content in ((_QUICKSTART, quickstart()), (_TABLE, front_table())):
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}{content}{_END}{rest.partition(_END)[2]}"
    readme.write_text(text)


def quickstart() -> str:
    """Return the last table of the quickstart as the program prints it, and on what it was measured."""
    rows = results("quickstart", seed=0)
    cells = [["model", "architecture", "parameters", "top-1", "loss", "agreement", "gap"]]
    for row in rows:
        top1, agreement = percent(mean([row], "top1")), percent(mean([row], "agreement"))
        loss, gap = (number(mean([row], key), ".3f") for key in ("loss", "reality_gap"))
        parameters = number(mean([row], "parameters"))
        cells.append([str(row["model"]), str(row["architecture"]), parameters, top1, loss, agreement, gap])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join([*map(str.ljust, line[:2], widths), *map(str.rjust, line[2:], widths[2:])]) for line in cells]
    lines.insert(1, "─" * len(lines[0]))
    images, threads = (number(mean(rows, key)) for key in ("images", "threads"))
    clock, processor = mean(rows, "total_seconds"), mean(rows, "cpu_seconds")
    # The clock of a busy machine says nothing.
    is_busy = clock is not None and processor is not None and clock > processor
    after = f"{number(processor)} s of processor time" if is_busy else f"{number(clock)} s"
    measured = f"These are {images} held-out digits, seed 0, after {after} with {threads} threads without a GPU"
    table = "".join(f"     {line.rstrip()}\n" for line in lines)
    return f"{table}\n{measured}\n({rows[0]['machine']}).\n"


def front_table() -> str:
    """Return the table of the default on teachers like those that users train."""
    headings = ["images", "classes", "teacher", "student, real images", "student, no data"]
    headings += ["recovered", "of the teacher", "seeds"]
    lines = [f"| {' | '.join(headings)} |", "| --- |" + " ---: |" * (len(headings) - 1)]
    for pair in sorted({str(row["pair"]) for name in STRANGERS for row in results(name, method="default")}):
        # Each file has teachers of its own; the one with more seeds is shown.
        name = max(STRANGERS, key=lambda name: len(results(name, pair=pair, method="default")))
        teacher, real, default = (
            results(name, pair=pair, method=each) for each in ("teacher", "real images", "default")
        )
        balanced = [percent(mean(rows, "balanced")) for rows in (teacher, real, default)]
        shares = [percent(mean(default, "way")), percent(share_of_teacher(teacher, default))]
        cells = [pair, number(mean(default, "classes")), *balanced, *shares, str(len(default))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def share_of_teacher(teacher: list[Row], students: list[Row]) -> float | None:
    """Return the students' share of the teacher's gap in balanced accuracy to chance."""
    of_teacher, of_students, classes = mean(teacher, "balanced"), mean(students, "balanced"), mean(students, "classes")
    if of_teacher is None or of_students is None or classes is None:
        return None
    return (of_students - 1 / classes) / (of_teacher - 1 / classes)


def results(name: str, **values: Value) -> list[Row]:
    """Return the rows of `results/NAME.csv` that have these values; missing values are None."""
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        rows = [{key: _parsed(key, text) for key, text in row.items()} for row in csv.DictReader(file)]
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def names_of(pattern: str) -> list[str]:
    """Return the names of the results that match a pattern, sorted."""
    return sorted(path.stem for path in RESULTS.glob(f"{pattern}.csv"))


def _parsed(key: str, text: str) -> Value:
    if key not in _TEXTS:
        for number_of in (int, float):
            try:
                return number_of(text)
            except ValueError:
                continue
    return text or None


def _figures(rows: list[Row], key: str) -> list[float]:
    return [value for row in rows if isinstance(value := row[key], int | float)]


def mean(rows: list[Row], key: str) -> float | None:
    """Return the mean of a column over the rows that have a value."""
    figures = _figures(rows, key)
    return statistics.mean(figures) if figures else None


def spread(rows: list[Row], key: str) -> float:
    """Return the sample standard deviation of a column."""
    return statistics.stdev(_figures(rows, key))


def exponent(rows: list[Row], size: str, cost: str) -> float:
    """Return the exponent of a column of costs in a column of sizes."""
    return fit_exponent(_figures(rows, size), _figures(rows, cost))


def fit_exponent(sizes: list[float], costs: list[float]) -> float:
    """Return b of the least-squares fit of log cost = a + b log size: 0 is constant, 1 linear, 2 quadratic."""
    return statistics.linear_regression(list(map(math.log, sizes)), list(map(math.log, costs))).slope


def number(value: float | None, form: str = ",.0f") -> str:
    """Format a number; a missing value is a dash."""
    return "-" if value is None else format(value, form)


def percent(value: float | None, digits: int = 1) -> str:
    """Format a fraction as a percentage."""
    return "-" if value is None else f"{value:.{digits}%}".replace("%", " %")


if __name__ == "__main__":
    main()
