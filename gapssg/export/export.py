"""`export`: converts a model file for other programs, and verifies its outputs before keeping the file."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gapssg.core.runtime import Runtime
from gapssg.data.image_set import ImageSet
from gapssg.errors import InputError
from gapssg.evaluation.metrics import agreement, top_k_accuracy
from gapssg.evaluation.real_images import read_test_images
from gapssg.export.formats import ITSELF, Calibration, Classifier, Files, Format, Subject, load_format, quiet
from gapssg.export.quantize import PoolImages, check_agreement, draw_images, images_per_second, quantize_within
from gapssg.export.settings import FORMAT_NAMES, ExportSettings, check_suffix
from gapssg.export.verify import Examiner, check_tolerance, compare, random_batches, tolerance_of
from gapssg.files import (
    check_output_file,
    check_output_folder,
    sha256_of_contents,
    staged,
    staged_folder,
    user_path,
)
from gapssg.models.description import Interface
from gapssg.models.foreign import foreign_code
from gapssg.models.frozen import frozen
from gapssg.models.model_file import load_model
from gapssg.models.model_path import model_file
from gapssg.runs.directory import Display, SilentDisplay, pool_shards, run_facts, versions
from gapssg.runs.events import Note, Warned
from gapssg.runs.failures import warn_of_failure
from gapssg.runs.results.common import ModelFile
from gapssg.runs.results.export import (
    BothPrecisions,
    ExportedTop1,
    ExportMetadata,
    ExportProvenance,
    ExportResult,
    ExportTiming,
    ImagesPerSecond,
    Int8Metadata,
    Int8Verification,
    Value,
    Verification,
)
from gapssg.text import percent

_TIMED_BATCH = 64
_RANKING_IMAGES = 256  # once for every layer
_WEAK_TOLERANCE = 2.0**-8  # a model with weights rounded to 8 bits would pass
# Of errors with the same distribution, the largest of a hundred times as many images is less than twice as large.
_LARGE_DRIFT = 4
_LARGE_ACCURACY_LOSS = 0.02  # on 450 images, chance moves it by less than a point


def export_model(
    settings: ExportSettings, output: Path, *, overwrite: bool = False, display: Display | None = None
) -> ExportResult:
    """Export a model for other programs, and verify the exported file.

    The output is written under a temporary name, read back and run on the CPU, and renamed only if its logits are those
    of the model; else nothing is left. An int8 model is made from a verified float32 export and must agree with it. A
    format that nothing here can run is not verified, and `calibration` writes images of a pool instead of a model.

    Raises:
        InputError: The model, the data, the pool or the output cannot be used, a package is missing, or the exported
            model disagrees with the model.
        RunError: The disk refused the write.
    """
    display = display or SilentDisplay()
    output = user_path(output)
    check_suffix(settings.to, output)
    target = load_format(settings.to)
    _check_format(settings, target)
    file = model_file(settings.model)
    shards = _calibration_shards(settings, target)
    if target.is_folder:
        check_output_folder(output)
    else:
        check_output_file(output, overwrite, inputs=[file, *shards])
    all_versions = {**versions(), **_package_versions(target)}
    model = load_model(file, settings.model_factories)
    runtime = Runtime(torch.device("cpu"), "fp32", compiled=False, seed=settings.seed)
    most, holds_out = settings.int8.calibration_images, settings.int8.enabled
    pool = draw_images(shards, model.card, most, runtime, holds_out=holds_out) if shards else None
    test = None if settings.data is None else read_test_images(settings.data, model, display)

    display.event(Note(message=f"exporting {model.card.architecture} from {model.path}"))
    failures = warn_of_failure(model.path, display)
    provenance = ExportProvenance(model_sha256=model.sha256, model=model.card.provenance, versions=all_versions)
    interface = {name: getattr(model.card, name) for name in Interface.model_fields}
    metadata = ExportMetadata(
        **interface,
        normalization_folded=settings.fold_normalization,
        failures=failures,
        provenance=provenance,
    )
    exporter = _Exporter(Examiner(model, settings, runtime), target, output, test, pool, display)
    exported = exporter.export_int8(metadata) if settings.int8.enabled else exporter.export_float32(metadata)
    return ExportResult(
        model=ModelFile(file=str(model.path), sha256=model.sha256, architecture=model.card.architecture),
        format=settings.to,
        file=str(output),
        sha256=sha256_of_contents(exported.files),
        bytes=_bytes(exported.files),
        metadata=exported.metadata,
        data=None if settings.data is None else settings.data.name,
        verification=exported.verification,
        int8=exported.int8,
        timing=exported.timing,
        **dict(run_facts(runtime, settings).model_copy(update={"versions": all_versions})),
    )


def _check_format(settings: ExportSettings, target: Format) -> None:
    if settings.int8.enabled and target.quantizer is None:
        names = [name for name in FORMAT_NAMES if load_format(name).quantizer is not None]
        raise InputError(f"--to {settings.to} has no int8; use {' or '.join(names)}")
    if settings.data is not None and target.load is None:
        raise InputError(f"--to {settings.to} is not compared on images, because nothing here runs it; omit --data")


def _calibration_shards(settings: ExportSettings, target: Format) -> list[Path]:
    if not (settings.int8.enabled or target.needs_pool):
        return []
    pool = settings.int8.pool or (settings.model if settings.model.is_dir() else None)
    if pool is None:
        what = "--int8 calibrates on" if settings.int8.enabled else f"--to {settings.to} writes"
        raise InputError(f"{what} the sample pool of a run; name the run's directory with --pool")
    return pool_shards(pool)


def _package_versions(target: Format) -> dict[str, str]:
    try:
        with quiet(), target.importing():
            for name in target.packages:
                importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"this export needs the package {error.name}, which is not installed: pip install 'gapssg[{target.extra}]'"
        ) from error
    # Not every package has `__version__`, and not every distribution the name of its package.
    return {name: getattr(sys.modules[name], "__version__", None) or version(name) for name in target.packages}


class _Quantized(NamedTuple):
    files: Files
    float_layers: tuple[str, ...]
    corrected_biases: int | None


class _Exported(NamedTuple):
    files: Files
    metadata: ExportMetadata
    verification: Verification | None
    int8: Int8Verification | None = None
    timing: ExportTiming | None = None


@dataclass(frozen=True)
class _Exporter:
    """Writes and verifies the files of one model in one format."""

    examiner: Examiner
    target: Format
    output: Path
    test: ImageSet | None
    pool: PoolImages | None
    display: Display

    def export_float32(self, metadata: ExportMetadata) -> _Exported:
        files = self._write(metadata)
        verification, timing = None, None
        with self._staged(files) as written:
            if self.target.load is not None:
                exported = self._load(written)
                verification = self._verify(exported)
                timing = self._timing((exported,), torch.cat(random_batches(self.examiner)))
        return _Exported(files, metadata, verification, timing=timing)

    def export_int8(self, metadata: ExportMetadata) -> _Exported:
        pool = self.pool
        assert pool is not None  # int8 needs it
        plain_files = self._write(metadata)
        plain = self._load(plain_files)
        verification = self._verify(plain)
        self.display.event(Note(message=f"calibrating on {len(pool.calibration):,} images of the pool"))
        int8_metadata = Int8Metadata(calibration_images=len(pool.calibration))
        metadata = metadata.model_copy(update={"int8": int8_metadata})
        made = self._quantize(plain_files, plain, metadata, pool)
        int8_metadata = int8_metadata.model_copy(update={"float_layers": made.float_layers})
        metadata = metadata.model_copy(update={"int8": int8_metadata})
        with self._staged(made.files) as written:
            quantized = self._load(written)
            int8 = self._verify_int8(quantized, plain, pool, made, _both(_bytes(plain_files), _bytes(made.files)))
            timing = self._timing((plain, quantized), pool.held_out)
        if loss := loss_of_int8(int8):
            self._warn(loss)
        return _Exported(made.files, metadata, verification, int8, timing)

    def _write(self, metadata: ExportMetadata) -> Files:
        examiner, to = self.examiner, self.examiner.settings.to
        images = None
        if self.target.needs_pool and self.pool is not None:
            pixels = self.pool.calibration
            images = Calibration(pixels, examiner.inputs(pixels), self.pool.targets)
        # Exporters raise exceptions of any type.
        architecture = examiner.model.card.architecture
        complaint = f"{architecture} cannot be exported as {to}; try another format, or --debug for details"
        with foreign_code(complaint), frozen(examiner.exported_module()) as module:
            return self.target.write(Subject(module, metadata, images))

    @contextmanager
    def _staged(self, files: Files) -> Iterator[Files]:
        """Write the output under a temporary name, yield its contents, and rename it if the block succeeds."""
        stage = staged_folder(self.output, files) if self.target.is_folder else staged(self.output, files[ITSELF])
        with stage as path:
            yield {name: (path / name).read_bytes() for name in files}

    def _load(self, files: Files) -> Classifier:
        """Return the function of an exported model, which raises InputError on any failure."""
        assert self.target.load is not None  # only models that can be run are verified
        to = self.examiner.settings.to
        complaint = (
            f"{self.examiner.model.card.architecture} was exported as {to}, but the exported file cannot be run, so "
            "nothing was kept; if its forward fixes the batch size, change that, else try another format, or --debug "
            "for details"
        )
        with foreign_code(complaint):
            return foreign_code(complaint)(self.target.load(files))

    def _quantize(
        self, plain_files: Files, plain: Classifier, metadata: ExportMetadata, pool: PoolImages
    ) -> _Quantized:
        assert self.target.quantizer is not None  # checked before
        architecture = self.examiner.model.card.architecture
        limit = self.examiner.settings.int8.max_drop_points
        before = self._logits(plain, pool.held_out)
        before_test = None if self.test is None else self._logits(plain, self.test.images)

        def drop(files: Files) -> float:
            quantized = self._load(files)
            if self.test is None or before_test is None:
                return 1 - agreement(before, self._logits(quantized, pool.held_out))
            return _top1(before_test, self.test) - _top1(self._logits(quantized, self.test.images), self.test)

        def error(files: Files) -> float:
            images = pool.held_out[:_RANKING_IMAGES]
            difference = before[: len(images)].double() - self._logits(self._load(files), images)  # float32 overflows
            return difference.square().mean().item()

        with foreign_code(f"{architecture} cannot be quantised; leave --int8 out, or --debug for details"):
            quantizer = self.target.quantizer(plain_files, self.examiner.inputs(pool.calibration))
            most = None if limit is None else limit / 100
            files, float_layers = quantize_within(quantizer, metadata, most, drop, error)
        biased = quantizer.biased_layers
        return _Quantized(files, float_layers, None if biased is None else len({*biased} - {*float_layers}))

    def _timing(self, classifiers: Sequence[Classifier], images: Tensor) -> ExportTiming:
        """Time float32, and int8 if given, on one batch of images, uint8 or float in [0, 1]."""
        timed = self.examiner.inputs(images[: min(_TIMED_BATCH, self.examiner.batch_size)])
        rates = dict(zip(("float32", "int8"), images_per_second(classifiers, timed), strict=False))
        return ExportTiming(images_per_second=ImagesPerSecond(**rates), batch_size=len(timed))

    def _logits(self, classifier: Classifier, images: Tensor) -> Tensor:
        return self.examiner.logits(classifier, images)

    def _verify(self, exported: Classifier) -> Verification:
        """Compare a float32 export with the model on random and on real images; raise InputError if they disagree."""
        examiner, test, limit = self.examiner, self.test, self.examiner.limit
        batches = random_batches(examiner)
        ours = torch.cat([examiner.model_logits(batch) for batch in batches])
        theirs = torch.cat([self._logits(exported, batch) for batch in batches])
        on_random, on_test, top1 = compare(ours, theirs, limit), None, None
        exact = examiner.exact_logits(torch.cat(batches))
        tolerance = examiner.settings.tolerance or tolerance_of(ours, exact, limit)
        check_tolerance(on_random, tolerance, "random images")
        if test is not None:
            ours, theirs = examiner.model_logits(test.images), self._logits(exported, test.images)
            on_test = compare(ours, theirs, limit, "test images")
            check_tolerance(on_test, tolerance, "test images")
            top1 = ExportedTop1(model=_top1(ours, test), exported=_top1(theirs, test))
        verification = Verification(tolerance=tolerance, random=on_random, test=on_test, top1=top1)
        self._warn_of_weakness(verification)
        return verification

    def _warn_of_weakness(self, verification: Verification) -> None:
        """Warn if the comparison of the logits shows little."""
        compared = [each for each in (verification.random, verification.test) if each is not None]
        if all(each.saturated == each.images for each in compared):
            advice = "add real images with --data" if self.test is None else "compare the predictions"
            self._warn(
                f"the logits could not be verified: all probabilities of {sum(each.images for each in compared):,} "
                f"images are below 1 % or above 99 %, where rounding hides differences of logits; {advice}"
            )
        elif self.examiner.settings.tolerance is None and verification.tolerance > _WEAK_TOLERANCE:
            self._warn(
                f"the logits were hardly verified: the model rounds so coarsely that the tolerance is "
                f"{percent(verification.tolerance)} of the largest logit; compare the predictions, or set --tolerance"
            )

    def _warn(self, message: str) -> None:
        self.display.event(Warned(epoch=0, message=message))

    def _verify_int8(
        self,
        quantized: Classifier,
        plain: Classifier,
        pool: PoolImages,
        made: _Quantized,
        sizes: BothPrecisions[int],
    ) -> Int8Verification:
        """Compare an int8 model with the float32 export; raise InputError if they disagree on images of the pool."""
        min_agreement, limit = self.examiner.settings.int8.min_agreement, self.examiner.limit
        before, after = (self._logits(classifier, pool.held_out) for classifier in (plain, quantized))
        on_pool = compare(before, after, limit, "images of the pool")
        check_agreement(on_pool, min_agreement)
        on_test, top1 = None, None
        if self.test is not None:
            before, after = (self._logits(classifier, self.test.images) for classifier in (plain, quantized))
            on_test = compare(before, after, limit, "test images")
            top1 = _both(_top1(before, self.test), _top1(after, self.test))
        return Int8Verification(
            calibration_images=len(pool.calibration),
            min_agreement=min_agreement,
            float_layers=made.float_layers,
            corrected_biases=made.corrected_biases,
            pool=on_pool,
            test=on_test,
            top1=top1,
            bytes=sizes,
        )


def loss_of_int8(int8: Int8Verification) -> str | None:
    """Say what an int8 model loses on the test images, if that is much; None if not."""
    if int8.top1 is not None and int8.top1.float32 - int8.top1.int8 > _LARGE_ACCURACY_LOSS:
        return (
            f"int8 lowers top-1 from {percent(int8.top1.float32)} to {percent(int8.top1.int8)}, by more than "
            f"{100 * _LARGE_ACCURACY_LOSS:.0f} points; the calibration images of the pool may differ too much from "
            "the test images; --max-drop keeps the layers that lose most in float32"
        )
    pool, test = int8.pool.largest_difference, 0 if int8.test is None else int8.test.largest_difference
    if test > _LARGE_DRIFT * pool:
        return (
            f"int8 changes logits of the test images by up to {test:.2g}, but of the pool by at most {pool:.2g}: the "
            "calibration images differ too much from the test images, so that probabilities may be wrong; calibrate on "
            "more images of a larger pool (--pool, --calibration-images), or export without --int8"
        )
    return None


def _bytes(files: Files) -> int:
    return sum(map(len, files.values()))


def _both(float32: Value, int8: Value) -> BothPrecisions[Value]:
    return BothPrecisions(float32=float32, int8=int8)


def _top1(logits: Tensor, images: ImageSet) -> float:
    return top_k_accuracy(logits, images.labels, 1)
