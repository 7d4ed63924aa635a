"""`gapssg landscape`."""

from __future__ import annotations

from gapssg.cli import options, render
from gapssg.cli.command import DEVICE, MODEL_FACTORIES, Given, Shown, command, data_fields
from gapssg.cli.console import Console
from gapssg.cli.options import Panel
from gapssg.cli.runs import check_factories, check_run, load_run
from gapssg.landscape.settings import LandscapeSettings


@command(
    "landscape",
    LandscapeSettings,
    {
        Panel.MAIN: [
            Shown("models", "FILE|DIR", is_argument=True),
            *("data.name", "grid", "range", "dimensions", "directions"),
        ],
        Panel.MEASURING: [
            Shown("snapshots", "--snapshots"),
            Shown("epochs", "--epoch"),
            *("samples", "curvature.enabled", "curvature.spectrum"),
            Shown("recalibrate", "--recalibrate"),
            Shown("biases_and_norms", "--biases-and-norms"),
            Shown("own_scale", "--own-scale/--one-scale"),
        ],
        Panel.DATA: ["teacher", *data_fields("data"), MODEL_FACTORIES],
        Panel.RUNNING: ["batch_size", "seed", *DEVICE],
    },
)
def landscape(
    console: Console,
    given: Given[LandscapeSettings],
    output: options.Output = None,
    resume: options.Resume = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Measure and draw the loss around the weights of models.

    Examples:
        gapssg landscape run --data pool --output landscape
        gapssg landscape student.safetensors teacher.safetensors --data digits --dimensions 1 --output landscape
    """
    directory, settings = load_run(console, given, output, resume)
    check_factories(console, given, resume, settings.model_factories, "--model-factory")
    if given.dry_run:
        console.settings(settings)
        return
    directory = check_run(settings, directory, overwrite, resume)

    from gapssg.landscape.measure import measure_landscape

    resumes, requests = resume is not None, console.invocation.requests
    with console.live() as display:
        result = measure_landscape(
            settings, directory, overwrite=overwrite, resume=resumes, display=display, requests=requests
        )
    render.print_landscape(console, result)
    console.result(result)
