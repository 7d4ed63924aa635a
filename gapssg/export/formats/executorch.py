"""An ExecuTorch program for the XNNPACK backend, run by ExecuTorch's Python runtime."""

from __future__ import annotations

import torch
from torch import Tensor

from gapssg.export.formats import ITSELF, METADATA_KEY, Classifier, Files, Format, Subject, quiet

_LARGEST_BATCH = 64  # memory is planned when the program is written


def write_executorch(subject: Subject) -> Files:
    """Return a `.pte` program for batches of 1 to 64 images; its method `gapssg` returns the metadata."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with quiet():
        dynamic = ({0: torch.export.Dim("batch", max=_LARGEST_BATCH)},)
        program = torch.export.export(subject.module, (subject.example,), dynamic_shapes=dynamic)
        edge = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods={METADATA_KEY: subject.text}
        )
        return {ITSELF: bytes(edge.to_executorch().buffer)}


def load_executorch(files: Files) -> Classifier:
    """Return the classifier in a program of `write_executorch`."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(files[ITSELF]).load_method("forward")

    def classify(images: Tensor) -> Tensor:
        batches = torch.split(images.contiguous(), _LARGEST_BATCH)
        return torch.cat([method.execute([batch])[0].clone() for batch in batches])

    return classify


FORMAT = Format(write_executorch, load_executorch, ("executorch",), extra="executorch")
