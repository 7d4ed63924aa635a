"""What labelled images show to be wrong with an imported model, or with how it was described."""

from __future__ import annotations

import math
from collections.abc import Iterator

from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gapssg.core.augment import Normalization
from gapssg.core.runtime import Runtime
from gapssg.data.image_set import ImageSet
from gapssg.errors import shortened
from gapssg.evaluation.metrics import confusion_matrix
from gapssg.evaluation.predict import predict
from gapssg.intervals import Z_95
from gapssg.models.model_file import LoadedModel
from gapssg.runs.failures import FEWEST_IMAGES_OF_A_CLASS, LEAST_SHARE
from gapssg.runs.results.common import Scores
from gapssg.text import percent

_LARGE_PIXELS = (0.0, 1 / 255)
"""Mean and standard deviation that make pixels in [0, 255] of those in [0, 1]."""
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MOST_COMPARED = 500
_CLEARLY_BETTER = 0.05


def wrong_description(model: LoadedModel, images: ImageSet, runtime: Runtime) -> str | None:
    """Say with which other order of the classes, or usual normalisation, a model is right much more often; else None.

    The images (N, C, H, W) are on the device of the model; 500 of them are used.
    """
    images, card = images.subsample(_MOST_COMPARED), model.card
    count = len(images)

    def predictions(mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
        normalization = Normalization.from_statistics(mean, deviation, runtime.device)
        return predict(model.module, images.images, normalization, runtime).argmax(dim=1)

    own = predictions(card.mean, card.deviation)
    given = (own == images.labels).double().mean().item()
    # With fewer images of a class, some order of the classes fits any answers.
    if count >= FEWEST_IMAGES_OF_A_CLASS * card.num_classes:
        matrix = confusion_matrix(own, images.labels, card.num_classes).cpu().numpy()
        labels, logits = linear_sum_assignment(matrix, maximize=True)
        reordered = matrix[labels, logits].sum() / count
    else:
        reordered, logits = given, None
    usual = {
        (predictions(*each) == images.labels).double().mean().item(): each
        for each in _usual_normalizations(card.input_shape[0])
    }
    best = max(usual)
    gain = max(_CLEARLY_BETTER, Z_95 * math.sqrt(0.5 / count))  # more than sampling explains
    # An order found among all of them fits a little by chance, so it must explain half of the errors.
    if logits is not None and reordered >= best and reordered - given > gain and reordered > (1 + given) / 2:
        names = [card.class_names[label] for label in logits.argsort()]
        return (
            f"top-1 is {percent(given)} with the given order of the classes, but {percent(reordered)} with "
            f"--class-names {shortened(','.join(names), 200)}: are the names in the order of the logits?"
        )
    if best - given <= gain:
        return None
    mean, deviation = (",".join(f"{each:.4g}" for each in dict.fromkeys(values)) for values in usual[best])
    large = ""
    if usual[best][1][0] == _LARGE_PIXELS[1]:
        large, deviation = "--input-range 255 ", "1"
    return (
        f"top-1 is {percent(given)} with the given normalisation, but {percent(best)} with {large}--mean {mean} "
        f"--std {deviation}, the best of the usual ones: the model may normalise its input itself, or was trained with "
        "other values"
    )


def _usual_normalizations(channels: int) -> Iterator[tuple[tuple[float, ...], tuple[float, ...]]]:
    for mean, deviation in ((0.0, 1.0), (0.5, 0.5), _LARGE_PIXELS):
        yield (mean,) * channels, (deviation,) * channels
    if channels == 3:
        yield _IMAGENET


def wrong_answers(scores: Scores) -> str | None:
    """Say that a model has not learned its classes, which top-1 alone need not show."""
    if not scores.better_than_chance:
        return (
            f"its balanced accuracy is {percent(scores.balanced_accuracy)}, no better than always answering with one "
            "class; check --mean, --std, --input-range and the weights"
        )
    if scores.lowest_recall is not None and scores.lowest_recall < LEAST_SHARE:
        return f"it is right on only {percent(scores.lowest_recall)} of the images of class {scores.lowest_class!r}"
    return None
