"""The models in files of `gapssg export`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from gapssg.errors import InputError
from gapssg.evaluation.import_graph import build_imported_graph
from gapssg.files import LARGEST_FILE, is_file, read_blocks, sha256_of_file, user_path
from gapssg.models.checksum import CHECKSUM, has_changed
from gapssg.models.description import METADATA_KEY, Interface, ModelCard
from gapssg.models.graphs.description import graph_name
from gapssg.models.graphs.file import GraphFile, Kind, kind_of_graph, read_graph_file
from gapssg.models.model_file import LoadedModel, load_model, read_description, refused_graph, validated
from gapssg.runs.directory import Display, SilentDisplay
from gapssg.runs.events import Warned
from gapssg.runs.failures import failed, warn_of_failure
from gapssg.runs.results.common import Failures
from gapssg.runs.results.export import ExportMetadata


def load_any_model(path: Path, factories: Iterable[str], display: Display) -> tuple[LoadedModel, Failures]:
    """Return the model of a model file, or of an ONNX, TorchScript or torch.export file of `gapssg export`.

    Returns also why its run found it not usable, which the display shows. The graph of an exported file is run by
    PyTorch, after its logits of random images were compared with those of the file's own library in a child process; no
    Python code of the file is run. Raises `InputError` as `load_model`, and if an exported file is damaged, has other
    logits, or was written by another program.
    """
    path = user_path(path)
    kind = kind_of_graph(path) if is_file(path) else None
    if kind is not None:
        return _load_exported(path, kind, display)
    model = load_model(path, factories)
    return model, warn_of_failure(model.path, display)


def warn_of_export(graph: GraphFile, display: Display) -> tuple[str, ...]:
    """Warn if the file of a graph, by `gapssg export`, has changed since, or if its run found the model not usable.

    Returns why, as far as that is known.
    """
    path = graph.path
    if _has_changed(path, graph.kind):
        message = f"{path} has changed since it was exported; if it is damaged, copy it again, or export it again"
        display.event(Warned(epoch=0, message=message))
    if graph.metadata is None:
        return ()
    try:
        failures = _metadata_of(graph, graph.metadata).failures or ()
    except InputError as error:
        failures = ()
        display.event(Warned(epoch=0, message=f"what the run of {path} found is not known: {error}"))
    else:
        if failures:
            display.event(failed(path, failures))
    return failures


def _has_changed(path: Path, kind: Kind) -> bool:
    return kind == "onnx" and has_changed(read_blocks(path, LARGEST_FILE))  # the others are archives with checksums


def _metadata_of(graph: GraphFile, text: str) -> ExportMetadata:
    """Return the metadata of an exported file; raise `InputError` if they are not valid."""
    description = read_description(graph.path, {METADATA_KEY: text})
    has_checksum = description.pop(CHECKSUM, None) is not None
    if graph.kind == "onnx" and not has_checksum and not description.keys() <= ExportMetadata.model_fields.keys():
        raise _changed(graph.path)  # in the key of the checksum
    return validated(ExportMetadata, description, graph.path)


def _changed(path: Path) -> InputError:
    return _refused(path, f"{path} has changed since it was exported (its checksum does not match)")


def _refused(path: Path, problem: object) -> InputError:
    return InputError(
        f"{problem}; if it is damaged, copy it again, or export it again; if another program wrote it, make a model "
        f"file of it: gapssg import-teacher --weights {shlex.quote(str(path))} ..."
    )


def _load_exported(path: Path, kind: Kind, display: Display) -> tuple[LoadedModel, Failures]:
    sha256 = sha256_of_file(path, LARGEST_FILE)
    if _has_changed(path, kind):
        raise _changed(path)
    try:
        graph = read_graph_file(path, kind, None)
    except InputError as error:
        raise _refused(path, error) from error
    if graph.metadata is None:
        raise refused_graph(path, kind)
    about = _metadata_of(graph, graph.metadata)
    if (graph.input_shape, graph.num_classes) != (about.input_shape, about.num_classes):
        raise InputError(f"{path} is damaged: its description is of another model; export the model again")
    interface = about.model_dump(include={*Interface.model_fields} - {"architecture", "arguments"})
    if about.normalization_folded:
        channels = about.input_shape[0]
        interface |= {"mean": (0.0,) * channels, "deviation": (1.0,) * channels}
    card = ModelCard(
        **interface,
        architecture=graph_name(graph.description),
        graph=graph.description,
        crop_padding=0,
        flip=False,
        provenance=about.provenance.model,
    )
    module = build_imported_graph(graph, card, SilentDisplay())
    if about.failures:
        display.event(failed(path, about.failures))
    return LoadedModel(module, card, sha256, path), about.failures
