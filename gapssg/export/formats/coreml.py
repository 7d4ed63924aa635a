"""A Core ML package. Only macOS and iOS can run it, so that its outputs are not verified."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from gapssg.export.formats import INPUT_NAME, OUTPUT_NAME, Files, Format, Subject, quiet
from gapssg.models.description import METADATA_KEY

_LARGEST_BATCH = 512


def write_coreml(subject: Subject) -> Files:
    """Return the files of an `.mlpackage` with float32 weights for batches of 1 to 512 images.

    Raises:
        RuntimeError: The package that was written has other inputs or outputs.
    """
    import coremltools

    shape = coremltools.Shape((coremltools.RangeDim(1, _LARGEST_BATCH), *subject.metadata.input_shape))
    with quiet(), tempfile.TemporaryDirectory(prefix="gapssg-export-") as folder:
        package = Path(folder) / "model.mlpackage"
        model = coremltools.convert(
            torch.jit.trace(subject.module, subject.example, check_trace=False),  # type: ignore[no-untyped-call]
            inputs=[coremltools.TensorType(INPUT_NAME, shape=shape)],
            outputs=[coremltools.TensorType(OUTPUT_NAME)],
            convert_to="mlprogram",
            minimum_deployment_target=coremltools.target.iOS16,
            compute_precision=coremltools.precision.FLOAT32,
            skip_model_load=True,
        )
        model.user_defined_metadata[METADATA_KEY] = subject.text
        model.save(str(package))
        description = coremltools.utils.load_spec(str(package)).description
        names = ([each.name for each in description.input], [each.name for each in description.output])
        shapes = [tuple(each.type.multiArrayType.shape)[1:] for each in description.input]
        if names != ([INPUT_NAME], [OUTPUT_NAME]) or shapes != [subject.metadata.input_shape]:
            raise RuntimeError(f"the package has the inputs and outputs {names}")
        written = sorted(path for path in package.rglob("*") if path.is_file())
        return {path.relative_to(package).as_posix(): path.read_bytes() for path in written}


FORMAT = Format(write_coreml, None, ("coremltools",), extra="coreml", is_folder=True)
