"""A program of its own: reads an ONNX, TorchScript or torch.export file and writes its graph and weights.

    python -I -c "import sys; sys.path.insert(0, ROOT); from gapssg.models.graphs.child import main; main()" \
        KIND FILE FOLDER SHAPE PART LAYOUT

It runs in a child process with bounds on memory and time. With `images.safetensors` in the folder it writes the logits
that the file's own library computes for them; else the graph, and such logits for random images. SHAPE is `C,H,W`, or
empty if the file must declare it; PART is the name or index of the logits among several outputs, and LAYOUT the order
of the dimensions of its images, each empty if it is to be recognised. It prints one JSON object: `shape` and others, or
`refused` and why.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

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
_READERS = {"onnx": "onnx_reader", "torchscript": "torchscript_reader", "torch.export": "exported_reader"}


def main() -> None:
    """Read, write, and print what was done."""
    arguments = sys.argv[1:]
    torch.set_num_threads(1)
    _prepare(arguments[0])
    bound(Path(arguments[1]), MEMORY_PER_BYTE, MEMORY_BESIDE)
    sys.stdout.write("\n" + json.dumps(answer_to(arguments)) + "\n")


def answer_to(arguments: list[str]) -> dict[str, Any]:
    """Return the `answer` for the arguments of the child process."""
    kind, path, folder, shape, part, layout = arguments
    given = tuple(int(size) for size in shape.split(",")) if shape else None
    chosen: Any = layout or None
    return answer(kind, Path(path), Path(folder), given, part or None, chosen)


def answer(
    kind: str,
    path: Path,
    folder: Path,
    given: tuple[int, ...] | None,
    part: str | None = None,
    layout: InputLayout | None = None,
) -> dict[str, Any]:
    """Read a file, write the graph or logits to a folder, and return what was done, or why not.

    Given are channels, height and width of an image, None if the file declares them, and the part of its outputs that
    is its logits and the layout of its images, None to recognise them.
    """
    try:
        opened = read_file(kind, path, layout)
        if (folder / "images.safetensors").exists():
            images = load_file(folder / "images.safetensors")["images"]
            save_file({"logits": _logits(opened.original, images, part)}, folder / "logits.safetensors")
            return {"shape": list(images.shape[1:])}
        try:
            return write_graph(opened, folder, given, part)
        except InputError as error:
            if layout is not None or opened.input_shape is not None:
                raise
            return _with_channels_last(opened, folder, given, part, error)
    except InputError as error:
        return {"refused": str(error)}
    except Exception as error:  # whatever an untrusted file makes a library raise
        if says_out_of_memory(error):
            return {"refused": "it needs more memory than a model of its size should"}
        return {"refused": f"it cannot be read ({first_line(error, 200)})"}


def read_file(kind: str, path: Path, layout: InputLayout | None = None) -> Opened:
    """Read a file of a kind; raise `InputError` if it is damaged or cannot be a graph."""
    opened: Opened = import_module(f"gapssg.models.graphs.{_READERS[kind]}").load(path)
    return laid_out(opened, layout)


def _with_channels_last(
    opened: Opened, folder: Path, given: tuple[int, ...] | None, part: str | None, error: InputError
) -> dict[str, Any]:
    """Write the graph of a file that declares no layout and refuses (N, C, H, W), or raise the error of that."""
    try:
        return write_graph(laid_out(opened, "NHWC"), folder, given, part)
    except InputError:
        raise error from None


def write_graph(opened: Opened, folder: Path, given: tuple[int, ...] | None, part: str | None = None) -> dict[str, Any]:
    """Write the graph of a file, its tensors, and the logits of random images by its library.

    Raises `InputError` if the size of its images is unknown, or it has no graph.
    """
    shape = _input_shape(opened.input_shape, given)
    graph = graph_of(opened.read, shape, opened.batch, part)
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in graph.tensors.items()}, folder / "tensors.safetensors"
    )
    (folder / "graph.json").write_text(json.dumps(graph.description))
    images = torch.randn(_CHECKED, *shape, generator=torch.Generator().manual_seed(1))
    logits = _logits(opened.original, images, graph.part)
    save_file({"images": images, "logits": logits}, folder / "checked.safetensors")
    return {
        "shape": list(shape),
        "classes": graph.num_classes,
        "roundoff": opened.roundoff,
        "part": graph.part,
        "layout": opened.layout,
    }


def _logits(original: Callable[[Tensor, str | None], Tensor], images: Tensor, part: str | None) -> Tensor:
    """Return logits (N, K) float32, image by image if the file fixes the batch size without declaring it."""
    try:
        logits = original(images, part)
        if len(logits) != len(images):
            raise ValueError("another batch size")
    except Exception:  # of any library
        logits = torch.cat([original(image[None], part) for image in images])
    return logits.reshape(len(images), -1).float().contiguous()


def _input_shape(declared: tuple[int | None, ...] | None, given: tuple[int, ...] | None) -> tuple[int, int, int]:
    if declared and given and declared != given:
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
