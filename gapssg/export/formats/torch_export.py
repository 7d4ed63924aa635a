"""The unmodified graph of `torch.export`."""

from __future__ import annotations

import io

import torch

from gapssg.export.formats import ITSELF, Classifier, Files, Format, Subject, quiet, without_gradients
from gapssg.models.description import METADATA_KEY


def write_torch_export(subject: Subject) -> Files:
    """Return a file of `torch.export.save`; batch norms are not folded."""
    buffer = io.BytesIO()
    with quiet():
        dynamic = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(subject.module, (subject.example,), dynamic_shapes=dynamic)
        torch.export.save(program, buffer, extra_files={METADATA_KEY: subject.text})
    return {ITSELF: buffer.getvalue()}


def load_torch_export(files: Files) -> Classifier:
    """Return the classifier in a file of `write_torch_export`."""
    with quiet():
        return without_gradients(torch.export.load(io.BytesIO(files[ITSELF])).module())


FORMAT = Format(write_torch_export, load_torch_export)
