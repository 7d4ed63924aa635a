"""`report`: one self-contained HTML page about finished runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from gapssg._version import __version__
from gapssg.figures import evenly_spaced
from gapssg.files import user_path, write_atomically
from gapssg.report.charts import COLOURS, Chart, Level, Line, draw
from gapssg.report.evaluation import Evaluation, check_teacher, evaluate_run
from gapssg.report.landscapes import Landscape, read_landscape
from gapssg.report.pictures import Picture, embed
from gapssg.report.runs import TrainingRun, command_of, names_of, read_training_run
from gapssg.report.settings import ReportSettings, check_page
from gapssg.report.verdict import Accuracies, Verdict, judge
from gapssg.runs.directory import Display, SilentDisplay
from gapssg.runs.evaluations import KeptEvaluation, read_evaluations
from gapssg.runs.events import AnyEpoch, DistillationEpoch, PretrainingEpoch, Warned
from gapssg.runs.failures import weigh
from gapssg.runs.pictures import read_picture, sample_grids
from gapssg.runs.results.distillation import DistillResult
from gapssg.runs.results.report import ReportedRun, ReportResult
from gapssg.text import percent, printable

_MOST_GRIDS = 6
_LARGEST_SIDE = 384  # pixels of a sample grid
_MOST_WARNINGS = 10


@dataclass(frozen=True)
class Section:
    """The section of a run; a chart without values is None."""

    run: TrainingRun
    """The run."""
    verdict: Verdict
    """How good its model is."""
    warnings: list[Warned]
    """The last of its warnings."""
    gaps: list[Chart | None]
    """Accuracy gap, reality gap and agreement by epoch."""
    training: list[Chart | None]
    """Losses and learning rate by epoch."""
    synthesis: list[Chart | None]
    """Terms of the synthesis loss and health of the images, by epoch."""
    samples: list[Picture]
    """Sample grids from the first to the last epoch."""
    evaluation: Evaluation | None
    """The evaluation of its models on real images for the page, if there is one."""
    measured: Accuracies | None
    """Their accuracies by this evaluation or, without it, by the last `gapssg eval` of the model."""
    landscapes: list[Landscape]
    """Those around its last weights."""

    @property
    def accuracies(self) -> tuple[float | None, float | None]:
        """Top-1 accuracy of the last weights and of the teacher, as measured since the run or else by the run."""
        if self.measured is not None:
            return self.measured.scores.top1, self.measured.teacher
        result = self.run.result
        return result.model.top1, result.teacher.top1 if isinstance(result, DistillResult) else None


def write_report(
    settings: ReportSettings, output: Path, *, overwrite: bool = False, display: Display | None = None
) -> ReportResult:
    """Write one self-contained HTML page about finished runs.

    Args:
        settings: The runs, and the data for their evaluation.
        output: The page, whose name ends in .html.
        overwrite: Whether an existing page may be replaced.
        display: Shows the progress of the evaluation.

    Returns:
        The verdicts on the runs of `distill` and `pretrain-teacher`.

    Raises:
        InputError: A run is not finished or damaged, the data cannot be used, or the page exists; nothing has been
            written.
        RunError: The page cannot be written.
    """
    display = display or SilentDisplay()
    output = user_path(output)
    check_page(output, overwrite)
    runs, landscapes = _read(settings.runs)
    if settings.teacher is not None:
        check_teacher(runs, settings.teacher)
    sections = [_section(run, landscapes, settings, display) for run in runs]
    others = [each for each in landscapes if not any(each.is_of(run.model_sha256) for run in runs)]
    write_atomically(output, _render(sections, others, settings).encode())
    reported = (
        ReportedRun(
            run=str(section.run.path),
            verdict=section.verdict.headline,
            evidence=section.verdict.evidence,
            failures=tuple(section.verdict.failures),
            top1=section.accuracies[0],
        )
        for section in sections
    )
    return ReportResult(output=str(output), runs=tuple(reported))


def _read(paths: Sequence[Path]) -> tuple[list[TrainingRun], list[Landscape]]:
    runs, landscapes = [], []
    for path, name in zip(paths, names_of(paths), strict=True):
        if command_of(path) == "landscape":
            landscapes.append(read_landscape(path, name))
        else:
            runs.append(read_training_run(path, name))
    return runs, landscapes


def _section(run: TrainingRun, landscapes: Sequence[Landscape], settings: ReportSettings, display: Display) -> Section:
    evaluation = None if settings.data is None else evaluate_run(run, settings.data, settings, display)
    evaluations = _evaluations(run, evaluation)
    measured = _measured(evaluations[-1], evaluation) if evaluations else None
    return Section(
        run=run,
        verdict=judge(run, measured, weigh(run.result, evaluations)),
        warnings=run.events.warnings[-_MOST_WARNINGS:],
        gaps=_gaps(run),
        training=_training(run),
        synthesis=_synthesis(run),
        samples=_samples(run.path),
        evaluation=evaluation,
        measured=measured,
        landscapes=[landscape for landscape in landscapes if landscape.is_of(run.model_sha256)],
    )


def _evaluations(run: TrainingRun, evaluation: Evaluation | None) -> list[KeptEvaluation]:
    """Return the last evaluation of a model on each data set; the one for this report, if there is one, is the last."""
    kept = read_evaluations(run.path, run.model_sha256) if run.model_sha256 else []
    if evaluation is None:
        return kept
    latest = evaluation.kept
    return [*(each for each in kept if each.data != latest.data), latest]


def _measured(last: KeptEvaluation, evaluation: Evaluation | None) -> Accuracies:
    """Return the accuracies of the last evaluation of a model."""
    teacher = None if last.teacher is None else last.teacher.top1
    return Accuracies(last.data, last.images, last.scores, teacher, None if evaluation is None else evaluation.lost())


def _gaps(run: TrainingRun) -> list[Chart | None]:
    """Draw the two gaps and the agreement of a distillation, or the accuracy of a training on real images."""
    accuracy, epochs = Line(run.result.noun, _curve(run.events.epochs, lambda each: each.top1)), _distilled(run)
    if not isinstance(run.result, DistillResult):
        return [draw("Accuracy on real images", [accuracy], percent=True)]
    teacher = run.result.teacher.top1
    levels = [] if teacher is None else [Level(f"teacher: {percent(teacher)}", teacher)]
    before = Line("before distillation", _curve(epochs, lambda each: each.reality_gap_before), 1, is_dashed=True)
    after = Line("after distillation", _curve(epochs, lambda each: each.reality_gap_after))
    agreement = Line("agreement", _curve(epochs, lambda each: each.agreement_before))
    baseline = Line("always the commonest answer", _curve(epochs, lambda each: each.agreement_baseline), 1, True)
    return [
        draw("Accuracy gap, on real images", [accuracy], levels=levels, fills_gap=True, percent=True),
        draw("Reality gap, on the newest synthetic images", [before, after], from_zero=True),
        draw("Agreement with the teacher, on synthetic images not trained on", [agreement, baseline], percent=True),
    ]


def _training(run: TrainingRun) -> list[Chart | None]:
    epochs = run.events.epochs
    trained = [each for each in epochs if isinstance(each, PretrainingEpoch)]
    curves = {
        "Training loss": _curve(trained, lambda each: each.train_loss),
        "Distillation loss, on synthetic images": _curve(_distilled(run), lambda each: each.distillation_loss),
        "Loss on real images": _curve(epochs, lambda each: each.loss),
        "Learning rate": _curve(epochs, lambda each: each.learning_rate),
    }
    return [draw(title, [Line(title.split(",")[0], curve)], from_zero=True) for title, curve in curves.items()]


def _synthesis(run: TrainingRun) -> list[Chart | None]:
    found: dict[str, dict[float, float]] = {}
    for epoch in _distilled(run):
        for name, value in [*epoch.synthesis.items(), *epoch.health.measures().items()]:
            found.setdefault(name.replace("_", " ").capitalize(), {})[float(epoch.epoch)] = value
    return [draw(title, [Line(title, curve)], from_zero=True) for title, curve in found.items()]


def _distilled(run: TrainingRun) -> list[DistillationEpoch]:
    return [epoch for epoch in run.events.epochs if isinstance(epoch, DistillationEpoch)]


def _curve(epochs: Sequence[AnyEpoch], value: Callable[[AnyEpoch], float | None]) -> dict[float, float]:
    """Return a value by epoch, without those that are None."""
    values = ((each.epoch, value(each)) for each in epochs)
    return {float(epoch): value for epoch, value in values if value is not None}


def _comparisons(sections: Sequence[Section]) -> list[Chart | None]:
    """Draw the curves of several runs in common charts, of as many as there are colours."""
    runs = [section.run for section in sections][:COLOURS]
    accuracies = [_curve(run.events.epochs, lambda each: each.top1) for run in runs]
    gaps = [_curve(_distilled(run), lambda each: each.reality_gap_after) for run in runs]
    found = []
    for title, curves, is_share in (
        ("Accuracy on real images", accuracies, True),
        ("Reality gap after distillation", gaps, False),
    ):
        lines = [Line(run.name, curve, colour) for colour, (run, curve) in enumerate(zip(runs, curves, strict=True))]
        if sum(bool(line.values) for line in lines) > 1:
            found.append(draw(title, lines, percent=is_share, from_zero=not is_share))
    return found


def _samples(run: Path) -> list[Picture]:
    """Return sample grids from the first to the last, evenly spaced."""
    grids = evenly_spaced(list(sample_grids(run).items()), _MOST_GRIDS)
    return [embed(f"epoch {epoch}", read_picture(file), _LARGEST_SIDE) for epoch, file in grids]


def page_environment(package: str = "gapssg.report") -> jinja2.Environment:
    """Return the environment for pages from the templates of a package, beside those of the report."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(each) for each in (package, "gapssg.report")]),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": _points,
        "seconds": _seconds,
        "number": _number,
        "unbroken": lambda sentence: sentence.replace(" %", "\N{NO-BREAK SPACE}%"),  # keep the sign beside its number
    }
    return environment


def _render(sections: Sequence[Section], landscapes: Sequence[Landscape], settings: ReportSettings) -> str:
    template = page_environment().get_template("report.html.jinja")
    return template.render(
        sections=sections,
        comparisons=_comparisons(sections),
        landscapes=landscapes,
        data=None if settings.data is None else settings.data.name,
        version=__version__,
    )


def _shown(value: Any) -> Any:
    """Replace control characters in texts other than the templates' own markup."""
    return printable(str(value)) if isinstance(value, str | Path) and not isinstance(value, Markup) else value


def _points(pair: tuple[float | None, float | None]) -> str:
    """Return the points by which the first of two accuracies is below the second."""
    model, teacher = pair
    return "-" if model is None or teacher is None else f"{100 * (teacher - model):.1f}"


def _seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
