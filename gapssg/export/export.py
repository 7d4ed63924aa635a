"""`export`: a model file becomes a file that other programs run, if that file says what the model says."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gapssg.data.image_set import ImageSet
from gapssg.engine.metrics import top_k_accuracy
from gapssg.engine.real_images import read_test_images
from gapssg.engine.run_directory import Display, SilentDisplay, final_weights, run_facts, versions
from gapssg.errors import InputError
from gapssg.export.formats import FORMATS, Classifier
from gapssg.export.packages import package_versions
from gapssg.export.quantize import PoolImages, check_agreement, images_per_second, quantize, read_pool
from gapssg.export.settings import ExportSettings
from gapssg.export.verify import Examiner, check_tolerance, compare, random_batches, rounding_tolerance
from gapssg.files import canonical_json, check_output_file, staged
from gapssg.models.foreign import foreign_code
from gapssg.models.frozen import frozen
from gapssg.models.model_file import LoadedModel, load_model
from gapssg.runs.events import Note, Warned
from gapssg.runtime import Runtime
from gapssg.text import percent

_FORMAT_VERSION = 1
_TIMED_BATCH = 64
_GREAT_LOSS = 0.02  # of accuracy; of 450 images chance moves it by less than a point


def export_model(
    settings: ExportSettings, output: Path, *, overwrite: bool = False, display: Display | None = None
) -> dict[str, Any]:
    """Write a model for other programs, after comparing what was written with the model.

    The file is written under a temporary name, read back and run on the CPU, and gets its name only if its logits are
    those of the model; else nothing is left. An int8 model is made from a float32 file that was compared so, and must
    predict what that predicts.

    Args:
        settings: The model, the format, and what is compared on.
        output: The file to write.
        overwrite: Whether a file that is there may be replaced.
        display: Shows the progress.

    Returns:
        What was written (`file`, `sha256`, `bytes`, `metadata`). Under `verification`: the tolerance, the comparisons
        on random and, if given, test images, and top-1 on the latter, a fraction in [0, 1]. Under `int8`: the same
        between float32 and int8, on images of the pool that did not calibrate and on test images, and the sizes in
        bytes. Under `timing`: images/s of both.

    Raises:
        InputError: The model, the data, the pool or the output cannot be used, a package is missing, or the exported
            model disagrees.
        RunError: The disk refused the write.
    """
    display = display or SilentDisplay()
    output = Path(output)
    check_output_file(output, overwrite)
    form = FORMATS[settings.to]
    all_versions = {**versions(), **package_versions(form.packages)}
    file = final_weights(settings.model) if settings.model.is_dir() else settings.model
    model = load_model(file, settings.model_factories)
    if output.exists() and output.samefile(model.path):
        raise InputError(f"--output {output} is the model itself; name another file")
    runtime = Runtime(torch.device("cpu"), "fp32", compiled=False, seed=settings.seed)
    pool = _read_pool(settings, model, runtime) if settings.int8.enabled else None
    test = None if settings.data is None else read_test_images(settings.data, model, display)
    examiner = Examiner(
        model, normalization_folded=settings.fold_normalization, batch_size=settings.batch_size, runtime=runtime
    )

    display.event(Note(message=f"exporting {model.card.architecture} from {model.path}"))
    metadata = _metadata(model, settings, all_versions)
    content = _write(examiner, settings.to, canonical_json(metadata))
    int8, timing = None, {}
    if pool is None:
        with staged(output, content) as file:
            exported = _load(examiner, settings.to, file.read_bytes())
            verification = _verify(examiner, exported, test, settings, runtime)
    else:
        plain, plain_bytes = _load(examiner, settings.to, content), len(content)
        verification = _verify(examiner, plain, test, settings, runtime)
        display.event(Note(message=f"calibrating on {len(pool.calibration):,} images of the pool"))
        metadata["int8"] = {"calibration_images": len(pool.calibration)}
        content = _quantize(examiner, content, pool.calibration, canonical_json(metadata))
        with staged(output, content) as file:
            quantized = _load(examiner, settings.to, file.read_bytes())
            int8 = _verify_int8(examiner, quantized, plain, pool, test, settings.int8.min_agreement)
            timed = examiner.inputs(pool.held_out[:_TIMED_BATCH])
            rates = images_per_second((plain, quantized), timed)
        if int8["top1"] is not None:
            _warn_of_loss(int8["top1"]["float32"], int8["top1"]["int8"], display)
        int8["bytes"] = {"float32": plain_bytes, "int8": len(content)}
        timing = {"images_per_second": dict(zip(("float32", "int8"), rates, strict=True)), "batch_size": len(timed)}
    return {
        "command": "export",
        "model": {"file": str(model.path), "sha256": model.sha256, "architecture": model.card.architecture},
        "format": settings.to,
        "file": str(output),
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "metadata": metadata,
        "data": None if settings.data is None else settings.data.name,
        "verification": verification,
        "int8": int8,
        "timing": timing,
        **run_facts(runtime, settings),
        "versions": all_versions,
    }


def _read_pool(settings: ExportSettings, model: LoadedModel, runtime: Runtime) -> PoolImages:
    path = settings.int8.pool or (settings.model if settings.model.is_dir() else None)
    if path is None:
        raise InputError("--int8 calibrates on the sample pool of a run; name the run's directory with --pool")
    generator = runtime.random_stream("calibration")
    return read_pool(path, model.card, settings.int8.calibration_images, generator)


def _metadata(model: LoadedModel, settings: ExportSettings, all_versions: dict[str, str]) -> dict[str, Any]:
    """Return what the exported file says of itself."""
    card = model.card.model_dump(
        mode="json", exclude={"format_version", "crop_padding", "flip", "outputs", "provenance"}
    )
    return {
        **card,
        "format_version": _FORMAT_VERSION,
        "normalization_folded": settings.fold_normalization,
        "int8": None,
        "provenance": {
            "model_sha256": model.sha256,
            "model": model.card.provenance.model_dump(mode="json"),
            "versions": all_versions,
        },
    }


def _write(examiner: Examiner, to: str, metadata: str) -> bytes:
    card = examiner.model.card
    # Exporters raise whatever the code of the model brings them to.
    complaint = f"{card.architecture} cannot be written as {to}; try another format, or --debug for all of it"
    with foreign_code(complaint), frozen(examiner.exported_module()) as module:
        return FORMATS[to].write(module, card.input_shape, metadata)


def _load(examiner: Examiner, to: str, content: bytes) -> Classifier:
    """Return the function of an exported file; when it is run, too, what goes wrong is one sentence."""
    complaint = (
        f"{examiner.model.card.architecture} was written as {to}, but what was written cannot be run, so nothing was "
        "kept; its forward may fix the size of a batch, else try another format, or --debug for all of it"
    )
    with foreign_code(complaint):
        classify = FORMATS[to].load(content)

    def guarded(images: Tensor) -> Tensor:
        with foreign_code(complaint):
            return classify(images)

    return guarded


def _quantize(examiner: Examiner, content: bytes, calibration: Tensor, metadata: str) -> bytes:
    complaint = f"{examiner.model.card.architecture} cannot be quantised; leave --int8 out, or --debug for all of it"
    with foreign_code(complaint):
        return quantize(content, examiner.inputs(calibration), metadata)


def _verify(
    examiner: Examiner, exported: Classifier, test: ImageSet | None, settings: ExportSettings, runtime: Runtime
) -> dict[str, Any]:
    """Compare an exported model of float32 with the model, on random and on real images.

    Raises:
        InputError: It disagrees.
    """
    batches = list(random_batches(examiner.model.card.input_shape, runtime.random_stream("export images")))
    ours = torch.cat([examiner.model_logits(batch) for batch in batches])
    theirs = torch.cat([examiner.logits(exported, batch) for batch in batches])
    on_random = compare(ours, theirs)
    tolerance = settings.tolerance or rounding_tolerance(ours, examiner.exact_logits(torch.cat(batches)))
    check_tolerance(on_random, tolerance, "random images")
    report: dict[str, Any] = {"tolerance": tolerance, "random": on_random.to_dict(), "test": None, "top1": None}
    if test is not None:
        ours, theirs = examiner.model_logits(test.images), examiner.logits(exported, test.images)
        on_test = compare(ours, theirs)
        check_tolerance(on_test, tolerance, "test images")
        report["test"] = on_test.to_dict()
        report["top1"] = {"model": _top1(ours, test), "exported": _top1(theirs, test)}
    return report


def _verify_int8(
    examiner: Examiner,
    quantized: Classifier,
    plain: Classifier,
    pool: PoolImages,
    test: ImageSet | None,
    min_agreement: float,
) -> dict[str, Any]:
    """Compare an int8 model with the float32 one, on images of the pool and on real images.

    Raises:
        InputError: It disagrees.
    """
    on_pool = compare(examiner.logits(plain, pool.held_out), examiner.logits(quantized, pool.held_out))
    check_agreement(on_pool, min_agreement)
    report: dict[str, Any] = {
        "calibration_images": len(pool.calibration),
        "min_agreement": min_agreement,
        "pool": on_pool.to_dict(),
        "test": None,
        "top1": None,
    }
    if test is not None:
        before, after = examiner.logits(plain, test.images), examiner.logits(quantized, test.images)
        report["test"] = compare(before, after).to_dict()
        report["top1"] = {"float32": _top1(before, test), "int8": _top1(after, test)}
    return report


def _warn_of_loss(before: float, after: float, display: Display) -> None:
    if before - after > _GREAT_LOSS:
        points = f"{100 * _GREAT_LOSS:.0f} points"
        message = (
            f"int8 takes top-1 from {percent(before)} to {percent(after)}, by more than {points}; the "
            "images of the pool, which calibrated it, may be unlike the test images"
        )
        display.event(Warned(epoch=0, message=message))


def _top1(logits: Tensor, images: ImageSet) -> float:
    return top_k_accuracy(logits, images.labels, 1)
