"""`gapssg import-teacher`."""

from __future__ import annotations

from gapssg.cli import options, render
from gapssg.cli.command import Given, Shown, command, data_fields
from gapssg.cli.console import Console
from gapssg.cli.options import Panel
from gapssg.evaluation.settings import DEFAULT_WEIGHTS, MODEL_FILE, ImportSettings, check_teacher_file
from gapssg.files import check_ending


@command(
    "import-teacher",
    ImportSettings,
    {
        Panel.MAIN: [
            "model.name",
            Shown("weights", metavar="FILE|default"),
            "weights_key",
            Shown("input_shape", metavar="C,H,W", parse=options.image_shape),
            "num_classes",
            Shown("class_names", metavar="A,B,C|FILE", parse=options.names),
            Shown("mean", metavar="M,M,M", parse=options.decimals),
            Shown("deviation", "--std", metavar="S,S,S", parse=options.decimals),
            *("input_range", Shown("resize", metavar="N|crop|stretch", parse=options.number_or_word), "interpolation"),
            *("input_layout", "output_kind", "output_part"),
            "data.name",
        ],
        Panel.TRAINING: ["crop_padding", "crop_padding_mode", "flip"],
        Panel.DATA: data_fields("data"),
        Panel.RUNNING: ["seed", "runtime.device", "runtime.precision"],
    },
)
def import_teacher(
    console: Console,
    given: Given[ImportSettings],
    output: options.ModelFile = None,
    overwrite: options.OverwriteFile = False,
) -> None:
    r"""Make a model file from a classifier that was trained elsewhere.

    Examples:
        gapssg import-teacher --model timm:resnet18 --weights default --input-shape 3,224,224 --output t.safetensors
        gapssg import-teacher --weights model.onnx --mean 0.5 --std 0.25 --output t.safetensors
        gapssg import-teacher --model torchvision:resnet18 --weights w.safetensors --input-shape 3,32,32 \
            --class-names cat,dog --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --output t.safetensors
    """
    if output is not None:
        check_ending(output, MODEL_FILE)  # with --dry-run, too
    settings = given.load()
    file = options.required(output)
    options.check_inputs(settings, None if settings.weights == DEFAULT_WEIGHTS else settings.weights)
    check_teacher_file(file, settings, overwrite)

    from gapssg.evaluation.import_teacher import import_teacher

    with console.live() as display:
        result = import_teacher(settings, file, overwrite=overwrite, display=display)
    render.print_import(console, result, file)
    console.result(result)
