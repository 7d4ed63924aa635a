"""`predict`: classifies image files by a model file or an exported file."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import torch
from torch import Tensor

from gapssg.core.runtime import Runtime
from gapssg.data.decode import decode_images
from gapssg.data.folder import find_images
from gapssg.data.source import LoadOptions
from gapssg.errors import InputError
from gapssg.evaluation.exported_file import load_any_model
from gapssg.evaluation.predict import batch_size_for, naming_a_smaller_batch
from gapssg.evaluation.predict import predict as logits_of
from gapssg.evaluation.settings import PredictSettings, check_predictions_file
from gapssg.files import user_path, write_atomically
from gapssg.models.model_file import LoadedModel
from gapssg.runs.directory import Display, SilentDisplay, run_facts
from gapssg.runs.events import Warned
from gapssg.runs.results.common import ModelFile
from gapssg.runs.results.evaluation import ClassProbability, PredictedImage, PredictResult, PredictTiming
from gapssg.text import no_formula


def predict(
    settings: PredictSettings,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    display: Display | None = None,
) -> PredictResult:
    """Classify image files, which are read as those of `folder:PATH`: resized as the model file says, in its channels.

    Args:
        settings: The model and the images; only one batch of them is in memory.
        output: A CSV file to write, with a line for each image and rank: file, rank, class, probability. Names that
            start with = + - @ or white space have an apostrophe before them, so that no spreadsheet runs them.
        overwrite: Whether an existing file may be replaced.
        display: Shows the progress, and which files of the folders are not read.

    Returns:
        For each image, in the order given, its most probable classes and their probabilities (the softmax of the
        logits, in [0, 1]), the most probable first.

    Raises:
        InputError: The model or an image cannot be used, the logits are not finite, or the output cannot be written
            there.
        RunError: The disk refused the write.
    """
    display = display or SilentDisplay()
    if output is not None:
        output = user_path(output)
        check_predictions_file(output, settings, overwrite)
    runtime = Runtime.from_settings(settings.runtime, seed=0)  # nothing is drawn
    model, failures = load_any_model(settings.model, settings.model_factories, display)
    files = find_images(settings.images, lambda sentence: display.event(Warned(epoch=0, message=sentence)))
    started = time.perf_counter()
    images = _classify(files, model, settings, runtime, display)
    seconds = time.perf_counter() - started
    if output is not None:
        write_atomically(output, _to_csv(images))
    return PredictResult(
        model=ModelFile(**model.facts),
        failures=failures,
        images=tuple(images),
        timing=PredictTiming(images_per_second=len(images) / seconds),
        **dict(run_facts(runtime, settings)),
    )


def _classify(
    files: Sequence[Path], model: LoadedModel, settings: PredictSettings, runtime: Runtime, display: Display
) -> list[PredictedImage]:
    channels, height, width = model.card.input_shape
    options = LoadOptions(
        image_size=(height, width),
        channels=channels,
        note=lambda sentence: display.event(Warned(epoch=0, message=sentence)),
        for_model=True,
        **model.card.resize_options,
    )
    normalization = model.normalization(runtime.device)
    module = runtime.compile(runtime.place(model.module))
    batch_size = settings.batch_size or batch_size_for(model.card.input_shape)
    found: list[PredictedImage] = []
    for start in range(0, len(files), batch_size):
        display.progress("classifying", start, len(files))
        batch = files[start : start + batch_size]
        pixels = torch.from_numpy(decode_images(batch, options))
        options = replace(options, note=None)  # it is said once
        with naming_a_smaller_batch(batch_size):
            logits = logits_of(module, pixels, normalization, runtime, batch_size).cpu()
        found += _most_probable(batch, logits, model.card.class_names, settings.top)
    display.progress("classifying", len(files), len(files))
    return found


def _most_probable(
    files: Sequence[Path], logits: Tensor, class_names: Sequence[str], count: int
) -> list[PredictedImage]:
    if not logits.isfinite().all():
        file = files[int((~logits.isfinite()).any(dim=1).nonzero()[0])]
        raise InputError(f"the model's logits of {file} are not finite; try --precision fp32, or another model")
    highest = logits.double().softmax(dim=1).topk(min(count, len(class_names)))
    return [
        PredictedImage(
            file=str(file),
            classes=tuple(
                ClassProbability(name=class_names[index], probability=probability)
                for index, probability in zip(indices, probabilities, strict=True)
            ),
        )
        for file, indices, probabilities in zip(files, highest.indices.tolist(), highest.values.tolist(), strict=True)
    ]


def _to_csv(images: Sequence[PredictedImage]) -> bytes:
    text = io.StringIO()
    # Every text is quoted: Python 3.11 would not quote one with a carriage return, at which readers end the row.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    text.write("file,rank,class,probability\n")
    for image in images:
        for rank, found in enumerate(image.classes, 1):
            probability = Decimal(f"{found.probability:.6f}")
            writer.writerow((no_formula(image.file), rank, no_formula(found.name), probability))
    return text.getvalue().encode()
