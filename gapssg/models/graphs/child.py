"""A program of its own: reads an ONNX, TorchScript or torch.export file and writes its graph and weights.

    python -I -c "import sys; sys.path.insert(0, ROOT); from gapssg.models.graphs.child import main; main()" REQUEST

It runs in a child process with bounds on memory and time. REQUEST is a `Request` as a JSON list. With
`images.safetensors` in the folder it writes the logits that the file's own library computes for them; else the graph,
and such logits for random images. It prints its `Answer` as a JSON list.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gapssg.errors import InputError, first_line, says_out_of_memory
from gapssg.models.checkpoint_child import bound
from gapssg.models.description import InputLayout
from gapssg.models.graphs.record import Opened, laid_out
from gapssg.models.graphs.trace import graph_of

MEMORY_PER_BYTE = 8  # the file, its tensors, copies of them for two recordings, and the output
MEMORY_BESIDE = 3 * 2**30
_CHECKED = 3  # images
_LARGEST_METADATA = 4 * 2**20  # characters; as the header of a model file
_READERS = {"onnx": "onnx_reader", "torchscript": "torchscript_reader", "torch.export": "exported_reader"}


class Request(NamedTuple):
    """What is to be read, and where to."""

    kind: str
    """The program that wrote the file, of `_READERS`."""
    path: str
    """The file."""
    folder: str
    """The folder for what is written."""
    input_shape: Sequence[int] | None
    """Channels, height and width of an image; None if the file declares them."""
    part: str | None
    """Name or index of the logits among several outputs; None to recognise it."""
    layout: InputLayout | None
    """Order of the dimensions of its images; None to recognise it."""


class GraphFacts(NamedTuple):
    """What is known of a file besides its graph."""

    input_shape: tuple[int, int, int]
    """Channels, height and width of an image."""
    num_classes: int
    """Number of logits."""
    roundoff: float
    """The unit roundoff of the file's numbers."""
    part: str | None
    """Name or index of the logits, if it has several outputs."""
    layout: InputLayout
    """Order of the dimensions of its images."""
    metadata: str | None
    """What `gapssg export` wrote about the model."""


class Answer(NamedTuple):
    """What was done with a file."""

    facts: GraphFacts | None = None
    """What is known of it, if its graph or logits were written."""
    refused: str = ""
    """Why they were not."""


def main() -> None:
    """Read, write, and print what was done."""
    request = Request(*json.loads(sys.argv[1]))
    torch.set_num_threads(1)
    _prepare(request.kind)
    bound(Path(request.path), MEMORY_PER_BYTE, MEMORY_BESIDE)
    sys.stdout.write("\n" + json.dumps(answer(request)) + "\n")


def answer(request: Request) -> Answer:
    """Read a file, write the graph or logits to a folder, and return what was done, or why not."""
    folder = Path(request.folder)
    try:
        opened = read_file(request.kind, Path(request.path), request.layout)
        if (folder / "images.safetensors").exists():
            images = load_file(folder / "images.safetensors")["images"]
            logits = _logits(opened.original, images, request.part)
            save_file({"logits": logits}, folder / "logits.safetensors")
            return Answer(_facts(opened, images, logits.shape[1], request.part))
        try:
            return Answer(write_graph(opened, request))
        except InputError:
            if request.layout is not None or opened.input_shape is not None:
                raise
            # A file that declares no layout, and refuses (N, C, H, W), may take (N, H, W, C).
            with suppress(InputError):
                return Answer(write_graph(laid_out(opened, "NHWC"), request))
            raise
    except InputError as error:
        return Answer(refused=str(error))
    except Exception as error:  # whatever an untrusted file makes a library raise
        if says_out_of_memory(error):
            return Answer(refused="it needs more memory than a model of its size should")
        return Answer(refused=f"it cannot be read ({first_line(error, 200)})")


def read_file(kind: str, path: Path, layout: InputLayout | None = None) -> Opened:
    """Read a file of a kind; raise `InputError` if it is damaged or cannot be a graph."""
    opened: Opened = import_module(f"gapssg.models.graphs.{_READERS[kind]}").load(path)
    if len(opened.metadata or "") > _LARGEST_METADATA:
        raise InputError("its description is larger than that of any model")
    return laid_out(opened, layout)


def write_graph(opened: Opened, request: Request) -> GraphFacts:
    """Write the graph of a file, its tensors, and the logits of random images by its library.

    Raises `InputError` if the size of its images is unknown, or it has no graph.
    """
    folder, shape = Path(request.folder), _input_shape(opened.input_shape, request.input_shape)
    graph = graph_of(opened.read, shape, opened.batch, request.part)
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in graph.tensors.items()}, folder / "tensors.safetensors"
    )
    (folder / "graph.json").write_text(json.dumps(graph.description))
    images = torch.randn(_CHECKED, *shape, generator=torch.Generator().manual_seed(1))
    logits = _logits(opened.original, images, graph.part)
    save_file({"images": images, "logits": logits}, folder / "checked.safetensors")
    return _facts(opened, images, graph.num_classes, graph.part)


def _facts(opened: Opened, images: Tensor, num_classes: int, part: str | None) -> GraphFacts:
    _, channels, height, width = images.shape
    return GraphFacts((channels, height, width), num_classes, opened.roundoff, part, opened.layout, opened.metadata)


def _logits(original: Callable[[Tensor, str | None], Tensor], images: Tensor, part: str | None) -> Tensor:
    """Return logits (N, K) float32, image by image if the file fixes the batch size without declaring it."""
    try:
        logits = original(images, part)
        if len(logits) != len(images):
            raise ValueError("another batch size")
    except Exception:  # of any library
        logits = torch.cat([original(image[None], part) for image in images])
    return logits.reshape(len(images), -1).float().contiguous()


def _input_shape(declared: Sequence[int | None] | None, given: Sequence[int] | None) -> tuple[int, int, int]:
    if declared and given and list(declared) != list(given):
        sizes = ["x".join(map(str, shape)) for shape in (declared, given)]
        raise InputError(f"its images are {sizes[0]}, not {sizes[1]}; leave --input-shape out")
    shape = declared or given
    if shape is None:
        raise InputError("it does not say how large its images are; add --input-shape C,H,W")
    known = [size for size in shape if size and size > 0]
    if not len(known) == len(shape) == 3:
        raise InputError(f"its input is {'x'.join(map(str, shape))}, not images of C x H x W")
    channels, height, width = known
    return channels, height, width


def _prepare(kind: str) -> None:
    """Import what reads a kind of file, before memory is limited."""
    if kind == "onnx":
        import onnx
        import onnxruntime

        assert onnx
        onnxruntime.set_default_logger_severity(4)
