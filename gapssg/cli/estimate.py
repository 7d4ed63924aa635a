"""`gapssg estimate`."""

from __future__ import annotations

from pathlib import Path

from gapssg.cli import options, render
from gapssg.cli.command import DEVICE, MODEL_FACTORIES, Given, Shown, command
from gapssg.cli.console import Console
from gapssg.cli.options import Panel
from gapssg.quality.settings import QualitySettings
from gapssg.runs.failures import doubts_of_run


@command(
    "estimate",
    QualitySettings,
    {
        Panel.MAIN: [Shown("student", "RUN|FILE", is_argument=True), "teacher", "teacher_top1"],
        Panel.DATA: ["pool", MODEL_FACTORIES],
        Panel.RUNNING: DEVICE,
    },
)
def estimate(console: Console, given: Given[QualitySettings]) -> None:
    """Predict without real images how often a student disagrees with its teacher, with an interval.

    Examples:
        gapssg estimate run
        gapssg estimate run --teacher-top1 0.953
    """
    settings = given.load()
    options.check_inputs(settings)

    from gapssg.quality.estimate import estimate_quality

    with console.live() as display:
        result = estimate_quality(settings)
        for doubt in doubts_of_run(Path(result.student.file)):  # its failures are printed last
            display.event(doubt)
    render.print_quality(console, result)
    console.result(result)
