"""Reads real images for all commands; distillation without evaluation data never calls it."""

from __future__ import annotations

from typing import Literal

from gapssg.data import FOLDER, load_split
from gapssg.data.image_set import ImageSet
from gapssg.data.settings import DataSettings
from gapssg.errors import InputError, shortened
from gapssg.models.description import ModelCard
from gapssg.models.model_file import LoadedModel
from gapssg.runs.directory import Display
from gapssg.runs.events import Warned
from gapssg.settings.parts import ResizeOptions


def is_folder_of_images(settings: DataSettings) -> bool:
    """Tell whether the images are files, which are resized as a model needs them."""
    return settings.name.startswith(FOLDER)


def read_images(
    settings: DataSettings,
    split: Literal["train", "test"],
    display: Display,
    channels: int | None = None,
    card: ModelCard | None = None,
) -> ImageSet:
    """Read one split of the images that `settings` name, or raise `InputError`.

    They are in `channels` if the settings do not say, and those of a folder resized as a model's card says, to its
    input size if the settings do not say; a warning says if all of them have height and width swapped.
    """
    size, for_model = settings.image_size, False
    if card is not None and size is None and is_folder_of_images(settings):
        size, for_model = card.input_shape[1:], True
    images = load_split(
        settings.name,
        split,
        root=settings.root,
        download=settings.download,
        image_size=size,
        channels=settings.channels or channels,
        progress=lambda done, total: display.progress(f"reading {split} images", done, total),
        note=lambda sentence: display.event(Warned(epoch=0, message=sentence)),
        for_model=for_model,
        **(ResizeOptions() if card is None else card.resize_options),
    )
    return images if settings.images is None else images.subsample(settings.images)


def read_test_images(settings: DataSettings, model: LoadedModel, display: Display) -> ImageSet:
    """Read the test split for a model; raises as `read_images_of_model`."""
    return read_images_of_model(settings, "test", model, display)


def read_images_of_model(
    settings: DataSettings, split: Literal["train", "test"], model: LoadedModel, display: Display
) -> ImageSet:
    """Read one split as a model takes it: its channels, the order of its classes and, from folders, size and resizing.

    Raises `InputError` if the images or their classes do not fit the model.
    """
    card = model.card
    channels, height, width = card.input_shape
    takes_any = is_folder_of_images(settings) or channels in (1, 3)
    images = read_images(settings, split, display, channels if takes_any else None, card)
    if images.num_classes != card.num_classes:
        raise InputError(
            f"{settings.name} has {images.num_classes} classes, but {model.path} has {card.num_classes}; "
            "evaluate on the data set that it was trained on"
        )
    if images.input_shape != card.input_shape:
        given, expected = ("x".join(map(str, shape)) for shape in (images.input_shape, card.input_shape))
        size = str(height) if height == width else f"{height},{width}"
        hint = "" if images.input_shape[1:] == (height, width) else f"; use --image-size {size}"
        raise InputError(f"{settings.name} has images of {given}, but {model.path} takes {expected}{hint}")
    if images.class_names == card.class_names:
        return images
    try:
        return images.in_class_order(card.class_names)
    except ValueError as error:
        unknown = next((name for name in images.class_names if name not in card.class_names), images.class_names[0])
        raise InputError(
            f"the classes of {settings.name} are not those of {model.path}: {shortened(repr(unknown))} is not one of "
            f"{shortened(', '.join(card.class_names), 200)}; name the folders like the classes, in any order, "
            "or import the teacher with the names of the folders (--class-names)"
        ) from error


def check_same_images(first: LoadedModel, second: LoadedModel) -> None:
    """Raise `InputError` unless two models have the same input shape and classes."""
    for field in ("input_shape", "num_classes", "class_names"):
        ours, theirs = getattr(first.card, field), getattr(second.card, field)
        if ours != theirs:
            raise InputError(
                f"{first.path} and {second.path} differ in {field} "
                f"({shortened(ours, 60)} and {shortened(theirs, 60)}); models in one evaluation must have the same "
                "input shape and classes"
            )


def warn_of_resizing(settings: DataSettings, first: LoadedModel, second: LoadedModel, display: Display) -> None:
    """Warn if images of a folder, which are read for the first model, are resized otherwise for the second."""
    if is_folder_of_images(settings) and first.card.resize_options != second.card.resize_options:
        message = (
            f"the images of {settings.name} are {first.card.resizing}, as for {first.path}, but those of {second.path} "
            f"were {second.card.resizing}; evaluate it by itself"
        )
        display.event(Warned(epoch=0, message=message))
