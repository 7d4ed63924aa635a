"""A picture of synthetic and real images with what teacher and student say to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gapssg.core.runtime import Runtime
from gapssg.data.image_set import ImageSet
from gapssg.errors import shortened
from gapssg.evaluation.predict import predict
from gapssg.figures import LINE_COLOURS, PAGE, new_figure, write_figure
from gapssg.models.model_file import LoadedModel
from gapssg.runs.directory import pool_shards
from gapssg.synthesis.shards import read_shard
from gapssg.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_CLASSES = 10
_LONGEST_NAME = 10
_AGREE, _DIFFER = LINE_COLOURS[2], LINE_COLOURS[1]


class _Row(NamedTuple):
    """An image of each class, (N, C, H, W) uint8 on the CPU, with its class and what teacher and student predict."""

    title: str
    images: Tensor
    classes: Sequence[str]
    teacher: Sequence[str]
    student: Sequence[str]


def draw_predictions(
    folder: Path, teacher: LoadedModel, student: LoadedModel, run: Path, real: ImageSet, runtime: Runtime
) -> list[Path]:
    """Draw an image of each class, synthetic above real, with the predictions of teacher and student.

    The class of a synthetic image is the teacher's prediction, of a real one its label.

    Args:
        folder: An existing folder, in which `predictions.png` and `predictions.svg` are written.
        teacher: The teacher.
        student: The student.
        run: The run of the student, with its pool; the newest synthetic images are drawn.
        real: Labelled images of the same classes; the first of each class is drawn.
        runtime: Device and precision.

    Returns:
        The files.

    Raises:
        InputError: The run has no pool.
        RunError: A file cannot be written.
    """
    images, _, _ = read_shard(pool_shards(run)[-1], teacher.card.input_shape, teacher.card.num_classes)
    predictions = predict(runtime.place(teacher.module), images, teacher.normalization(runtime.device), runtime)
    synthetic = ImageSet(images, predictions.argmax(dim=1).cpu(), teacher.card.class_names)
    rows = [
        _row("synthetic images, which the student learned from", synthetic, teacher, student, runtime),
        _row("real images, which the student never saw", real, teacher, student, runtime),
    ]
    return write_figure(folder, "predictions", lambda: _draw(rows))


def _row(title: str, images: ImageSet, teacher: LoadedModel, student: LoadedModel, runtime: Runtime) -> _Row:
    """Return the first image of each class, of at most ten classes, with the predictions."""
    present = torch.unique(images.labels.cpu()).tolist()
    chosen = [int((images.labels == label).nonzero()[0]) for label in present[:_MOST_CLASSES]]
    names = [shortened(printable(name), _LONGEST_NAME) for name in images.class_names]
    some = images.images[chosen]
    predictions = [
        predict(runtime.place(model.module), some, model.normalization(runtime.device), runtime).argmax(dim=1).tolist()
        for model in (teacher, student)
    ]
    teachers, students = ([names[label] for label in each] for each in predictions)
    return _Row(title, some.cpu(), [names[label] for label in present[:_MOST_CLASSES]], teachers, students)


def _draw(rows: Sequence[_Row]) -> Figure:
    columns = max(len(row.images) for row in rows)
    figure = new_figure(PAGE, len(rows) * (PAGE / columns + 0.75))
    for part, row in zip(figure.subfigures(len(rows), squeeze=False)[:, 0], rows, strict=True):
        part.suptitle(row.title, fontsize=8)
        axes = part.subplots(1, columns, squeeze=False)[0]
        for number, axis in enumerate(axes):
            axis.set_axis_off()
            if number < len(row.images):
                _draw_image(axis, row, number)
    return figure


def _draw_image(axis: Axes, row: _Row, number: int) -> None:
    image = row.images[number]
    # Of two channels or more than three, the first is shown.
    pixels = image.permute(1, 2, 0) if len(image) == 3 else image[0]
    axis.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_title(row.classes[number], fontsize=8)
    said = [("teacher", row.teacher[number]), ("student", row.student[number])]
    for line, (who, what) in enumerate(said):
        colour = _AGREE if what == row.classes[number] else _DIFFER
        axis.text(
            0.5, -0.14 - 0.2 * line, f"{who}: {what}", transform=axis.transAxes, ha="center", fontsize=6, color=colour
        )
