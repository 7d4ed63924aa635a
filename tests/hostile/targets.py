"""Random untrusted input, and how the program uses it.

Each target makes cases from sound files by changes that hypothesis draws, and says what the program does with them.
A case may be accepted or refused with a sentence; everything else is a failure. `benchmarks/fuzz.py` runs the same
targets in larger number.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import os
import re
import shutil
import signal
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from gapssg import (
    DistillSettings,
    GapssgError,
    ReportSettings,
    distill,
    load_model,
    load_settings,
    write_card,
    write_report,
)
from gapssg.cli.app import _report_error
from gapssg.cli.console import Console, Invocation
from gapssg.cli.render import print_evaluation
from gapssg.cli.runs import settings_of_run
from gapssg.core.augment import Normalization
from gapssg.data import load_split
from gapssg.evaluation.metrics import answers_of, check_finite, score_answers
from gapssg.models import checkpoint_child, checkpoint_file, create_model
from gapssg.models.checkpoint_file import AnyAnswer, answer_in, read_checkpoint_weights
from gapssg.models.graphs import child
from gapssg.models.graphs import file as graph_file
from gapssg.models.graphs.description import graph_name
from gapssg.models.graphs.file import kind_of_graph, read_graph_file
from gapssg.models.graphs.module import build_graph
from gapssg.models.graphs.operators import OPERATORS
from gapssg.models.model_file import _sha256_of_content, save_model
from gapssg.models.safetensors_file import read_safetensors
from gapssg.runs.directory import RunDirectory, SilentDisplay, Written, check_output, check_same_settings
from gapssg.runs.events import Note
from gapssg.synthesis.shards import PoolOrigin, read_shard, write_shard
from gapssg.text import printable_toml
from tests.conftest import make_card
from tests.models.graphs.small_models import Mobile, Transformer, trained
from tests.models.graphs.written import built, read, write
from tests.results import make_evaluation, make_pretrain_result

ESCAPES = ("\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "[red]", "[/]", "[link=http://x]y", "\u202e", "\r", "\n", "\ud800")
MOST_MEMORY = 640 * 2**20
"""Bytes by which the process may grow when it reads untrusted input."""
LONGEST_MESSAGE = 30_000
"""Characters: 20 wrong settings, each in one line."""


class World:
    """Sound files, made once, and a folder beside which nothing may change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.outside = root / "outside"
        self.work = root / "work"
        for folder in (root, self.outside / "folder"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.outside / "file").write_text("not yours")
        (self.outside / "folder" / "file").write_text("not yours")
        self.outside_before = self.state_of_outside()
        self.teacher = root / "teacher.safetensors"
        card = make_card()
        model = create_model(card.architecture, num_classes=10, input_shape=card.input_shape)
        save_model(self.teacher, model.eval(), card)
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (8, 1, 16, 16), generator=generator, dtype=torch.uint8)
        write_shard(root / "shard.safetensors", images, torch.arange(8), PoolOrigin("gapssg", "0" * 64))
        self.settings = DistillSettings.model_validate(
            {
                "teacher": self.teacher,
                "student": {"name": "wrn10_half"},
                "method": {
                    "synthesis_batch_size": 8,
                    "generator_steps": 2,
                    "generator_width": 4,
                    "latent_size": 4,
                    "distillation_steps": 0,
                    "passes": 1,
                },
                "epochs": 2,
                "batch_size": 4,
                "checkpoint_minutes": 1e-9,
                "samples": False,
                "runtime": {"device": "cpu", "precision": "fp32", "compile": False},
            }
        )
        # Steps: two of synthesis and two of distillation; then two and four.
        self.runs = [self._interrupted_run(root / f"run-{step}", step) for step in (5, 6, 9)]
        self.finished = root / "finished"
        samples = self.settings.model_copy(update={"samples": True})
        distill(samples, self.finished)
        self.images = _sound_images()
        self.checkpoints = _sound_checkpoints()
        self.graph_files, self.graph_teacher = _sound_graphs(root / "graphs")

    def _interrupted_run(self, path: Path, step: int) -> Path:
        try:
            distill(self.settings, path, display=_Interrupting(step))
        except _Interruption:
            return path
        raise AssertionError("the run was not interrupted")

    def state_of_outside(self) -> dict[str, tuple[int, bytes]]:
        """Return what must not change."""
        found = {}
        for path in sorted(self.outside.rglob("*")):
            found[str(path)] = (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        return found

    def copy_of_run(self, number: int) -> Path:
        """Make the folder of a case a copy of an interrupted run."""
        shutil.rmtree(self.work, ignore_errors=True)
        return Path(shutil.copytree(self.runs[number], self.work))


class _Interruption(Exception):
    pass


class _Interrupting(SilentDisplay):
    def __init__(self, step: int) -> None:
        self.left = step

    def progress(self, task: str, done: int, total: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise _Interruption


class Target(NamedTuple):
    """A kind of untrusted input.

    Attributes:
        cases: A strategy for cases.
        use: What the program does with a case that has been prepared in the folder.
    """

    cases: Callable[[World], st.SearchStrategy[Any]]
    use: Callable[[World, Any], None]


class Report:
    """The outcomes of the cases of one target."""

    def __init__(self) -> None:
        self.refused = 0
        self.accepted = 0
        self.failures: list[str] = []


def run_target(name: str, world: World, cases: int, number: int | None = None, keep_going: bool = False) -> Report:
    """Run cases of a target: always the same ones, or those of a seed.

    Raises:
        Exception: Whatever a case raised that is no refusal, unless it is to keep going.
    """
    target, report = TARGETS[name], Report()

    def check(case: Any) -> None:
        if (report.refused + report.accepted) % 20 == 0:
            gc.collect()  # memory that earlier cases left in cycles does not count
        try:
            check_case(target, world, case, report)
        except BaseException as error:
            if not keep_going or isinstance(error, KeyboardInterrupt):
                raise
            report.failures.append(f"{type(error).__name__}: {str(error)[:300]} for {repr(case)[:300]}")

    gc.freeze()
    test = given(target.cases(world))(check)
    test = settings(
        max_examples=cases,
        derandomize=number is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )(test)
    try:
        (test if number is None else seed(number)(test))()
    finally:
        gc.unfreeze()
    return report


def check_case(target: Target, world: World, case: Any, report: Report) -> None:
    """Use a case and check that it is accepted or refused with a sentence, and that nothing outside changed."""
    shutil.rmtree(world.work, ignore_errors=True)
    world.work.mkdir()
    try:
        target.use(world, case)
        report.accepted += 1
    except GapssgError as error:
        message = str(error)
        assert message.strip(), "a refusal without a sentence"
        assert len(message) <= LONGEST_MESSAGE, f"a message of {len(message)} characters"
        report.refused += 1
    assert world.state_of_outside() == world.outside_before, "a file outside the output directory changed"


# Values

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 12),
    st.sampled_from([2**31, 2**32 + 4, 10**12, 2**62, 2**63, 2**64, -(2**63), 10**400, 2**64 - 8]),
    st.floats(),
    st.sampled_from([1e308, -1e308, 1e-320, math.inf, math.nan]),
    st.text(max_size=8),
    st.sampled_from([*ESCAPES, "../../etc/passwd", "/etc/passwd", "x" * 100_000, "", "F32", "I64", "U8", "F8_E4M3"]),
)


def nested(depth: int) -> Any:
    """Return lists in lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


values = st.one_of(
    scalars,
    scalars,
    st.lists(scalars, max_size=5),
    st.dictionaries(st.text(max_size=5), scalars, max_size=3),
    st.sampled_from([1, 50, 400]).map(nested),
)

raw_json = st.one_of(
    values.map(lambda value: to_json(value)),
    st.text(max_size=20),
    st.sampled_from(
        ["", "{", "null", "[" * 100_000, '{"a":' * 50_000, "[" * 900 + "]" * 900, '"' + "x" * 2_000_000 + '"']
    ),
    st.sampled_from(
        [
            "9" * 5000,
            '{"class_names":[' + "0," * 2_000_000 + "0]}",
            "[1e999]",
            "[NaN]",
            '{"a": 1, "a": 2}',
            "[" + "{}," * 500_000 + "{}]",
        ]
    ),
)


def to_json(value: Any) -> str:
    return json.dumps(value)


@st.composite
def changed_values(draw: st.DrawFn, original: Any) -> Any:
    """Draw a copy of JSON with one to three of its parts replaced, removed or added."""
    value = json.loads(json.dumps(original))
    for _ in range(draw(st.integers(1, 3))):
        place = value
        while True:
            keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 3)):
                place = place[key]
                continue
            action = draw(st.sampled_from(["replace", "replace", "nudge", "remove", "add"]))
            if action == "nudge" and isinstance(place[key], int | float):
                place[key] += draw(st.sampled_from([1, -1, 7, 1000, 10**6, 0.5]))
            elif action == "remove":
                del place[key]
            elif action == "add" and isinstance(place, dict):
                place[draw(st.one_of(st.text(max_size=5), st.sampled_from(ESCAPES[:-1])))] = draw(values)
            else:
                place[key] = draw(values)
            break
    return value


@st.composite
def changed_bytes(draw: st.DrawFn, original: bytes) -> bytes:
    """Draw a copy of bytes that is cut short, made longer, or has some bytes changed."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        action = draw(st.sampled_from(["flip", "flip", "flip near the start", "cut", "add", "insert", "drop"]))
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        if action == "flip near the start":
            place %= 200
        if action.startswith("flip") and place < len(content):
            content[place] ^= draw(st.integers(1, 255))
        elif action == "cut":
            del content[place:]
        elif action == "drop":
            del content[place : place + draw(st.integers(1, 64))]
        else:
            more = draw(st.binary(min_size=1, max_size=64))
            content[place:place] = more if action == "insert" else b""
            content += more if action == "add" else b""
    return bytes(content)


# Safetensors files


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the tensors' bytes of a sound file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: str | bytes, tensors: bytes) -> bytes:
    """Make a file of a header, sound or not, and the tensors' bytes."""
    text = header if isinstance(header, bytes) else header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + tensors


def seal(header: dict[str, Any], tensors: bytes, scratch: Path) -> bytes:
    """Give a model file the checksum of what it holds, as anyone can, where it can be read at all."""
    try:
        description = json.loads(header["__metadata__"]["gapssg"])
        description.pop("content_sha256", None)
        scratch.write_bytes(join(json.dumps(header), tensors))
        description["content_sha256"] = _sha256_of_content(read_safetensors(scratch).tensors, description)
        header["__metadata__"]["gapssg"] = json.dumps(description)
    except (GapssgError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return join(json.dumps(header), tensors)


@st.composite
def safetensors_files(draw: st.DrawFn, original: bytes, key: str, scratch: Path) -> bytes:
    """Draw changes of a sound file whose description stands under a key of its metadata."""
    header, tensors = split(original)
    kind = draw(
        st.sampled_from(["bytes", "length", "header", "raw header", "metadata", "facts", "facts", "numbers", "entry"])
    )
    if kind == "bytes":
        return draw(changed_bytes(original))
    if kind == "length":
        length = draw(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 2 * len(original))))
        return struct.pack("<Q", length) + original[8:]
    if kind == "raw header":
        return join(draw(raw_json), draw(st.sampled_from([tensors, b""])))
    if kind == "metadata":
        header["__metadata__"] = draw(st.one_of(values, raw_json.map(lambda text: {key: text})))
        return join(to_json(header), tensors)
    if kind == "facts":
        facts = draw(changed_values(json.loads(header["__metadata__"][key])))
        header["__metadata__"][key] = to_json(facts)
        return seal(header, tensors, scratch)
    if kind == "numbers":
        content = bytearray(tensors)
        pattern = draw(st.sampled_from([b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff" * 8, b"\xff\xff\x7f\x7f", b"\0" * 8]))
        for _ in range(draw(st.integers(1, 5))):
            place = 4 * draw(st.integers(0, max(len(content) // 4 - 2, 0)))
            content[place : place + len(pattern)] = pattern
        return seal(header, bytes(content), scratch)
    names = [name for name in header if name != "__metadata__"]
    if kind == "entry":
        name = draw(st.sampled_from(names))
        field = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        size = st.one_of(st.integers(-1, 20), st.sampled_from([10**6, 10**12, 2**63, 2**64 + 1]))
        drawn = {
            "dtype": st.one_of(st.sampled_from(["F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E5M2"]), values),
            "shape": st.one_of(st.lists(size, max_size=6), values),
            "data_offsets": st.one_of(st.lists(size, min_size=2, max_size=2), values),
        }
        header[name][field] = draw(drawn[field])
        return join(to_json(header), tensors)
    return join(to_json(draw(changed_values(header))), tensors)


def use_model(world: World, content: bytes) -> None:
    path = world.work / "model.safetensors"
    path.write_bytes(content)
    model = load_model(path)
    shape = model.card.input_shape
    assert sum(p.numel() for p in model.module.parameters()) * 4 <= 2 * len(content)
    normalization = Normalization.from_statistics(model.card.mean, model.card.deviation, torch.device("cpu"))
    with torch.no_grad():
        logits = model.module(normalization(torch.full((2, *shape), 0.5)))
        check_finite(logits, "the model")
        score_answers(answers_of(logits, torch.zeros(2, dtype=torch.int64)), model.card.class_names)


# Graphs


sizes = st.one_of(st.integers(-2, 5), st.sampled_from([2**31, 2**40, 2**62, -(2**63)]))
graph_arguments = st.one_of(
    sizes,
    st.lists(sizes, max_size=6),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(
        [None, True, False, "none", "tanh", "ab,bc->ac", {"batch": 2}, {"float": "-inf"}, {"tensor": "tensor_0"}]
    ),
    st.integers(0, 24).map(lambda value: {"value": value}),
    st.lists(st.integers(0, 24).map(lambda value: {"value": value}), max_size=3),
)


@st.composite
def graph_models(draw: st.DrawFn, original: bytes, scratch: Path) -> bytes:
    """Draw changes of the graph in a sound model file: other operators, other arguments, other tensors."""
    header, tensors = split(original)
    facts = json.loads(header["__metadata__"]["gapssg"])
    nodes = facts["graph"]["nodes"]
    kind = draw(st.sampled_from(["any", "argument", "argument", "operator", "operator"]))
    if kind == "any":
        facts["graph"] = draw(changed_values(facts["graph"]))
    for number in draw(st.lists(st.integers(0, len(nodes) - 1), min_size=1, max_size=2)):
        name, arguments, named = nodes[number]
        if kind == "argument":
            place = draw(st.integers(0, len(arguments) - 1))
            nodes[number] = [name, [*arguments[:place], draw(graph_arguments), *arguments[place + 1 :]], named]
        elif kind == "operator":
            rest = draw(st.lists(graph_arguments, max_size=4))
            nodes[number] = [draw(st.sampled_from(sorted(OPERATORS))), [{"value": number}, *rest], named]
    with contextlib.suppress(ValueError):  # of numbers that are not finite
        facts["architecture"] = graph_name(facts["graph"])
    header["__metadata__"]["gapssg"] = to_json(facts)
    return seal(header, tensors, scratch)


@st.composite
def graph_files(draw: st.DrawFn, files: dict[str, bytes]) -> tuple[str, bytes]:
    """Draw changes of an ONNX, TorchScript or torch.export file, in archives also of a part with a sound checksum."""
    kind = draw(st.sampled_from(sorted(files)))
    content = files[kind]
    return kind, draw(changed_bytes(content) if kind == "onnx" else changed_archives(content))


@st.composite
def changed_archives(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw changes of an archive, or of one of its parts with a sound checksum."""
    if draw(st.integers(0, 3)) == 0:
        return draw(changed_bytes(content))
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        parts = {name: old.read(name) for name in old.namelist()}
        name = draw(st.sampled_from([name for name in parts if name.endswith((".py", ".json", ".pkl"))]))
        if name.endswith(".json"):
            parts[name] = to_json(draw(changed_values(json.loads(parts[name])))).encode()
        elif name.endswith("data.pkl") and draw(st.integers(0, 7)) == 0:
            parts[name] = draw(st.sampled_from(PICKLES))
        else:
            parts[name] = draw(changed_bytes(parts[name]))
        for each, part in parts.items():
            new.writestr(each, part)
    return buffer.getvalue()


def use_graph_file(world: World, case: tuple[str, bytes]) -> None:
    path = world.work / "model"
    path.write_bytes(case[1])
    kind = kind_of_graph(path)
    if kind is None:
        raise GapssgError("not a graph")
    with mock.patch.object(graph_file, "_answer", answer_of_a_fork):
        graph = read_graph_file(path, kind, (3, 16, 16))
    assert sum(tensor.numel() for tensor in graph.tensors.values()) <= 4 * len(case[1])
    build_graph(graph.description, graph.tensors, graph.num_classes, graph.input_shape)


def answer_of_a_fork(path: Path, request: child.Request) -> child.Answer:
    """Read the file `path` in a fork of this process, which starts sooner than a new one."""
    said = Path(request.folder) / "said.json"
    return said_in_a_fork(child.Answer, said, path, lambda: child.answer(request))


def said_in_a_fork(kind: type[AnyAnswer], said: Path, path: Path, answer: Callable[[], AnyAnswer]) -> AnyAnswer:
    process = os.fork()
    if process == 0:
        try:
            torch.set_num_threads(1)
            signal.alarm(60)
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            said.write_text(json.dumps(answer()))
        finally:
            os._exit(0)
    _, status = os.waitpid(process, 0)
    assert not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM), "it took too long"
    return answer_in(said.read_text(), kind, path) if said.exists() and said.stat().st_size else kind()


# PyTorch checkpoints

PICKLES = (
    b"\x80\x02cposix\nsystem\nX\n\0\0\0touch evil\x85R.",
    b"\x80\x02" + b"(" * 100_000 + b".",
    b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    b"\x80\x02]" + b"q\0]" + b"(h\0h\0h\0h\0eq\0]" * 60 + b".",  # lists of lists
    b"\x80\x02B\xff\xff\xff\x7f.",
    b"",
)


def _sound_checkpoints() -> list[bytes]:
    found = []
    for is_archive in (True, False):
        buffer = io.BytesIO()
        content = {"model": trained(Mobile).state_dict(), "epoch": 3}
        torch.save(content, buffer, _use_new_zipfile_serialization=is_archive)
        found.append(buffer.getvalue())
    return found


def use_pytorch_checkpoint(world: World, content: bytes) -> None:
    def said(kind: type[checkpoint_child.Answer], arguments: Sequence[str], path: Path) -> checkpoint_child.Answer:
        def answer() -> checkpoint_child.Answer:
            checkpoint_child.bound(path)
            return checkpoint_child.answer(*arguments[1:])

        return said_in_a_fork(kind, Path(arguments[2]).with_name("said.json"), path, answer)

    path = world.work / "model.pth"
    path.write_bytes(content)
    with mock.patch.object(checkpoint_file, "answer_of_child", said):
        read_checkpoint_weights(path)
    assert not Path("evil").exists()


def use_shard(world: World, content: bytes) -> None:
    path = world.work / "shard-0001.safetensors"
    path.write_bytes(content)
    images, targets, _ = read_shard(path, (1, 16, 16), 10)
    assert images.numel() <= len(content)
    assert len(images) == len(targets)


def use_checkpoint(world: World, case: tuple[int, bytes]) -> None:
    run = world.copy_of_run(case[0])
    (run / "checkpoint" / "latest.safetensors").write_bytes(case[1])
    distill(world.settings, run, resume=True)


def checkpoints(world: World) -> st.SearchStrategy[Any]:
    def of_run(number: int) -> st.SearchStrategy[Any]:
        content = (world.runs[number] / "checkpoint" / "latest.safetensors").read_bytes()
        return st.tuples(st.just(number), safetensors_files(content, "facts", world.root / "scratch"))

    return st.integers(0, len(world.runs) - 1).flatmap(of_run)


def shards_of_runs(world: World) -> st.SearchStrategy[Any]:
    content = (world.runs[0] / "pool" / "shard-0001.safetensors").read_bytes()
    return st.tuples(st.integers(0, 2), safetensors_files(content, "gapssg", world.root / "scratch"))


def use_shard_of_run(world: World, case: tuple[int, bytes]) -> None:
    run = world.copy_of_run(case[0])
    (run / "pool" / "shard-0001.safetensors").write_bytes(case[1])
    distill(world.settings, run, resume=True)


# Settings

toml_values = st.sampled_from(
    [
        *(
            "1",
            "-1",
            "0",
            "1e999",
            "nan",
            "inf",
            "9" * 5000,
            "true",
            "''",
            "'x'",
            '"\\u001b[2J[red]"',
            "[]",
            "{}",
            "[[[]]]",
        ),
        *(
            "[" * 5000,
            "[" * 300 + "]" * 300,
            "{a=" * 5000,
            "2020-01-01",
            "'" + "x" * 100_000 + "'",
            '"../../x"',
            "0x" + "f" * 9,
        ),
    ]
)
toml_keys = st.sampled_from(
    [
        *("epochs", "teacher", "method", "method.name", "student.name", "runtime.device", "pool", "seed", "optimizer"),
        *(
            "eval_data.name",
            "eval_data.download",
            "surprise",
            '"\\u001b[2J"',
            ".".join("a" * 5000),
            "a.b.c.d",
            "x" * 50_000,
        ),
        *("epochs.x", "method.generator_steps", "__proto__", "''"),
    ]
)


@st.composite
def settings_files(draw: st.DrawFn, original: str) -> bytes:
    """Draw changes of a sound settings file."""
    if draw(st.integers(0, 3)) == 0:
        return draw(changed_bytes(original.encode()))
    lines = original.splitlines()
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(lines)))
        kind = draw(st.sampled_from(["set", "set", "table", "remove", "replace", "many"]))
        if kind == "set":
            lines.insert(place, f"{draw(toml_keys)} = {draw(toml_values)}")
        elif kind == "table":
            lines.insert(place, draw(st.sampled_from(["[{}]", "[[{}]]"])).format(draw(toml_keys)))
        elif kind == "many":
            lines += [f"key{number} = {number}" for number in range(draw(st.sampled_from([30, 3000, 20_000])))]
        elif place < len(lines) and kind == "remove":
            del lines[place]
        elif place < len(lines):
            lines[place] = f"{lines[place].partition('=')[0]} = {draw(toml_values)}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def use_settings(world: World, content: bytes) -> None:
    run = world.work
    (run / "settings.toml").write_bytes(content)
    loaded = load_settings(DistillSettings, section="distill", config=settings_of_run("distill", run))
    assert "\x1b" not in printable_toml(loaded.to_toml())
    check_same_settings(run, world.settings)


# Run directories

OWN_NAMES = (
    *(".lock", "settings.toml", "events.jsonl", "result.json", "student.safetensors", "best.safetensors", "samples"),
    *("pool", "checkpoint", "snapshots", "checkpoint/latest.safetensors", "pool/shard-0001.safetensors"),
    *(
        "samples/epoch-0001.png",
        "pool/shard-0002.safetensors",
        ".events.jsonl.x.tmp",
        "deep",
        "\x1b[2J",
        "samples/deep",
    ),
)
PLANTED = (
    "link to file",
    "link to folder",
    "link to nothing",
    "link to itself",
    "pipe",
    "folder",
    "deep folder",
    "file",
)


def run_directories(world: World) -> st.SearchStrategy[Any]:
    planted = st.lists(st.tuples(st.sampled_from(OWN_NAMES), st.sampled_from(PLANTED)), min_size=1, max_size=3)
    return st.tuples(st.sampled_from(["overwrite", "resume", "resume"]), planted)


def plant(world: World, path: Path, kind: str) -> None:
    """Put something where a run has a file or a folder of its own."""
    if not path.parent.is_dir() or path.parent.is_symlink():
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if kind.startswith("link"):
        ends = {"file": "file", "folder": "folder", "nothing": "new"}
        end = kind.rpartition(" ")[2]
        path.symlink_to(world.outside / ends[end] if end in ends else path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "file":
        path.write_bytes(b"x")
    else:
        path.mkdir()
        for _ in range(30 if kind == "deep folder" else 0):
            path = path / "d"
            path.mkdir()


def use_run_directory(world: World, case: tuple[str, list[tuple[str, str]]]) -> None:
    run = world.copy_of_run(0)
    for name, kind in case[1]:
        plant(world, run / name, kind)
    if case[0] == "overwrite":
        check_output(run, overwrite=True)
        directory = RunDirectory(run, world.settings, SilentDisplay())
    else:
        check_same_settings(run, world.settings)
        directory = RunDirectory(run, world.settings, SilentDisplay(), resume_from=Written())
    images = torch.zeros(4, 1, 16, 16)
    with directory:
        directory.record(Note(message="here"))
        directory.write_samples(1, 1, images, torch.zeros(4).long(), make_card().class_names)
        directory.write_pool_shard(2, images.byte(), torch.zeros(4).long(), PoolOrigin("gapssg", "0"))
        directory.write_result(make_pretrain_result())
        (directory.folder("checkpoint") / "latest.safetensors").exists()


def _sound_graphs(folder: Path) -> tuple[dict[str, bytes], Path]:
    """Return graphs of all kinds by kind, and a model file with a graph."""
    folder.mkdir(exist_ok=True)
    forms = {"onnx": "onnx-kept", "torchscript": "torchscript-scripted", "torch.export": "torch.export"}
    files = {kind: write(form, trained(Mobile), folder) for kind, form in forms.items()}
    teacher = folder / "teacher.safetensors"
    graph = read(write("torch.export", trained(Transformer), folder))
    card = make_card(
        architecture=graph_name(graph.description),
        graph=graph.description,
        num_classes=graph.num_classes,
        class_names=tuple("abcde"),
        input_shape=(3, 16, 16),
        mean=(0.5,) * 3,
        deviation=(0.25,) * 3,
    )
    save_model(teacher, built(graph), card)
    return {kind: file.read_bytes() for kind, file in files.items()}, teacher


# Image folders


def _sound_images() -> dict[str, bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    encoded = {}
    for extension, name in (
        *(("png", "PNG"), ("jpg", "JPEG"), ("bmp", "BMP"), ("gif", "GIF"), ("webp", "WEBP"), ("tiff", "TIFF")),
        ("ppm", "PPM"),
    ):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format=name)
        encoded[extension] = buffer.getvalue()
    pages, array = io.BytesIO(), io.BytesIO()
    first, *others = [Image.fromarray(pixels[:, :, channel].copy()) for channel in (0, 1, 2, 0, 1)]
    first.save(pages, format="TIFF", save_all=True, append_images=others)
    np.save(array, np.concatenate([pixels, pixels[:, :, :2]], axis=2))
    return {**encoded, "tif": pages.getvalue(), "npy": array.getvalue()}


def png_bomb(width: int, height: int, colour: int, bits: int, rows: int) -> bytes:
    """Make a PNG that says it is of a size, with some rows of zeros compressed."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = bytes(1 + width * bits * (3 if colour == 2 else 1) // 8 if width < 2**20 else 10)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = zlib.compress(row * rows, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def image_folders(world: World) -> st.SearchStrategy[Any]:
    def changed(extension: str) -> st.SearchStrategy[bytes]:
        return changed_bytes(world.images[extension])

    side = st.sampled_from([1, 16, 4000, 5792, 6000, 65_535, 2**31 - 1])
    bomb = st.builds(
        png_bomb, side, side, st.sampled_from([0, 2]), st.sampled_from([1, 8, 16]), st.sampled_from([0, 1, 16, 200])
    )
    content = st.one_of(
        *(changed(extension) for extension in world.images), st.sampled_from(list(world.images)).flatmap(changed), bomb
    )
    name = st.sampled_from(
        ["b.png", "b.jpg", "b.webp", "b.tiff", "b.gif", "b.bmp", "b.eps", "b.npy", "b.pdf", "b.fits", "\x1b[2J.png"]
    )
    link = st.sampled_from(["", "", "", "file", "folder", "itself", "parent", "many"])
    class_name = st.sampled_from(["dog", "\x1b[2J", "[red]", "a\nb", os.fsdecode(b"\xff")])
    return st.tuples(class_name, name, content, link, st.sampled_from([None, 16]), st.sampled_from([None, 1, 3, 5]))


def use_image_folder(world: World, case: tuple[str, str, bytes, str, int | None, int | None]) -> None:
    class_name, name, content, link, image_size, channels = case
    for folder in ("cat", class_name):
        (world.work / "train" / folder).mkdir(parents=True)
        (world.work / "train" / folder / "a.png").write_bytes(world.images["png"])
    place = world.work / "train" / class_name
    (place / name).write_bytes(content)
    if link == "many":
        for level in range(12):
            (place / f"{level}").mkdir()
            for twin in range(4):
                (place / f"{level}" / f"{twin}").symlink_to(place / f"{level + 1}")
    elif link:
        targets = {"file": world.outside / "file", "folder": world.outside / "folder", "parent": world.work / "train"}
        (place / "link.png").symlink_to(targets.get(link, Path("link.png")))
    images = load_split(f"folder:{world.work}", "train", image_size=image_size, channels=channels)
    assert images.images.numel() <= 2**20 or image_size is None


# Finished runs


def finished_runs(world: World) -> st.SearchStrategy[Any]:
    """Draw a file of a finished run and its changed content."""

    def changed(name: str) -> st.SearchStrategy[tuple[str, bytes]]:
        content = (world.finished / name).read_bytes()
        bytes_of = changed_bytes(content)
        if name == "result.json":
            of_values = changed_values(json.loads(content)).map(lambda value: to_json(value).encode())
            bytes_of = st.one_of(of_values, of_values, bytes_of, raw_json.map(lambda text: text.encode()))
        if name == "events.jsonl":
            events = [json.loads(line) for line in content.splitlines()]
            of_events = changed_values(events).map(
                lambda value: "\n".join(map(to_json, value if isinstance(value, list) else [value])).encode()
            )
            bytes_of = st.one_of(of_events, of_events, bytes_of, raw_json.map(lambda text: text.encode()))
        if name == "settings.toml":
            bytes_of = settings_files(content.decode())
        return st.tuples(st.just(name), bytes_of)

    names = ["result.json", "result.json", "events.jsonl", "events.jsonl", "settings.toml", "samples/epoch-0001.png"]
    return st.sampled_from(names).flatmap(changed)


def use_finished_run(world: World, case: tuple[str, bytes]) -> None:
    name, content = case
    run = Path(shutil.copytree(world.finished, world.work / "run"))
    (run / name).write_bytes(content)
    write_report(ReportSettings(runs=(run,)), world.work / "page.html")
    page = (world.work / "page.html").read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page)
    assert len(page) < 2**21, f"a page of {len(page)} characters"
    card = write_card(run).read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(card.split("---\n", 2)[1])["tags"], list)


# The terminal

terminal_texts = st.one_of(
    st.text(max_size=30), st.lists(st.one_of(st.text(max_size=5), st.sampled_from(ESCAPES)), max_size=6).map("".join)
)


def use_console(world: World, names: list[str]) -> None:
    def shown(console: Console) -> None:
        print_evaluation(console, make_evaluation(names[0], names[1], names[2], tuple(names)))
        console.table(names[0], ["class", names[1]], [[name, "1"] for name in names])
        console.say(names[2])
        with console.live() as display:
            display.progress(names[0], 1, 2)
            display.event(Note(message=names[1]))

    with (
        (world.work / "shown").open("w", encoding="utf-8") as screen,
        contextlib.redirect_stdout(screen),
        contextlib.redirect_stderr(screen),
    ):
        shown(Console(Invocation()))
        _report_error(GapssgError(names[0]), Invocation())
    text = (world.work / "shown").read_text(encoding="utf-8")
    steering = {character for character in text if character != "\n" and not character.isprintable()}
    assert not {character for character in steering if ord(character) < 0xA0 or character in "\u202e\u2028\u2029"}
    plain = "".join(character for character in names[1] if character.isascii() and character.isprintable())
    if plain == names[1] and plain and len(plain) < 30 and " " not in plain:
        assert plain in text, "markup was obeyed"


TARGETS: dict[str, Target] = {
    "model file": Target(
        lambda world: safetensors_files(world.teacher.read_bytes(), "gapssg", world.root / "scratch"), use_model
    ),
    "graph in a model file": Target(
        lambda world: graph_models(world.graph_teacher.read_bytes(), world.root / "scratch"), use_model
    ),
    "graph file": Target(lambda world: graph_files(world.graph_files), use_graph_file),
    "PyTorch checkpoint": Target(
        lambda world: st.one_of(changed_archives(world.checkpoints[0]), changed_bytes(world.checkpoints[1])),
        use_pytorch_checkpoint,
    ),
    "pool shard": Target(
        lambda world: safetensors_files(
            (world.root / "shard.safetensors").read_bytes(), "gapssg", world.root / "scratch"
        ),
        use_shard,
    ),
    "checkpoint": Target(checkpoints, use_checkpoint),
    "shard of a run": Target(shards_of_runs, use_shard_of_run),
    "settings": Target(lambda world: settings_files(world.settings.to_toml()), use_settings),
    "run directory": Target(run_directories, use_run_directory),
    "finished run": Target(finished_runs, use_finished_run),
    "image folder": Target(image_folders, use_image_folder),
    "terminal": Target(lambda _: st.lists(terminal_texts, min_size=3, max_size=5), use_console),
}
