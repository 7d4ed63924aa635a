"""Graphs from files of other programs, which a child process reads; no code in them is run."""

from __future__ import annotations

import copy
import importlib.util
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gapssg.errors import InputError, os_errors_as, shortened
from gapssg.files import LARGEST_FILE, open_regular, parse_json, read_bounded
from gapssg.models.checkpoint_file import answer_of_child
from gapssg.models.description import InputLayout
from gapssg.models.frozen import frozen
from gapssg.models.graphs.child import Answer, GraphFacts, Request
from gapssg.models.graphs.description import GraphJson, check_graph
from gapssg.models.graphs.exported_reader import names_below_root
from gapssg.models.rounding import rounding_tolerance
from gapssg.models.safetensors_file import read_safetensors

Kind = Literal["onnx", "torchscript", "torch.export"]

_CHILD = "import sys; sys.path.insert(0, {!r}); from gapssg.models.graphs.child import main; main()"
_ROOT = Path(__file__).parents[3]
_LARGEST_GRAPH = 4 * 2**20  # bytes; as the header of a model file
_ONNX_VERSIONS = range(3, 32)
_ONNX_FIELDS = b"\x12\x1a\x22\x28\x32\x3a\x42"  # the tags of the fields after the version


class GraphFile(NamedTuple):
    """A graph that was read from a file of another program."""

    kind: Kind
    """The program."""
    path: Path
    """The file."""
    description: GraphJson
    """The graph's JSON, which `check_graph` accepts."""
    tensors: dict[str, Tensor]
    """The tensors that it names, on the CPU."""
    input_shape: tuple[int, int, int]
    """Channels, height and width of an image."""
    num_classes: int
    """Number of logits."""
    roundoff: float
    """The unit roundoff of the file's numbers."""
    images: Tensor
    """(N, C, H, W) float32, on which the file's own library was run."""
    logits: Tensor
    """Its logits (N, K) float32 for them."""
    part: str | None
    """Name or index of the logits, if it has several outputs."""
    layout: InputLayout = "NCHW"
    """Order of the dimensions of the images that the file takes; its graph takes (N, C, H, W)."""
    metadata: str | None = None
    """What `gapssg export` wrote about the model; None in a file of another program."""


def kind_of_graph(path: Path) -> Kind | None:
    """Return what kind of graph a file holds, by its content; None if it holds weights or something unknown.

    Raises `InputError` if it is missing, unreadable, empty or too large.
    """
    with open_regular(path, LARGEST_FILE) as file, os_errors_as(InputError, f"{path} cannot be read"):
        start = file.read(9)
        if not start:
            raise InputError(f"{path} is empty; copy or save it again")
        if start[:2] == b"PK":
            try:
                with zipfile.ZipFile(file) as archive:
                    names = names_below_root(archive)
            except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
                raise InputError(
                    f"{path} is incomplete or damaged: it starts like a zip archive but is none; copy or save it again"
                ) from error
            if "serialized_exported_program.json" in names or any(name.startswith("models/") for name in names):
                return "torch.export"
            return "torchscript" if any(name.startswith("code/") for name in names) else None
    # The version, the first field of a model; a safetensors file has a brace after the 8 bytes of its length.
    is_onnx = len(start) > 2 and start[0] == 8 and start[1] in _ONNX_VERSIONS and start[2] in _ONNX_FIELDS
    return "onnx" if is_onnx and start[8:] != b"{" else None


def read_graph_file(
    path: Path,
    kind: Kind,
    input_shape: tuple[int, int, int] | None,
    part: str | None = None,
    layout: InputLayout | None = None,
) -> GraphFile:
    """Read an ONNX, TorchScript or torch.export file in a child process with bounds on memory and time.

    The input shape is channels, height and width of an image, or None if the file declares them. If it has several
    outputs, `part` is the name or index of its logits; `layout` is the order of the dimensions of the images that it
    takes; both are recognised if they are None. Raises `InputError` if a package is missing, or the file is damaged or
    too large, declares no or other images, or holds something other than a classifier of images as a graph of known
    operators.
    """
    with tempfile.TemporaryDirectory(prefix="gapssg-import-") as name:
        folder = Path(name)
        facts = _run_child(path, Request(kind, str(path.absolute()), name, input_shape, part, layout))
        try:
            description = check_graph(parse_json(read_bounded(folder / "graph.json", _LARGEST_GRAPH)))
        except (ValueError, RecursionError, InputError) as error:
            raise InputError(f"{path} cannot be imported as a graph: {error}") from error
        pair = read_safetensors(folder / "checked.safetensors").tensors
        return GraphFile(
            kind,
            path,
            description,
            read_safetensors(folder / "tensors.safetensors").tensors,
            facts.input_shape,
            facts.num_classes,
            facts.roundoff,
            pair["images"],
            pair["logits"],
            facts.part,
            facts.layout,
            facts.metadata,
        )


def original_logits(graph: GraphFile, images: Tensor) -> Tensor:
    """Return the logits (N, K) of images (N, C, H, W) float32 by the file's own library, or raise `InputError`."""
    with tempfile.TemporaryDirectory(prefix="gapssg-import-") as name:
        folder, path = Path(name), str(graph.path.absolute())
        save_file({"images": images.contiguous()}, folder / "images.safetensors")
        _run_child(graph.path, Request(graph.kind, path, name, graph.input_shape, graph.part, graph.layout))
        return read_safetensors(folder / "logits.safetensors").tensors["logits"]


def check_same_logits(graph: GraphFile, module: nn.Module, images: Tensor, logits: Tensor, source: str) -> None:
    """Check that the module of a graph has the logits (N, K) that the file's own library computes.

    Images (N, C, H, W) float32 are normalised; `source` says what they are. Raises `InputError` if logits have another
    shape, are not finite, or differ by more than `rounding_tolerance`.
    """
    library = _LIBRARIES[graph.kind]
    if not logits.isfinite().all():
        raise InputError(f"{graph.path} has logits that are not finite for {source} by {library}; check its weights")
    with frozen(module), torch.inference_mode():
        ours = module(images).double()
        exact = copy.deepcopy(module).double()(images.double())
    if logits.shape != ours.shape:
        given, right = ("x".join(map(str, each.shape)) for each in (ours, logits))
        found = f"they have the shape {given} instead of {right}"
    elif not ours.isfinite().all():
        found = "they are not finite"
    else:
        scale = max(exact.abs().max().item(), torch.finfo(torch.float32).tiny)
        if exact.min() >= 0 and exact.max() <= 1:  # probabilities, of which onnxruntime rounds small ones to 0
            scale = 1.0
        tolerance = rounding_tolerance((ours - exact).abs().max().item() / scale, graph.roundoff)
        difference = (ours - logits.double()).abs().max().item() / scale
        if difference <= tolerance:
            return
        found = f"they differ by up to {difference:.2g} of the largest, more than rounding explains ({tolerance:.2g})"
    raise InputError(
        f"{graph.path} was not imported, because its graph gives other logits than {library}: for {source} {found}; "
        "import its weights into the model's own code instead (--model package.module:factory)"
    )


_LIBRARIES: dict[Kind, str] = {"onnx": "onnxruntime", "torchscript": "TorchScript", "torch.export": "its own operators"}


def _run_child(path: Path, request: Request) -> GraphFacts:
    """Run the child process and return what it says of the file; raise `InputError` if it wrote nothing."""
    if request.kind == "onnx":
        missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(
                f"{path} is an ONNX file, whose import needs {' and '.join(missing)}, which is not installed: "
                "pip install 'gapssg[export]'"
            )
    answer = _answer(path, request)
    if answer.facts is None:
        reason = answer.refused or "it is damaged, or needs more memory than a model of its size should"
        raise InputError(f"{path} cannot be imported as a graph: {shortened(reason, 600)}")
    return answer.facts


def _answer(path: Path, request: Request) -> Answer:
    return answer_of_child(Answer, ["-c", _CHILD.format(str(_ROOT)), json.dumps(request)], path)
