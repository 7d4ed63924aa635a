"""`export`: converts a model file for other programs, and verifies its outputs before keeping the file."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gapssg.core.runtime import Runtime
from gapssg.data.image_set import ImageSet
from gapssg.errors import InputError
from gapssg.evaluation.metrics import top_k_accuracy
from gapssg.evaluation.real_images import read_test_images
from gapssg.export.formats import FORMATS, Classifier
from gapssg.export.quantize import PoolImages, check_agreement, draw_images, images_per_second, quantize
from gapssg.export.settings import ExportSettings
from gapssg.export.verify import Examiner, check_tolerance, compare, random_batches, rounding_tolerance
from gapssg.files import canonical_json, check_output_file, staged, user_path
from gapssg.models.description import Interface
from gapssg.models.foreign import foreign_code
from gapssg.models.frozen import frozen
from gapssg.models.model_file import load_model
from gapssg.runs.directory import Display, SilentDisplay, final_weights, pool_shards, run_facts, versions
from gapssg.runs.evaluations import failures_of_run
from gapssg.runs.events import Note, Warned
from gapssg.runs.results import (
    BothPrecisions,
    ExportedTop1,
    ExportMetadata,
    ExportProvenance,
    ExportResult,
    ExportTiming,
    Int8Metadata,
    Int8Verification,
    ModelFile,
    Value,
    Verification,
)
from gapssg.text import percent

_TIMED_BATCH = 64
_LARGE_ACCURACY_LOSS = 0.02  # on 450 images, chance moves it by less than a point


def export_model(
    settings: ExportSettings, output: Path, *, overwrite: bool = False, display: Display | None = None
) -> ExportResult:
    """Export a model for other programs, and verify the exported file.

    The file is written under a temporary name, read back and run on the CPU, and renamed only if its logits are those
    of the model; else nothing is left. An int8 model is made from a verified float32 export and must agree with it.

    Raises:
        InputError: The model, the data, the pool or the output cannot be used, a package is missing, or the exported
            model disagrees with the model.
        RunError: The disk refused the write.
    """
    display = display or SilentDisplay()
    output = user_path(output)
    file = final_weights(settings.model) if settings.model.is_dir() else settings.model
    shards = _calibration_shards(settings)
    check_output_file(output, overwrite, inputs=[file, *shards])
    all_versions = {**versions(), **_package_versions(FORMATS[settings.to].packages)}
    model = load_model(file, settings.model_factories)
    runtime = Runtime(torch.device("cpu"), "fp32", compiled=False, seed=settings.seed)
    pool = draw_images(shards, model.card, settings.int8.calibration_images, runtime) if shards else None
    test = None if settings.data is None else read_test_images(settings.data, model, display)

    display.event(Note(message=f"exporting {model.card.architecture} from {model.path}"))
    if failures := failures_of_run(model.path):
        display.event(Warned(epoch=0, message=f"its run ended with FAILED, not usable: {'; '.join(failures)}"))
    provenance = ExportProvenance(model_sha256=model.sha256, model=model.card.provenance, versions=all_versions)
    interface = {name: getattr(model.card, name) for name in Interface.model_fields}
    metadata = ExportMetadata(**interface, normalization_folded=settings.fold_normalization, provenance=provenance)
    examiner = Examiner(model, settings, runtime)
    exported = (
        _export_float32(examiner, output, metadata, test)
        if pool is None
        else _export_int8(examiner, output, metadata, test, pool, display)
    )
    return ExportResult(
        model=ModelFile(file=str(model.path), sha256=model.sha256, architecture=model.card.architecture),
        format=settings.to,
        file=str(output),
        sha256=hashlib.sha256(exported.content).hexdigest(),
        bytes=len(exported.content),
        metadata=exported.metadata,
        data=None if settings.data is None else settings.data.name,
        verification=exported.verification,
        int8=exported.int8,
        timing=exported.timing,
        **dict(run_facts(runtime, settings).model_copy(update={"versions": all_versions})),
    )


def _calibration_shards(settings: ExportSettings) -> list[Path]:
    if not settings.int8.enabled:
        return []
    pool = settings.int8.pool or (settings.model if settings.model.is_dir() else None)
    if pool is None:
        raise InputError("--int8 calibrates on the sample pool of a run; name the run's directory with --pool")
    return pool_shards(pool)


def _package_versions(names: Iterable[str]) -> dict[str, str]:
    try:
        return {name: importlib.import_module(name).__version__ for name in names}
    except ModuleNotFoundError as error:
        raise InputError(
            f"this export needs the package {error.name}, which is not installed: pip install 'gapssg[export]'"
        ) from error


class _Exported(NamedTuple):
    content: bytes
    metadata: ExportMetadata
    verification: Verification
    int8: Int8Verification | None = None
    timing: ExportTiming | None = None


def _export_float32(examiner: Examiner, output: Path, metadata: ExportMetadata, test: ImageSet | None) -> _Exported:
    content = _write(examiner, metadata)
    with staged(output, content) as file:
        verification = _verify(examiner, _load(examiner, file.read_bytes()), test)
    return _Exported(content, metadata, verification)


def _export_int8(
    examiner: Examiner,
    output: Path,
    metadata: ExportMetadata,
    test: ImageSet | None,
    pool: PoolImages,
    display: Display,
) -> _Exported:
    plain_content = _write(examiner, metadata)
    plain = _load(examiner, plain_content)
    verification = _verify(examiner, plain, test)
    display.event(Note(message=f"calibrating on {len(pool.calibration):,} images of the pool"))
    metadata = metadata.model_copy(update={"int8": Int8Metadata(calibration_images=len(pool.calibration))})
    content = _quantize(examiner, plain_content, pool.calibration, metadata)
    with staged(output, content) as file:
        quantized = _load(examiner, file.read_bytes())
        sizes = _both(len(plain_content), len(content))
        int8 = _verify_int8(examiner, quantized, plain, pool, test, sizes)
        timed = examiner.inputs(pool.held_out[:_TIMED_BATCH])
        rates = images_per_second((plain, quantized), timed)
    if int8.top1 is not None and int8.top1.float32 - int8.top1.int8 > _LARGE_ACCURACY_LOSS:
        message = (
            f"int8 lowers top-1 from {percent(int8.top1.float32)} to {percent(int8.top1.int8)}, by more than "
            f"{100 * _LARGE_ACCURACY_LOSS:.0f} points; the calibration images of the pool may differ too much from the "
            "test images"
        )
        display.event(Warned(epoch=0, message=message))
    timing = ExportTiming(images_per_second=_both(*rates), batch_size=len(timed))
    return _Exported(content, metadata, verification, int8, timing)


def _write(examiner: Examiner, metadata: ExportMetadata) -> bytes:
    card, to = examiner.model.card, examiner.settings.to
    # Exporters raise exceptions of any type.
    complaint = f"{card.architecture} cannot be exported as {to}; try another format, or --debug for details"
    with foreign_code(complaint), frozen(examiner.exported_module()) as module:
        return FORMATS[to].write(module, card.input_shape, _text(metadata))


def _load(examiner: Examiner, content: bytes) -> Classifier:
    """Return the function of an exported file, which raises InputError on any failure."""
    to = examiner.settings.to
    complaint = (
        f"{examiner.model.card.architecture} was exported as {to}, but the exported file cannot be run, so nothing was "
        "kept; if its forward fixes the batch size, change that, else try another format, or --debug for details"
    )
    with foreign_code(complaint):
        return foreign_code(complaint)(FORMATS[to].load(content))


def _quantize(examiner: Examiner, content: bytes, calibration: Tensor, metadata: ExportMetadata) -> bytes:
    complaint = f"{examiner.model.card.architecture} cannot be quantised; leave --int8 out, or --debug for details"
    with foreign_code(complaint):
        return quantize(content, examiner.inputs(calibration), _text(metadata))


def _text(metadata: ExportMetadata) -> str:
    return canonical_json(metadata.model_dump(mode="json"))


def _verify(examiner: Examiner, exported: Classifier, test: ImageSet | None) -> Verification:
    """Compare a float32 export with the model on random and on real images; raise InputError if they disagree."""
    batches = random_batches(examiner)
    ours = torch.cat([examiner.model_logits(batch) for batch in batches])
    theirs = torch.cat([examiner.logits(exported, batch) for batch in batches])
    on_random = compare(ours, theirs)
    tolerance = examiner.settings.tolerance or rounding_tolerance(ours, examiner.exact_logits(torch.cat(batches)))
    check_tolerance(on_random, tolerance, "random images")
    if test is None:
        return Verification(tolerance=tolerance, random=on_random, test=None, top1=None)
    ours, theirs = examiner.model_logits(test.images), examiner.logits(exported, test.images)
    on_test = compare(ours, theirs)
    check_tolerance(on_test, tolerance, "test images")
    top1 = ExportedTop1(model=_top1(ours, test), exported=_top1(theirs, test))
    return Verification(tolerance=tolerance, random=on_random, test=on_test, top1=top1)


def _verify_int8(
    examiner: Examiner,
    quantized: Classifier,
    plain: Classifier,
    pool: PoolImages,
    test: ImageSet | None,
    sizes: BothPrecisions[int],
) -> Int8Verification:
    """Compare an int8 model with the float32 export; raise InputError if they disagree on images of the pool."""
    min_agreement = examiner.settings.int8.min_agreement
    on_pool = compare(examiner.logits(plain, pool.held_out), examiner.logits(quantized, pool.held_out))
    check_agreement(on_pool, min_agreement)
    on_test, top1 = None, None
    if test is not None:
        before, after = examiner.logits(plain, test.images), examiner.logits(quantized, test.images)
        on_test, top1 = compare(before, after), _both(_top1(before, test), _top1(after, test))
    return Int8Verification(
        calibration_images=len(pool.calibration),
        min_agreement=min_agreement,
        pool=on_pool,
        test=on_test,
        top1=top1,
        bytes=sizes,
    )


def _both(float32: Value, int8: Value) -> BothPrecisions[Value]:
    return BothPrecisions(float32=float32, int8=int8)


def _top1(logits: Tensor, images: ImageSet) -> float:
    return top_k_accuracy(logits, images.labels, 1)
