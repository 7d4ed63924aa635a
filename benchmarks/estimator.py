"""Fits and calibrates the predictor of `gapssg estimate` on students whose disagreement on real images is known.

    python -m benchmarks.estimator --cifar10 FOLDER     evidence of each student in runs/strangers, then the fit
    python -m benchmarks.estimator --fit                the fit alone, from the table

On a machine with a GPU, several processes share it, and only the table is brought back, to be merged and fitted here:

    python -m benchmarks.estimator --cifar10 FOLDER --table FILE.csv --processes 8 --measure
    python -m benchmarks.estimator --fit --merge FILE.csv

The students are those that `benchmarks.strangers` made, also at each snapshot of the second half of their training: of
every method, trained enough or not. The evidence and the disagreement on the test images are rows of
`benchmarks/results/estimator.csv`; rows that exist are not measured again. Students that agree with their teacher
hardly more often than a constant answer, which `gapssg estimate` refuses, have no part in the fit, the calibration and
the coverage. It also refuses students that have lost classes, and pools or probe images of few classes. These have no
part in the coverage, if their rows have the evidence by class (`own pool: *` and `probe images: *`); the older ones do
not. The fit writes `gapssg/quality/predictor.json` and prints the coverage and width of the intervals for each left-out
teacher and data set: predictor and interval are then fitted on all the others.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.machine import commit, describe_machine, print_table, write_rows
from benchmarks.strangers import Place
from benchmarks.strangers_pairs import PAIRS
from gapssg.core.runtime import Runtime
from gapssg.evaluation.predict import predict
from gapssg.models.model_file import load_model
from gapssg.models.profile import batch_norm_layers
from gapssg.quality.calibration import LeftOut, Numbers, Width, fit, leave_out
from gapssg.quality.estimate import images_of_pool
from gapssg.quality.evidence import Answers, ProbeComparison, evidence_by_kind, joined
from gapssg.quality.lost_classes import ClassEvidence, Source, class_evidence, obstacles_of_classes
from gapssg.quality.predictor import (
    WITH_POOL,
    WITHOUT_POOL,
    Error,
    Predictor,
    Range,
    angle_of,
    is_like_a_constant,
    share_of,
    summary,
)
from gapssg.runs.directory import has_pool
from gapssg.runs.results.distillation import DistillResult
from gapssg.runs.results.quality import ProbeEvidence
from gapssg.settings.parts import RuntimeSettings

TABLE = Path("benchmarks/results/estimator.csv")
COVERED = Path("benchmarks/results/estimator-coverage.csv")
PREDICTOR = Path("gapssg/quality/predictor.json")
INTERVALS = Path("benchmarks/results/estimator-intervals.csv")
ROUNDING = 5e-5
"""By how much a share in the table may differ from the measured one."""
COVERAGE = 0.9
KINDS = {WITH_POOL: ("strokes", "mixtures", "overlaid"), WITHOUT_POOL: ("strokes", "mixtures")}
CIFAR = "cifar"
SOURCES = {"digits": "digits", "letters": "letters"}
"""Source of the images by the first part of a pair's name; of the others CIFAR-10."""
KEY = ("pair", "method", "seed", "file")
GOOD = 0.1
"""Largest predicted disagreement of a student that is of use."""
_MOST_TEST_IMAGES = 2000

Row = dict[str, Any]


def main() -> None:
    """Measure the missing rows, fit the predictor, and print how its intervals do on what was left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, help="folder with train/ and test/ of CIFAR-10 images")
    parser.add_argument("--directory", type=Path, default=Path("runs/strangers"))
    parser.add_argument("--pairs", nargs="*", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--processes", type=int, default=1, help="that measure pairs at the same time")
    parser.add_argument("--merge", nargs="*", type=Path, default=[], help="tables whose rows to add, or to replace by")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--fit", action="store_true", help="measure nothing")
    only.add_argument("--measure", action="store_true", help="fit nothing")
    arguments = parser.parse_args()
    rows = {key_of(row): row for table in (arguments.table, *arguments.merge) for row in read_table(table)}
    if arguments.merge:
        write_rows(arguments.table, sorted(rows.values(), key=key_of))
    if not arguments.fit:
        for found in measure_all(arguments, set(rows)):
            rows |= {key_of(row): row for row in found}
            write_rows(arguments.table, sorted(rows.values(), key=key_of))
    if not arguments.measure:
        fit_and_write(read_table(arguments.table))


def measure_all(arguments: argparse.Namespace, known: set[tuple[str, ...]]) -> Iterator[list[Row]]:
    """Yield the rows of each pair that are not known yet; a pair that fails is named, and costs no other."""
    count = arguments.processes
    threads = max(1, torch.get_num_threads() // count)
    context = get_context("spawn")  # a forked process could not use the GPU
    with ProcessPoolExecutor(count, context, torch.set_num_threads, (threads,)) as processes:
        pairs = {
            processes.submit(measure, name, arguments.directory / name, arguments.cifar10, known): name
            for name in arguments.pairs
        }
        for done in as_completed(pairs):
            if error := done.exception():
                print(f"{pairs[done]} failed: {error!r}", file=sys.stderr, flush=True)
            else:
                yield done.result()


def fit_and_write(rows: list[Row]) -> None:
    """Fit both predictors, write them and how their intervals do on what was left out, and print the latter."""
    predictors, covered, intervals = {}, list[Row](), list[Row]()
    for name, kinds in KINDS.items():
        predictor, left_out = fitted(rows, name, kinds)
        count = len(with_kinds(rows, kinds))
        print(f"{name}: {count - predictor.cells} of {count} students are refused, and have no part in what follows")
        predictors[name] = predictor.model_dump(mode="json")
        covered += left_out
        intervals += intervals_of(rows, name, kinds)
    PREDICTOR.write_text(json.dumps({"predictors": predictors}, indent=2) + "\n")
    write_rows(COVERED, covered)
    write_rows(INTERVALS, intervals)
    for title, found in {"what was left out": covered, "two kinds of intervals": intervals}.items():
        print_table(title, list(found[0]), [[shown(value) for value in row.values()] for row in found])


def measure(name: str, folder: Path, cifar10: Path | None, known: set[tuple[str, ...]]) -> list[Row]:
    """Return rows of the students of a pair that are not known yet."""
    place = Place(name, folder, cifar10)
    runs = [result.parent for result in sorted(place.folder.glob("*/*/result.json"))]
    files = [
        (run, file)
        for run in runs
        for file in (*late_snapshots(run), run / "student.safetensors")
        if (place.name, run.parent.name, run.name, file.name) not in known
    ]
    if not files:
        return []
    runtime = Runtime.from_settings(RuntimeSettings(precision="fp32"), 0)
    teacher = load_model(place.teacher(), place.pair.factories)
    module, normalization = runtime.place(teacher.module), teacher.normalization(runtime.device)
    images = place.images("test").subsample(_MOST_TEST_IMAGES)
    machine = describe_machine(runtime.device)["machine"]
    answers = predict(module, images.images, normalization, runtime).argmax(dim=1)
    rows: list[Row] = []
    for run, file in files:
        source = run if has_pool(run) else DistillResult.load(run).pool
        pool = None if source is None else images_of_pool(Path(source), teacher)
        student = runtime.place(load_model(file, place.pair.factories).module)
        probes = ProbeComparison(module, normalization, teacher.card.input_shape, pool, runtime)
        by_kind = probes.answers(student)
        compared: dict[Source, Answers] = {"probe images": joined(by_kind[kind] for kind in KINDS[WITHOUT_POOL])}
        if pool is not None:
            compared["own pool"] = probes.answers_to_pool(student, pool)
        predictions = predict(student, images.images, normalization, runtime).argmax(dim=1)
        row: Row = dict(zip(KEY, (place.name, run.parent.name, run.name, file.name), strict=True))
        row |= {"classes": images.num_classes, "pixels": min(images.input_shape[1:])}
        row |= {"channels": images.input_shape[0], "batch_norm_layers": len(batch_norm_layers(module))}
        row |= {"commit": commit()}
        row |= {"machine": f"{machine}, torch {torch.__version__}", "images": len(images)}
        row |= {
            "disagreement": (predictions != answers).double().mean().item(),
            "top1": (predictions == images.labels).double().mean().item(),
            "teacher_top1": (answers == images.labels).double().mean().item(),
        }
        for kind, found in evidence_by_kind(by_kind).items():
            row |= {f"{kind}.{name}": value for name, value in found.model_dump().items()}
        for source, logits in compared.items():
            by_class = class_evidence(*logits)
            numbers = {**by_class._asdict(), "lost": len(by_class.lost)}
            row |= {f"{source}: {name}": value for name, value in numbers.items()}
        rows.append(row)
        print(*(row[name] for name in KEY), f"{row['disagreement']:.3f}", flush=True)
    return rows


def late_snapshots(run: Path) -> list[Path]:
    """Return the snapshots of the second half of a run, without that of the end, which is the student."""
    epochs = DistillResult.load(run).epochs
    snapshots = {int(file.stem.removeprefix("epoch-")): file for file in sorted(run.glob("snapshots/*.safetensors"))}
    return [file for epoch, file in snapshots.items() if epochs / 2 < epoch < epochs]


def fitted(rows: list[Row], name: str, kinds: tuple[str, ...]) -> tuple[Predictor, list[Row]]:
    """Return one of the predictors, and how its intervals do on what was left out."""
    rows, features, targets, groups, sources = students_of(rows, kinds)
    found = fit(features, targets, groups, COVERAGE)
    refused = partial(is_refused, rows, name)
    left_out = leave_out(features, targets, groups, COVERAGE, is_refused=refused)
    without_source = leave_out(features, targets, groups, COVERAGE, sources, is_refused=refused)
    covered = [
        *left_out_rows(name, "a teacher and its images", left_out),
        *left_out_rows(name, "all teachers of a source of images", without_source),
    ]
    predictor = Predictor(
        kinds=kinds,
        observed=range_of(features.flat),
        largest_class=range_of((largest_class_of(evidence_of(row), kinds) for row in rows), ROUNDING),
        coefficient=found.coefficients[0],
        intercept=found.intercept,
        error=Error(
            coefficient=found.error_coefficients[0], intercept=found.error_intercept, smallest=found.smallest_error
        ),
        coverage=statistics.mean(each.coverage for each in left_out),
        classes=range_of(row["classes"] for row in rows),
        pixels=range_of(row["pixels"] for row in rows),
        channels=range_of(row["channels"] for row in rows),
        have_batch_norm=all(row["batch_norm_layers"] for row in rows),
        cells=len(rows),
        teachers=len(set(groups)),
        sources=len(set(sources)),
    )
    return predictor, covered


def students_of(rows: list[Row], kinds: tuple[str, ...]) -> tuple[list[Row], Numbers, Numbers, list[str], list[str]]:
    """Return the rows with these kinds of probe images; their features, targets, teachers and sources of images.

    Rows that agree hardly more often than a constant answer are left out.
    """
    rows = [row for row in with_kinds(rows, kinds) if not is_like_a_constant(evidence_of(row), kinds)]
    features = np.array([[summary(evidence_of(row), kinds)] for row in rows])
    targets = np.array([angle_of(row["disagreement"]) for row in rows])
    groups = [row["pair"] for row in rows]
    return rows, features, targets, groups, [SOURCES.get(group.partition("-")[0], CIFAR) for group in groups]


def with_kinds(rows: list[Row], kinds: tuple[str, ...]) -> list[Row]:
    """Return the rows with these kinds of probe images."""
    return [row for row in rows if all(row.get(f"{kind}.images") for kind in kinds)]


def intervals_of(rows: list[Row], name: str, kinds: tuple[str, ...]) -> list[Row]:
    """Return how intervals do whose length is linear in the evidence, and constant ones; widths are shares."""
    rows, features, targets, groups, sources = students_of(rows, kinds)
    found: list[Row] = []
    for what, larger in {"a teacher and its images": groups, "all teachers of a source of images": sources}.items():
        for width in get_args(Width):
            refused = partial(is_refused, rows, name)
            left_out = leave_out(features, targets, groups, COVERAGE, larger, width, refused)
            predicted, low, high = (
                np.array([share_of(angle) for each in left_out for angle in angles(each)])
                for angles in (attrgetter("predicted"), attrgetter("low"), attrgetter("high"))
            )
            is_good = predicted <= GOOD
            row: Row = {"predictor": name, "what": what, "interval": width, "students": len(predicted)}
            row |= {"covered": statistics.mean(each.coverage for each in left_out)}
            row |= {"width": float((high - low).mean()), "predicted_good": int(is_good.sum())}
            row |= {"width_of_good": float((high - low)[is_good].mean()) if is_good.any() else None}
            found.append(row)
    return found


def is_refused(rows: list[Row], name: str, number: int, high: float) -> bool:
    """Tell whether the program refuses a student for its classes, by one of the predictors.

    The upper end of its interval is an angle. False if the evidence by class was not measured.
    """
    row = rows[number]
    source: Source = "own pool" if name == WITH_POOL else "probe images"
    if row.get(f"{source}: kept") is None:
        return False
    kept, lost, images, disagreement = (row[f"{source}: {field}"] for field in ClassEvidence._fields)
    found = ClassEvidence(int(kept), range(int(lost)), int(images), disagreement)
    return bool(obstacles_of_classes(found, [""] * int(row["classes"]), share_of(high), source))


def evidence_of(row: Row) -> dict[str, ProbeEvidence]:
    """Return the evidence of a row of the table."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in row.items():
        kind, dot, name = key.partition(".")
        if dot and value is not None:
            found.setdefault(kind, {})[name] = value
    return {kind: ProbeEvidence(**{**values, "images": int(values["images"])}) for kind, values in found.items()}


def largest_class_of(evidence: Mapping[str, ProbeEvidence], kinds: tuple[str, ...]) -> float:
    """Return the mean over the kinds of the share of the teacher's most frequent prediction."""
    return statistics.mean(evidence[kind].largest_class for kind in kinds)


def range_of(values: Iterable[float], margin: float = 0.0) -> Range:
    """Return the range of values, with a margin at both ends."""
    numbers = list(values)
    return Range(low=min(numbers) - margin, high=max(numbers) + margin)


def left_out_rows(name: str, what: str, found: list[LeftOut]) -> list[Row]:
    """Return coverage, width, error and rank correlation for each thing that was left out."""
    rows: list[Row] = []
    for each in found:
        shares, low, high, real = (
            np.array(list(map(share_of, angles))) for angles in (each.predicted, each.low, each.high, each.targets)
        )
        has_ranks = len(set(each.targets)) > 2
        rows.append(
            {
                **{"predictor": name, "what": what, "left_out": each.group, "students": len(real)},
                **{"covered": each.coverage, "width": float((high - low).mean())},
                "error": float(np.abs(shares - real).mean()),
                "rank_correlation": float(spearmanr(each.predicted, each.targets).statistic) if has_ranks else None,
            }
        )
    return rows


def read_table(table: Path) -> list[Row]:
    """Return the rows of the table; empty cells are None."""
    if not table.exists():
        return []
    texts = {*KEY, "machine", "commit"}
    with table.open(newline="") as file:
        return [
            {key: text if key in texts else (float(text) if text else None) for key, text in row.items()}
            for row in csv.DictReader(file)
        ]


def shown(value: object) -> str:
    """Return a value for the printed table."""
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def key_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the key of a row."""
    return tuple(str(row[name]) for name in KEY)


if __name__ == "__main__":
    main()
