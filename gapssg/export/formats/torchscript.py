"""TorchScript."""

from __future__ import annotations

import io

import torch

from gapssg.export.formats import ITSELF, Classifier, Files, Format, Subject, quiet, without_gradients
from gapssg.models.description import METADATA_KEY


def write_torchscript(subject: Subject) -> Files:
    """Return a TorchScript file of the traced module; batch norms are not folded."""
    buffer = io.BytesIO()
    with quiet():
        traced = torch.jit.trace(subject.module, subject.example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, buffer, _extra_files={METADATA_KEY: subject.text})
    return {ITSELF: buffer.getvalue()}


def load_torchscript(files: Files) -> Classifier:
    """Return the classifier in a file of `write_torchscript`."""
    with quiet():
        return without_gradients(torch.jit.load(io.BytesIO(files[ITSELF])))  # type: ignore[no-untyped-call]


FORMAT = Format(write_torchscript, load_torchscript)
