"""Results as tables and lines: one function for each type of result."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gapssg.audit.findings import area, with_interval
from gapssg.cli.console import Console
from gapssg.errors import shortened
from gapssg.models.reference import is_factory
from gapssg.runs.results.distillation import DistillResult
from gapssg.text import has_top5, listed, percent

if TYPE_CHECKING:
    from gapssg.models.description import ModelProfile
    from gapssg.runs.results.audit import AuditResult
    from gapssg.runs.results.common import RunFacts
    from gapssg.runs.results.evaluation import EvaluatedModel, EvaluateResult, Latency, PredictResult
    from gapssg.runs.results.export import ExportResult, ExportTiming, Int8Verification, LogitsComparison
    from gapssg.runs.results.landscape import LandscapeResult, Measurement
    from gapssg.runs.results.models import ImportResult, InspectResult, ProposeResult
    from gapssg.runs.results.quality import QualityResult
    from gapssg.runs.results.table import TableSummary
    from gapssg.runs.results.training import PretrainResult
    from gapssg.training.settings import DistillSettings

_MOST_CLASSES_IN_A_TABLE = 20
_MOST_MODELS_IN_COLUMNS = 4  # as many as fit beside each other in 80 columns
_LONGEST_CLASS_NAME = 20
_PADDING_OF_METHODS = "mirrored padding by gapssg-fast, zero padding by other methods (the file does not name one)"
_COMPARISON = ["", "images", "largest difference", "of the largest", "same prediction"]


def print_distillation(console: Console, result: DistillResult, run: Path, settings: DistillSettings) -> None:
    """Print the student beside its teacher, the next commands, and the verdict."""
    teacher, student = result.teacher, result.student
    console.table(
        f"Student in {run}",
        ["model", "parameters", "top-1", "best top-1", "agreement", "baseline", "seconds"],
        [
            [f"teacher {teacher.architecture}", f"{teacher.parameters:,}", percent(teacher.top1), *"----"],
            [
                *(f"student {student.architecture}", f"{student.parameters:,}", percent(student.top1)),
                "-" if student.best_epoch is None else f"{percent(student.best_top1)}, epoch {student.best_epoch}",
                *(percent(student.agreement), percent(student.agreement_baseline), f"{result.timing.total:.0f}"),
            ],
        ],
    )
    if student.best_epoch is not None:
        console.note("best top-1: selected on the evaluation data, so optimistic; top-1 is of the last epoch")
    if student.agreement is not None:
        console.note("agreement: with the teacher, on the last synthesised images before the student trained on them")
        console.note("baseline: the agreement of always giving the teacher's commonest answer on these images")
        if not result.failures and (student.agreement_baseline or 0) >= student.agreement:
            console.note("the agreement is not above its baseline, so it is no sign that training worked")
    else:
        console.note("agreement: none, because the student has trained on every image of the pool")
    if student.balanced_accuracy is not None:
        lowest = student.lowest_recall
        of_lowest = f", lowest on class '{student.lowest_class}': {percent(lowest)}" if lowest is not None else ""
        console.note(f"balanced accuracy of the student: {percent(student.balanced_accuracy)}{of_lowest}")
    for line in [] if result.quality is None or result.failures else result.quality.described:
        console.note(line)
    if result.settling is not None:
        console.say(result.settling.describe(result.epochs))
    console.say("next:")
    for words in _next_commands(result, run, settings):
        console.say(f"  {shlex.join(words)}{console.invocation.again_named}")
    # Without a prediction or an evaluation, logits are not finite, and the first failure says what to do.
    if result.failures and (result.quality is not None or student.top1 is not None):
        console.say("first make sure that the teacher is accurate with the --mean and --std of its file (gapssg eval);")
        console.say("docs/choosing.md says what to change in the next run: crops and flips, student, seed, epochs")
    console.failures("the student", result.failures)
    console.warnings("the student", result.warnings)


def _next_commands(result: DistillResult, run: Path, settings: DistillSettings) -> list[list[str]]:
    """Return the commands that help now: of a student that failed, those that show why or may refute it."""
    data = "folder:PATH" if settings.eval_data is None else settings.eval_data.name
    student = str(run / DistillResult.model_file)
    teacher = str(settings.teacher)
    evaluate = ["gapssg", "eval", teacher, student, "--teacher", teacher, "--data", data]
    report = ["gapssg", "report", str(run), "--output", "report.html"]
    if result.failures:
        return [report, evaluate] if settings.eval_data is None else [report]
    export = ["gapssg", "export", str(run), "--to", "onnx", "--fold-normalization", "--output", "student.onnx"]
    return [evaluate, report, export]


def print_quality(console: Console, result: QualityResult) -> None:
    """Print the evidence of an estimate, then its prediction."""
    console.table(
        f"{result.student.file} beside its teacher, on probe images",
        ["probe images", "number", "disagreement", "gap", "teacher's confidence", "its commonest class"],
        [
            [
                *(kind, f"{found.images:,}", percent(found.disagreement)),
                *(f"{found.reality_gap:.3f}", percent(found.teacher_confidence), percent(found.largest_class)),
            ]
            for kind, found in result.evidence.items()
        ],
    )
    for line in result.described:
        console.note(line)
    console.failures("the student", result.failures or ())


def print_pretraining(console: Console, result: PretrainResult, run: Path) -> None:
    """Print the teacher."""
    model = result.model
    console.table(
        f"Teacher in {run}",
        ["model", "parameters", "top-1", "best top-1", "seconds"],
        [
            [
                *(model.architecture, f"{model.parameters:,}", percent(model.top1)),
                *(f"{percent(model.best_top1)}, epoch {model.best_epoch}", f"{result.timing.total:.0f}"),
            ]
        ],
    )
    console.note("best top-1: selected on the test split, so optimistic; top-1 is of the last epoch")


def print_import(console: Console, result: ImportResult, file: Path) -> None:
    """Print the imported teacher."""
    console.table(
        f"Teacher in {file}",
        ["model", "parameters", "MACs", "classes", "images", "top-1", "balanced"],
        [
            [
                *(result.architecture, f"{result.parameters:,}", f"{result.macs / 1e6:.1f} M"),
                *(str(result.num_classes), _shape(result.input_shape)),
                *(percent(result.top1), percent(result.balanced_accuracy)),
            ]
        ],
    )
    if result.top1 is None:
        console.note("top-1: not measured; --data names labelled images to measure it on")
        console.note("without it, nothing shows whether the normalisation and the order of the classes are right")
    _propose(console, ["models", "--for", str(file)], result.architecture)


def print_evaluation(console: Console, result: EvaluateResult) -> None:
    """Print a row for each model, and its file."""
    with_top5 = has_top5(len(result.class_names))
    columns = ["", "model", "parameters", "MACs", "top-1", *(["top-5"] if with_top5 else [])]
    columns += ["balanced", "lowest class", "loss", "ECE", "images/s"]
    columns += ["agreement", "gap"] if result.teacher else []
    latency = result.timing.latency or ((),) * len(result.models)
    columns += [f"ms, {_images(each.batch_size)}" for each in latency[0]]
    rows = []
    for number, (model, speed) in enumerate(zip(result.models, result.timing.images_per_second, strict=True), 1):
        row = [str(number), model.architecture, f"{model.parameters:,}", f"{model.macs / 1e6:.1f} M"]
        row += [percent(model.top1), *([percent(model.top5)] if with_top5 else [])]
        row += [percent(model.balanced_accuracy), _lowest(model), f"{model.loss:.3f}"]
        row += [f"{model.expected_calibration_error:.3f}", f"{speed:.0f}"]
        if model.reality_gap is not None:
            row += [percent(model.agreement), f"{model.reality_gap:.3f}"]
        row += map(_milliseconds, latency[number - 1])
        rows.append(row)
        console.note(f"{number}: {model.file}")
    title = f"{result.images:,} test images of {result.data}"
    if len(rows) <= _MOST_MODELS_IN_COLUMNS:
        (columns, *rows) = map(list, zip(columns, *rows, strict=True))
    console.table(title, columns, rows)
    if result.teacher:
        console.note(f"agreement and (reality) gap: with {result.teacher.file}")
    if result.timing.latency:
        console.note(_how_measured(result, result.timing.threads))


def _milliseconds(latency: Latency) -> str:
    return f"{latency.median_ms:.2f} (p95 {latency.p95_ms:.2f})"


def _how_many_measured(result: ProposeResult) -> str:
    timing = result.timing
    said = f"measured: {timing.measured} smaller candidate{'' if timing.measured == 1 else 's'}"
    if timing.fastest is not None:
        said += f", the fastest {timing.fastest.architecture} with {timing.fastest.latency.median_ms:.2f} ms"
    if result.max_latency_ms is not None and timing.measured:
        said += f", {len(result.students) or 'none'} of them within {result.max_latency_ms:g} ms"
    return f"{said}; not tried: {len(timing.unmeasured) + len(timing.unsized) or 'none'}"


def _how_measured(facts: RunFacts, threads: int) -> str:
    how = f"{facts.precision}, {'compiled' if facts.compiled else 'eager'}"
    where = f"{facts.device}, {how}, {threads} thread{'' if threads == 1 else 's'}"
    return f"ms: median of a forward pass and its 95th percentile, on {where}"


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _lowest(model: EvaluatedModel) -> str:
    if model.lowest_recall is None:
        return "-"
    return f"{percent(model.lowest_recall)} ({shortened(model.lowest_class, _LONGEST_CLASS_NAME)})"


def print_proposals(console: Console, result: ProposeResult) -> None:
    """Print the students that are smaller than a teacher, below it, and how to distil one."""
    models: list[tuple[str, ModelProfile, Latency]]
    models = [(f"teacher {result.teacher.architecture}", result, result.timing.teacher)]
    models += [(each.architecture, each, each.latency) for each in result.students]
    console.table(
        f"Students for {_shape(result.input_shape)} images of {result.num_classes:,} classes, "
        "with fewer parameters and no more MACs than the teacher",
        ["model", "parameters", "MACs", "ms, 1 image"],
        [
            [name, f"{size.parameters:,}", f"{size.macs / 1e6:.1f} M", _milliseconds(latency)]
            for name, size, latency in models
        ],
    )
    console.note(_how_measured(result, result.timing.threads))
    console.note(_how_many_measured(result))
    for missing, what in (
        (result.timing.unmeasured, "to measure {}"),
        (result.timing.unsized, "to build {}, of unknown size"),
    ):
        if missing:
            candidates = f"{len(missing)} candidate{'s' if len(missing) > 1 else ''} ({listed(missing)})"
            console.note(f"there was no time {what.format(candidates)}; --set seconds=300 measures for five minutes")
    if result.students:
        words = ["distill", "--teacher", result.teacher.file, "--student", "NAME", "--output", "runs/student"]
        _propose(console, words, result.teacher.architecture)
    elif result.timing.is_complete:
        console.say("there is none; allow a higher latency, or shorten a model of your own")


def _propose(console: Console, words: Sequence[str], architecture: str) -> None:
    """Print the next command, which loads a teacher of this architecture."""
    trusted = ["--model-factory", architecture] if is_factory(architecture) else []
    console.say(f"next: {shlex.join(['gapssg', *words, *trusted])}")


def print_classes(console: Console, result: EvaluateResult) -> None:
    """Print the accuracy of each class, and of few classes the confusion matrix."""
    names = result.class_names
    for model in result.models:
        matrix = model.confusion_matrix if len(names) <= _MOST_CLASSES_IN_A_TABLE else None
        columns = ["class", "accuracy", *(names if matrix else [])]
        rows = [
            [name, percent(accuracy), *(map(str, matrix[number]) if matrix else [])]
            for number, (name, accuracy) in enumerate(zip(names, model.per_class_accuracy, strict=True))
        ]
        console.table(f"{model.file}: accuracy by class, and how often each class was predicted", columns, rows)


def print_predictions(console: Console, result: PredictResult, file: Path | None) -> None:
    """Print a row for each image, or the file that has them."""
    if file is not None:
        console.note(f"{file}: the predictions for {len(result.images):,} images")
        return
    most = len(result.images[0].classes)
    columns = ["image", "class", "probability"]
    for rank in range(2, most + 1):
        columns += [f"class {rank}", "probability"]
    rows = [
        [
            image.file,
            *(
                cell
                for found in image.classes
                for cell in (shortened(found.name, _LONGEST_CLASS_NAME), percent(found.probability))
            ),
        ]
        for image in result.images
    ]
    what = "1 image" if len(rows) == 1 else f"{len(rows):,} images"
    console.table(f"{what} classified by {result.model.file}", columns, rows)


def print_export(console: Console, result: ExportResult) -> None:
    """Print the exported file, and how far its logits are from the model's."""
    takes = "pixels in [0, 1]" if result.metadata.normalization_folded else "normalised images"
    console.note(f"{result.file}: {result.format}, {result.bytes:,} bytes, takes {takes}")
    if (verification := result.verification) is None:
        console.note("not run here, and so not compared with the model")
        return
    title = f"logits of the exported model and of the model (tolerance {verification.tolerance:.1e} of the largest)"
    compared = {"random images": verification.random, f"test images of {result.data}": verification.test}
    console.table(title, _COMPARISON, _comparisons(compared))
    if verification.top1 is not None:
        top1 = verification.top1
        console.note(f"top-1 of the model {percent(top1.model)}, of the exported model {percent(top1.exported)}")
    if result.timing is None:
        return
    if result.int8:
        _print_int8(console, result.data, result.int8, result.timing)
    else:
        rate, batch = result.timing.images_per_second.float32, result.timing.batch_size
        console.note(f"{rate:,.0f} images/s on the CPU, {batch} images at a time")


def _print_int8(console: Console, data: str | None, int8: Int8Verification, timing: ExportTiming) -> None:
    title = f"logits in int8, calibrated on {int8.calibration_images:,} images of the pool, and in float32"
    compared = {"other images of the pool": int8.pool, f"test images of {data}": int8.test}
    console.table(title, _COMPARISON, _comparisons(compared))
    if int8.float_layers:
        console.note(f"{len(int8.float_layers)} layers compute in float32: {', '.join(int8.float_layers)}")
    if int8.corrected_biases is not None:
        console.note(f"layers with corrected biases: {int8.corrected_biases:,}")
    rates = timing.images_per_second
    rows = [["bytes", f"{int8.bytes.float32:,}", f"{int8.bytes.int8:,}"]]
    if int8.top1 is not None:
        rows.append(["top-1", percent(int8.top1.float32), percent(int8.top1.int8)])
    rows.append(["images/s", f"{rates.float32:.0f}", f"{rates.int8 or 0:.0f}"])
    console.table(f"{timing.batch_size} images at a time", ["", "float32", "int8"], rows)


def _comparisons(compared: Mapping[str, LogitsComparison | None]) -> list[list[str]]:
    return [
        [
            *(images, f"{found.images:,}", f"{found.largest_difference:.1e}"),
            *(f"{found.relative_difference:.1e}", percent(found.agreement)),
        ]
        for images, found in compared.items()
        if found is not None
    ]


def print_inspection(console: Console, result: InspectResult) -> None:
    """Print the layers of a model, its description, and the methods that can distil from it."""
    console.table(
        "Layers with weights, statistics or multiply-adds, in the order in which they run; those that do not run last",
        ["layer", "type", "output", "parameters", "MACs", "observed"],
        [
            [
                *(layer.name or "-", layer.type, _shape(layer.output_shape or ()) or "-", f"{layer.parameters:,}"),
                f"{layer.macs / 1e6:.2f} M" if layer.macs else "-",
                "yes" if layer.observed else "",
            ]
            for layer in result.layers
        ],
    )
    arguments = ", ".join(f"{key}={value!r}" for key, value in result.arguments.items())
    rows = [
        ["architecture", result.architecture + (f" ({arguments})" if arguments else "")],
        ["images", _shape(result.input_shape)],
        ["classes", f"{result.num_classes:,}"],
        ["parameters", f"{result.parameters:,}"],
        ["MACs of an image", f"{result.macs / 1e6:.1f} M"],
        ["batch-norm layers observed", str(len(result.observed_batch_norm_layers))],
        ["image prior of GapSSG", result.image_prior],
    ]
    if (card := result.card) is not None:
        made_by = {key: str(value) for key, value in card.provenance if key != "versions" and value is not None}
        rows += [
            ["class names", ", ".join(card.class_names)],
            ["mean", ", ".join(f"{each:.4g}" for each in card.mean)],
            ["standard deviation", ", ".join(f"{each:.4g}" for each in card.deviation)],
            ["real images are", card.resizing],
            *([["architecture takes", "images (N, H, W, C)"]] if card.input_layout == "NHWC" else []),
            ["architecture returns", card.outputs + (f" in {card.output_part}" if card.output_part else "")],
            ["random crops", _crops(card.crop_padding, card.crop_padding_mode)],
            ["random flips", "yes" if card.flip else "no"],
            *([f"made by: {key}", value] for key, value in made_by.items()),
            *([f"version of {key}", str(value)] for key, value in card.provenance.versions.items()),
            ["SHA-256", result.sha256 or "-"],
        ]
    console.table(result.file or result.architecture, ["", "model"], rows)
    console.table(
        "Methods that can distil from it",
        ["method", "runs"],
        [[name, "yes" if lacks is None else f"no: it needs {lacks}"] for name, lacks in result.methods.items()],
    )


def _crops(padding: int, mode: str | None) -> str:
    """Return how `distill` pads the images of a teacher with this padding, for random crops."""
    if not padding:
        return "none"
    kind = {"zeros": "zero padding", "reflect": "mirrored padding"}.get(mode or "", _PADDING_OF_METHODS)
    return f"{padding} px of {kind}"


def print_landscape(console: Console, result: LandscapeResult) -> None:
    """Print a row for each surface, and the files of the figures."""
    with_curvature = any(surface.curvature for surface in result.surfaces)
    columns = ["landscape", "loss", result.accuracy.split()[0], "lowest", "minima", "radius"]
    columns += ["eigenvalue", "trace", "sharpness"] if with_curvature else []
    rows = []
    for surface in result.surfaces:
        row = [surface.label, _number(surface.centre.loss), percent(surface.centre.accuracy)]
        row += ["centre" if surface.centre_is_global_minimum else _number(surface.lowest_loss)]
        row += [str(len(surface.minima)), _number(surface.radius_of_doubling)]
        if curvature := surface.curvature:
            row += [_with_error(curvature.largest_eigenvalue), _with_error(curvature.trace)]
            row += [_number(curvature.epsilon_sharpness)]
        rows.append(row + ["-"] * (len(columns) - len(row)))
    if len(rows) == 1 and with_curvature:
        (columns, *rows) = map(list, zip(columns, *rows, strict=True))
    console.table(f"Loss ({result.loss}) on {result.samples:,} samples of {result.data}", columns, rows)
    console.note("lowest: of all points; radius: within which the loss stays under twice that of the centre")
    for surface in result.surfaces:
        if surface.curvature and surface.curvature.missing:
            console.note(f"{surface.label}: {surface.curvature.missing}")
    if (rate := result.timing.points_per_second) is not None:
        console.say(f"{rate:.1f} points/s; {result.timing.total:.0f} s in all")
    for figure in result.figures:
        if figure.endswith((".png", ".html", ".gif")):
            console.say(f"  {figure}")


def print_audit(console: Console, result: AuditResult) -> None:
    """Print the attacks on each model, the neighbours of synthetic images, and what was found."""
    limits = [rates.one_in for rates in result.models[0].attacks[0].at_low_false_positives]
    console.table(
        f"Membership of {result.members.images:,} members and {result.non_members.images:,} non-members",
        ["model", "attack", "AUC", *(f"found at {100 / one_in:g} %" for one_in in limits), "top-1", "of non-members"],
        [
            [
                *(model.role, attack.attack, area(attack.auc)),
                *(with_interval(rates.true_positives) for rates in attack.at_low_false_positives),
                *(percent(model.members_top1), percent(model.non_members_top1)),
            ]
            for model in result.models
            for attack in model.attacks
        ],
    )
    console.note("AUC: 0.5 is chance; found: % of the members, at that rate of false positives; with 95 % intervals")
    if result.neighbours:
        console.table(
            f"Nearest neighbours of {result.neighbours[0].images:,} synthetic images",
            ["distance in", "nearest is a member, %", "median ratio"],
            [
                [each.space, with_interval(each.nearest_is_member), _number(each.median_ratio)]
                for each in result.neighbours
            ],
        )
        console.note("50 % is chance, except in the teacher's features, which depend on the members")
        console.note("ratio: of the distance to the nearest member to that to the nearest non-member")
    for note in result.notes:
        console.note(note)
    for finding in result.findings:
        console.alarm(f"FOUND: {finding}")
    if not result.findings:
        console.alarm("nothing found: no measurement is above chance; these are known attacks, so this is no proof")
    for file in (result.output, result.sheet):
        if file is not None:
            console.say(f"written: {file}")


def print_table(console: Console, summary: TableSummary) -> None:
    """Print what the runs of a table have reached."""
    from gapssg.table.summary import with_deviation

    for row in summary.rows:
        changed = f", with {', '.join(row.changes)}" if row.changes else ""
        console.table(
            f"{row.row}, budget {row.budget}{changed}",
            ["column", "seeds", "top-1 %", "published", "seconds", "device", "notes"],
            [
                [
                    *(entry.column, str(len(entry.seeds)), with_deviation(entry.top1, entry.deviation)),
                    with_deviation(entry.published_top1, entry.published_deviation),
                    "-" if entry.seconds is None else f"{entry.seconds:.0f}",
                    *(entry.device or "-", " ".join(entry.marks)),
                ]
                for entry in row.entries
            ],
        )
    for mark, note in summary.notes.items():
        console.note(f"{mark}: {note}")
    if summary.rows:
        console.note("top-1: after the last epoch, mean and sample standard deviation over seeds")


def print_quickstart(
    console: Console, evaluation: EvaluateResult, students: Sequence[DistillResult], seconds: float
) -> None:
    """Print the teacher and its students on the same images."""
    labels = ("teacher, real data", *(f"student, {student.method}" for student in students))
    console.table(
        f"{evaluation.images} held-out digits, after {seconds:.0f} s",
        ["model", "architecture", "parameters", "top-1", "loss", "agreement", "gap"],
        [
            [
                *(label, model.architecture, f"{model.parameters:,}", percent(model.top1), f"{model.loss:.3f}"),
                *(percent(model.agreement), "-" if model.reality_gap is None else f"{model.reality_gap:.3f}"),
            ]
            for label, model in zip(labels, evaluation.models, strict=True)
        ],
    )
    console.note("agreement and (reality) gap: with the teacher's predictions and probabilities")
    for student in students:
        console.failures(f"the student of {student.method}", student.failures)
        console.warnings(f"the student of {student.method}", student.warnings)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _number(number: float | None) -> str:
    return "-" if number is None else f"{number:.3g}"


def _with_error(measured: Measurement) -> str:
    return "-" if measured.value is None else f"{_number(measured.value)} ± {_number(measured.error)}"
