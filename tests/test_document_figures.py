"""Each figure of the front page and the guides is in `benchmarks/results`, or its source stands here."""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
UNITS = "%|s|min|minutes|points|TFLOP|images/s|CPU seconds"
FIGURE = re.compile(rf"(?<![\w.,-])((?:{NUMBER} to )?{NUMBER}) ({UNITS})(?!\w)")
Row = dict[str, str]


@cache
def results(name: str) -> list[Row]:
    with (ROOT / "benchmarks" / "results" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Measured(NamedTuple):
    """Rows of a CSV, whose column has the figure: the mean, or for a range the lowest and the highest value."""

    file: str
    column: str
    select: Callable[[Row], bool]
    times: float = 100.0

    def shown_like(self, figure: str) -> str:
        """Return the value with as many digits and the unit of a figure."""
        values = [self.times * float(row[self.column]) for row in results(self.file) if self.select(row)]
        number = re.findall(NUMBER, figure)[-1]
        numbers = [min(values), max(values)] if " to " in figure else [statistics.mean(values)]
        shown = " to ".join(f"{value:,.{len(number.partition('.')[2])}f}" for value in numbers)
        return f"{shown} {figure.partition(number)[2].strip()}"


def having(**values: str) -> Callable[[Row], bool]:
    return lambda row: values.items() <= row.items()


def without_batch_norm(column: str, times: float = 100.0, **values: str) -> Measured:
    return Measured("no-batch-norm", column, having(**values), times)


def tried_without(column: str, times: float = 100.0, **values: str) -> Measured:
    return Measured("no-batch-norm-search", column, having(**values), times)


def coverage(column: str, predictor: str = "with a pool", **values: str) -> Measured:
    what = {} if values else {"what": "a teacher and its images"}
    return Measured("estimator-coverage", column, having(predictor=predictor, **what, **values))


def audited(column: str, teacher: str, model: str = "teacher", attack: str = "LiRA, offline") -> Measured:
    return Measured("audit", column, having(teacher=teacher, model=model, attack=attack))


def width_of_good(interval: str) -> Measured:
    values = having(predictor="with a pool", what="a teacher and its images", interval=interval)
    return Measured("estimator-intervals", "width_of_good", values)


def int8_digits(architecture: str, biases: str = "corrected") -> Measured:
    values = having(format="onnx", architecture=architecture, biases=biases)
    return Measured("export-int8-digits", "agreement_pool", values)


ON_A_GPU = having(run="published-wrn40_2-wrn16_1")
OWN, HALF = "gapssg-fast", "gapssg-fast-scale-2"
EARLIER = "strangers-earlier"
ON_NOISE = having(pair="digits-grey28", method="noise-6")
MEASURED: dict[str, dict[str, Measured]] = {
    "README.md": {
        "84.5 %": Measured("gpu-cifar10", "top1", ON_A_GPU),
        "89.1 %": Measured("gpu-cifar10", "top1", having(run="teacher-wrn40_2")),
        "468 s": Measured("gpu-cifar10", "seconds", ON_A_GPU, 1),
    },
    "choosing.md": {
        "468 s": Measured("gpu-cifar10", "seconds", ON_A_GPU, 1),
        "86.2 %": Measured(EARLIER, "top1", having(pair="letters-grey16", method="epochs-64")),
        "86.8 %": Measured(EARLIER, "top1", having(pair="letters-grey16", method="default", seed="0")),
        "84.7 %": Measured(EARLIER, "top1", having(pair="letters-grey16", method="default", seed="1")),
        "88.2 %": Measured(EARLIER, "top1", having(pair="letters-grey16", method="larger-student", seed="0")),
        "88.7 %": Measured(EARLIER, "top1", having(pair="letters-grey16", method="larger-student", seed="1")),
        "90.8 %": Measured(EARLIER, "top1", having(pair="letters-grey16", method="teacher")),
        "77.2 %": Measured(EARLIER, "balanced", having(pair="birds-grey64", method="statistics-3")),
        "75.2 %": Measured("strangers-gpu", "balanced", having(pair="birds-grey64", method="default")),
        "75.3 %": Measured(EARLIER, "balanced", having(pair="skewed-grey64", method="statistics-3")),
        "73.1 %": Measured(EARLIER, "balanced", having(pair="skewed-grey64", method="default")),
        "78.6 %": Measured("tenth", "top1", having(method="gapssg-fast+procedural-third", budget="100")),
        "77.4 %": Measured("tenth-trials", "top1", having(change="none", teacher="third")),
        "77.8 %": Measured("tenth", "top1", having(method="gapssg-fast", reported="True", budget="100")),
        "79.7 %": Measured("tenth", "top1", having(method="gapssg-fast", budget="1000")),
        **{
            shown: Measured("tenth", "top1", having(method=method, reported="True", budget="100"))
            for shown, method in {
                "76.9 %": "fast",
                "76.6 %": "nayer",
                "73.0 %": "cmi",
                "65.8 %": "mad",
                "64.1 %": "dfq",
                "58.8 %": "dafl",
                "39.3 %": "deepinversion",
                "71.7 %": "gapssg",
            }.items()
        },
        "80.6 %": Measured("tenth", "top1", having(method="gapssg-fast+procedural-third", budget="1000")),
        "3 to 44 minutes": Measured(
            EARLIER,
            "seconds",
            lambda row: row["method"] == "default" and row["machine"].startswith("1 thr"),
            1 / 60,
        ),
        **{
            shown: without_batch_norm("top1", teacher=teacher, method=method, budget=budget)
            for shown, teacher, method, budget in (
                ("98.8 %", "plain", OWN, "26"),
                ("98.7 %", "plain", "dafl", "26"),
                ("94.9 %", "plain", "zskt", "26"),
                ("91.6 %", "plain", "dfad", "26"),
                ("93.8 %", "letters-plain", OWN, "26"),
                ("90.7 %", "letters-plain", HALF, "26"),
                ("99.0 %", "folded-resnet18", OWN, "30"),
                ("97.4 %", "convnext", OWN, "30"),
                ("97.8 %", "convnext", HALF, "30"),
                ("94.2 %", "convnext", "zskt", "30"),
                ("93.1 %", "convnext", "dfad", "30"),
                ("60.6 %", "cifar10-convnext", OWN, "250"),
                ("89.2 %", "vit", OWN, "30"),
                ("95.1 %", "vit", HALF, "30"),
                ("80.8 %", "letters-vit", OWN, "30"),
                ("62.8 %", "letters-vit", HALF, "30"),
                ("39.6 %", "vit", "dafl", "30"),
                ("10.9 %", "vit", "dfad", "30"),
            )
        },
        "99.8 %": without_batch_norm("teacher_top1", teacher="folded-resnet18"),
        "98.9 %": without_batch_norm("teacher_top1", teacher="vit", method=OWN, budget="30"),
        **{
            shown: without_batch_norm("predicted_disagreement", teacher=name, method=method, budget=budget, seed=seed)
            for shown, name, method, budget, seed in (
                ("2.0 %", "letters-plain", OWN, "26", "0"),
                ("4.9 %", "letters-plain", HALF, "26", "0"),
                ("31.1 %", "letters-vit", OWN, "30", "0"),
                ("40.5 %", "letters-vit", HALF, "30", "0"),
                ("13.7 %", "vit", OWN, "30", "2"),
                ("18.2 %", "vit", HALF, "30", "2"),
            )
        },
        "96.7 %": without_batch_norm("teacher_top1", teacher="letters-vit"),
        "96.3 %": without_batch_norm("teacher_top1", teacher="letters-plain"),
        "99.6 %": without_batch_norm("teacher_top1", teacher="plain", budget="26"),
        "66.3 %": without_batch_norm("teacher_top1", teacher="cifar10-convnext"),
        "250 TFLOP": without_batch_norm("budget", 1, teacher="cifar10-convnext"),
        "2,658 CPU seconds": without_batch_norm("cpu_seconds", 1, teacher="cifar10-convnext"),
        "25 to 30 TFLOP": Measured("no-batch-norm", "tflop", lambda row: 20 < float(row["tflop"]) < 100, 1),
        "233 to 373 CPU seconds": Measured(
            "no-batch-norm",
            "cpu_seconds",
            lambda row: 20 < float(row["tflop"]) < 100 and "EPYC" in row["machine"] and row["method"] == OWN,
            1,
        ),
        "80.9 %": Measured("methods-digits", "top1", having(method="dfad", seed="0")),
        "46 %": Measured("cifar10-epochs", "top1", having(epoch="6")),
        "75 %": Measured("cifar10-epochs", "top1", having(epoch="21")),
        "79 %": Measured("cifar10-epochs", "top1", having(epoch="45")),
    },
    "audit.md": {
        "94.0 %": audited("non_members_top1", "overfitted"),
        "96.9 %": audited("non_members_top1", "regularised"),
        "13.5 %": audited("found", "overfitted"),
        "4.5 %": audited("found", "regularised"),
        "1.0 %": audited("found", "overfitted", attack="loss threshold"),
        "1.5 %": audited("found", "overfitted", model="student"),
        "3.0 %": audited("found", "regularised", model="student"),
    },
    "estimate.md": {
        "93.8 %": coverage("covered"),
        "66.7 %": coverage("covered", left_out="digits-rgb64"),
        "92.7 %": coverage("covered", "without a pool"),
        "21.1 %": coverage("covered", "without a pool", left_out="digits-grey16"),
        "31 points": coverage("width"),
        "19 points": width_of_good("linear"),
        "22 points": width_of_good("constant"),
        "6.8 points": coverage("error"),
        "79 %": coverage("covered", left_out="digits"),
        "100 %": coverage("covered", left_out="cifar"),
        "99 %": coverage("covered", left_out="letters"),
    },
    "export.md": {
        "99.8 %": Measured("export-teacher-onnx", "top1", having(max_drop="")),
        "99.1 to 99.5 %": int8_digits("wrn16_1"),
        "99.5 to 99.8 %": int8_digits("wrn16_2"),
        "99.4 to 99.7 %": int8_digits("wrn16_2", ""),
        "80.9 %": Measured("export-int8-mobilenetv2", "top1_float32", having()),
        "72.2 to 72.4 %": Measured("export-int8-mobilenetv2", "top1", having(format="onnx", biases="")),
        "80.9 to 81.1 %": Measured("export-int8-mobilenetv2", "top1", having(format="onnx", biases="corrected")),
        "77.6 to 78.4 %": Measured("export-int8-mobilenetv2", "top1", having(format="openvino")),
    },
    "manual.md": {
        "84.5 %": Measured("gpu-cifar10", "top1", ON_A_GPU),
        "468 s": Measured("gpu-cifar10", "seconds", ON_A_GPU, 1),
        "82.1 %": Measured("cifar10", "top1", lambda row: "pretrain-teacher" in row["command"]),
        "78.6 %": Measured("cifar10", "top1", lambda row: "distill" in row["command"]),
    },
    "report.md": {
        "97 %": Measured(EARLIER, "agreement_printed", ON_NOISE),
        "10 %": Measured(EARLIER, "top1", ON_NOISE),
    },
}
# Figures of definitions, settings and papers, differences of measured figures, and what RESULTS.md has as text.
EXPLAINED: dict[str, dict[str, str]] = {
    "methods.md": {"50 TFLOP": "the budget of tenth-ablation.csv"},
    "audit.md": {
        "1 %": "a false-positive rate",
        "0.1 %": "a false-positive rate",
        "50 %": "what the share is not compared with",
        "95 %": "the level of the intervals",
    },
    "choosing.md": {
        "6 points": "95.1 less 89.2 %",
        "3 points": "93.8 less 90.7 %",
        "18 points": "80.8 less 62.8 %",
        "1.3 s": "eight images at the 6 images/s of growth-large_images.csv",
        "100 TFLOP": "the budget of the trials in tenth-trials.csv",
        "300 TFLOP": "a budget in tenth.csv",
        "5 to 19 %": "column tflop of procedural-third against the default in strangers.csv; RESULTS.md says it",
        "1,000 TFLOP": "the largest budget in tenth.csv",
        "1.6 points": "highest less lowest seed of gapssg in methods-digits.csv",
        "4 to 18 minutes": "printed by --estimate; RESULTS.md names the pairs",
        "8 points": "skewed-grey64, seed 0, strangers-earlier.csv: default less zero-padding; two published students",
        "91 %": "published: WRN-16-1 and MobileNetV2 on real images",
        "99.48 %": "RESULTS.md, mean of three students on real images",
    },
    "cluster.md": {"2 minutes": "a setting", "10 minutes": "a setting", "120 s": "a setting"},
    "estimate.md": {
        "28 %": "settled-cifar10.csv, seed 0",
        "0.3 points": "settled-cifar10.csv, seed 0",
        "31 %": "settled-digits.csv, in RESULTS.md",
        "2 %": "an example",
        "10 %": "an example",
        "90 %": "the level of the intervals",
    },
    "export.md": {
        "2 points": "when the command warns",
        "27 %": "751,764 of 2,788,513 bytes in export-teacher-onnx.csv",
    },
    "landscape.md": {
        "0.15 %": "the largest of spectrum.csv at the default settings, checked below",
        "1 %": "a setting",
        "25 points": "the grid of the picture",
    },
    "manual.md": {"25 points": "the grid of the picture"},
    "scaling.md": {
        "101 %": "6.683 s by one process, over twice 3.312 s, in scaling.csv",
        "90 %": "2.087 s by one process, over twice 1.158 s, in scaling.csv",
        "81 %": "1.486 s by one process, over twice 0.923 s, in scaling.csv",
        "72 %": "0.536 s by one process, over twice 0.370 s, in scaling.csv",
    },
    "report.md": {
        "95 %": "the level of the intervals",
        "98.4 %": "an example of a Wilson interval",
        "96.8 %": "its lower bound",
        "99.2 %": "its upper bound",
        "100 %": "what a constant prediction agrees with",
    },
    "ten-minutes.md": {
        "14 minutes": "the whole quoted run",
        "76 s": "of the quoted run",
        "31 s": "of the quoted run",
        "11 minutes": "of the quoted run",
        "6 minutes": "of the quoted run",
        "72 %": "the quoted multiply-adds, 26.7 M of 37.0 M",
        "2,612 images/s": "of the quoted run",
    },
}
# The output of their own commands, with the machine or the run; the text repeats figures of it.
QUOTING = ("audit.md", "ten-minutes.md")


def paragraphs(path: Path) -> str:
    """Return the text without code and what `make results` writes, each paragraph on one line."""
    text = path.read_text(encoding="utf-8")
    for passed_over in (r"<!-- [\w, ]*written by make results -->.*?<!-- end -->", r"```python\n.*?```", "`[^`\n]+`"):
        text = re.sub(passed_over, "", text, flags=re.DOTALL)
    return re.sub(r"\n(?=[^\s|-])", " ", text)


def figures_of(text: str) -> set[str]:
    return {" ".join(match.groups()) for match in FIGURE.finditer(text)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_figure_has_a_source_and_every_source_a_figure(path: Path):
    text = paragraphs(path)
    sources = {*MEASURED.get(path.name, {}), *EXPLAINED.get(path.name, {})}
    quoted = figures_of("\n".join(re.findall(r"^    .*$", text, re.MULTILINE))) if path.name in QUOTING else set()
    assert figures_of(text) - quoted - sources == set()
    assert sources - figures_of(text) == set()


def test_the_distance_of_the_spectral_density_is_that_of_the_results():
    default = [float(row["distance"]) for row in results("spectrum") if (row["steps"], row["starts"]) == ("40", "6")]
    assert f"{max(default):.2%}".replace("%", " %") == "0.15 %"


@pytest.mark.parametrize(("document", "figure"), [(name, figure) for name in MEASURED for figure in MEASURED[name]])
def test_figures_are_those_of_the_results(document: str, figure: str):
    assert MEASURED[document][figure].shown_like(figure) == figure


def tables_in_percent() -> list[list[list[str]]]:
    """Return the tables of the guide to choosing whose numbers are percentages by their first cell."""
    text = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    found = [table for table in tables if "| top-1, % |" in table]
    return [[[cell.strip() for cell in line.strip(" |").split("|")] for line in table.splitlines()] for table in found]


def test_the_methods_in_the_guide_to_choosing_are_those_of_the_results():
    (names, _, values), _ = tables_in_percent()
    shown = dict(zip((name.lower() for name in names), values[1:], strict=True))
    methods = {row["method"] for row in results("methods-digits")} - {"gapssg-fast"}
    assert set(shown) == {method.replace("fast", "fastdfkd") for method in methods}
    for method in methods:
        accuracies = [100 * float(row["top1"]) for row in results("methods-digits") if row["method"] == method]
        expected = f"{statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f}"
        assert shown[method.replace("fast", "fastdfkd")] == expected


def test_the_published_table_in_the_guide_to_choosing_is_that_of_gapssg_table():
    _, (_, _, *rows) = tables_in_percent()
    with (ROOT / "gapssg" / "recipes" / "published.csv").open(newline="", encoding="utf-8") as file:
        published = {(row["dataset"], row["teacher"], row["student"]): row for row in csv.DictReader(file)}
    columns = ("teacher_top1", "dafl", "zskt", "dfq", "deepinv", "cmi", "fast", "gapssg")
    assert len(rows) == 4
    for name, *shown in rows:
        pair = re.sub(r"wrn-(\d+)-(\d+)", r"wrn\1_\2", name.lower())
        dataset, teacher, student = re.split(",|to", re.sub("[- ]", "", pair))
        row = published[dataset, teacher, student]
        assert shown == [row[column] or "-" for column in columns]


@pytest.mark.parametrize("column", ["seed", "commit", "epochs"])
def test_whole_numbers_and_commits_of_the_results_page_are_written_as_in_the_files(column: str):
    page = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    tables = [
        [[cell.strip() for cell in line.strip(" |").split("|")] for line in table.splitlines()]
        for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    ]
    shown = {row[names.index(column)] for names, _, *rows in tables if column in names for row in rows}
    files = (ROOT / "benchmarks" / "results").glob("*.csv")
    assert shown
    assert shown <= {row[column] for file in files for row in results(file.stem) if column in row}
