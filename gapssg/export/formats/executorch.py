"""An ExecuTorch program for the XNNPACK backend, run by ExecuTorch's Python runtime."""

from __future__ import annotations

import torch
from torch import Tensor

from gapssg.export.formats import ITSELF, Classifier, Files, Format, Subject, quiet
from gapssg.models.description import METADATA_KEY


def write_executorch(subject: Subject) -> Files:
    """Return a `.pte` program for one image (1, C, H, W); its method `gapssg` returns the metadata."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with quiet():
        program = torch.export.export(subject.module, (subject.example[:1],))
        edge = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods={METADATA_KEY: subject.text}
        )
        return {ITSELF: bytes(edge.to_executorch().buffer)}


def load_executorch(files: Files) -> Classifier:
    """Return a classifier that runs a program of `write_executorch` image by image."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(files[ITSELF]).load_method("forward")

    def classify(images: Tensor) -> Tensor:
        return torch.cat([method.execute([image])[0].clone() for image in torch.split(images.contiguous(), 1)])

    return classify


FORMAT = Format(write_executorch, load_executorch, ("executorch",), extra="executorch")
