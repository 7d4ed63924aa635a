"""Commands open nothing outside an untrusted directory, do not hang, and report errors in one sentence.

Every file and folder of a run, a landscape and a table is replaced in turn. What a command opens is seen by an audit
hook; that a secret outside was opened, by whatever code, is seen by the system's own notification.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from gapssg import DistillSettings, InputError, distill, measure_landscape
from gapssg.files import write_atomically
from gapssg.landscape.settings import LandscapeSettings
from gapssg.runs.directory import SilentDisplay, encode_png
from gapssg.table.plan import plan_tasks
from gapssg.table.run import run_table
from gapssg.table.settings import TableSettings
from tests.crash_points import in_small
from tests.program import gapssg
from tests.run_fixtures import TINY
from tests.tiny import TINY_NOISE, write_tiny_teacher

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="files are watched as Linux does it"),
]

_MOST_SECONDS = 300
_opened: list[tuple[Any, ...]] = []


def _remember(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        _opened.append(arguments)


class Case(NamedTuple):
    """A command, with an untrusted directory for `{}` and an output for `[]`."""

    directory: str
    arguments: str


DEVICE = "--device cpu --precision fp32"
DISTILL = f"distill --teacher {{teacher}} --student tiny --method noise --epochs 2 {DEVICE}"
LANDSCAPE = f"landscape {{}} --data pool --teacher {{teacher}} --grid 3 --no-curvature {DEVICE}"
TABLE = "table {} --rows digits --methods noise --seeds 1 --budget smoke --no-scratch --device cpu"
CASES = {
    "distill --resume": Case("started", "distill --resume {}"),
    "distill --overwrite": Case("started", f"{DISTILL} --output {{}} --overwrite"),
    "distill --pool": Case("finished", f"{DISTILL} --pool {{}} --output []"),
    "report": Case("finished", "report {} --output [].html"),
    "card": Case("finished", "card {}"),
    "export": Case("finished", "export {} --to torchscript --output []"),
    "landscape": Case("finished", f"{LANDSCAPE} --output []"),
    "landscape --snapshots": Case("finished", f"{LANDSCAPE} --snapshots --output []"),
    "landscape --resume": Case("landscape", "landscape --resume {}"),
    "report of a landscape": Case("landscape", "report {} --output [].html"),
    "table": Case("table", f"{TABLE} --set epochs=1 --set-pretrain epochs=1"),
    "table --show": Case("table", "table {} --show"),
}


class _Interrupting(SilentDisplay):
    def progress(self, task: str, done: int, total: int) -> None:
        if task.startswith("epoch 2"):
            raise KeyboardInterrupt


def _draw(surfaces: dict[str, Any], folder: Path, **_: object) -> list[Path]:
    for name in surfaces:
        write_atomically(folder / f"{name}-contour.png", encode_png(Image.new("L", (4, 4))))
    return []


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Directories as others may have made them, and a secret outside of them."""
    sys.addaudithook(_remember)
    root = tmp_path_factory.mktemp("others")
    with in_small(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("gapssg.landscape.measure.draw", _draw)
        teacher = write_tiny_teacher(root / "teacher.safetensors")
        settings = DistillSettings.model_validate(
            {**TINY, **TINY_NOISE, "teacher": teacher, "epochs": 2, "snapshot_every": 1}
        )
        distill(settings, root / "finished")
        with pytest.raises(KeyboardInterrupt):
            distill(settings, root / "started", display=_Interrupting())
        around = {"models": [root / "finished"], "data": {"name": "pool"}, "grid": 3, "teacher": teacher}
        measure_landscape(
            LandscapeSettings.model_validate(
                {**around, "curvature": {"enabled": False}, "runtime": TINY_NOISE["runtime"]}
            ),
            root / "landscape",
        )
        table = {"rows": ["digits"], "methods": ["noise"], "seeds": 1, "budget": "smoke", "scratch": False}
        changes = {"changes": ["epochs=1"], "pretrain_changes": ["epochs=1"], "runtime": {"device": "cpu"}}
        run_table(plan_tasks(TableSettings.model_validate({**table, **changes}), root / "table"), root / "table")
        (root / "outside" / "folder").mkdir(parents=True)
        shutil.copy(teacher, root / "outside" / "secret")
        yield root


@contextmanager
def watched(path: Path) -> Iterator[list[int]]:
    """Collect the masks of what happens to a file until the block ends: opened, read, changed."""
    library = ctypes.CDLL(None, use_errno=True)
    handle = library.inotify_init1(os.O_NONBLOCK)
    found: list[int] = []
    try:
        assert library.inotify_add_watch(handle, os.fsencode(path), 0xFFF & ~0x10 & ~0x8) >= 0  # all but being closed
        yield found
        try:
            while content := os.read(handle, 4096):
                found += [struct.unpack_from("iIII", content)[1]]
        except BlockingIOError:
            pass
    finally:
        os.close(handle)


def use(world: Path, work: Path, case: Case) -> bool:
    """Run a command on the directory; check that nothing outside was opened, and tell whether it was refused."""
    words = case.arguments.replace("{teacher}", str(world / "teacher.safetensors")).replace("{}", str(work))
    output = work.parent / "written"
    shutil.rmtree(output, ignore_errors=True)
    output.unlink(missing_ok=True)
    output.with_suffix(".html").unlink(missing_ok=True)
    before = sorted((world / "outside").rglob("*"))
    with watched(world / "outside" / "secret") as events, watched(world / "outside" / "folder") as entered:
        signal.alarm(_MOST_SECONDS)
        try:
            finished = gapssg(*words.replace("[]", str(output)).split(), status=(0, 2))
        finally:
            signal.alarm(0)
    assert not events, "the secret was opened"
    assert not entered, "the folder outside was opened"
    assert sorted((world / "outside").rglob("*")) == before
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == (finished.status == 2) and "Traceback" not in finished.stderr, finished.stderr
    return finished.status == 2


def opened_in(work: Path) -> set[str]:
    """Return the names that were opened in the directory, after checking that it was through no link."""
    names = {path.name for path in work.rglob("*")}
    found = set()
    for path, _, flags in _opened:
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        assert not text.startswith(f"{work}/"), f"{text} is opened by its whole path, on which there may be links"
        if text in names:
            assert flags & os.O_NOFOLLOW, f"{text} is opened through links"
            found.add(text)
    return found


def replace(world: Path, path: Path, kind: str) -> None:
    """Put a link to a secret, a pipe or a link to a device in the place of a file or folder."""
    is_folder = path.is_dir()
    if is_folder:
        shutil.rmtree(path)
    else:
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(world / "outside" / ("folder" if is_folder else "secret"))


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("command", CASES)
def test_nothing_outside_an_untrusted_directory_is_opened(world: Path, tmp_path: Path, command: str, kind: str):
    case, work = CASES[command], tmp_path / "work"
    shutil.copytree(world / case.directory, work)
    _opened.clear()
    assert not use(world, work, case)
    names = opened_in(work)
    layout = sorted(path.relative_to(world / case.directory) for path in (world / case.directory).rglob("*"))
    refused = set()
    for name in layout:
        if name.name in names:
            shutil.rmtree(work)
            shutil.copytree(world / case.directory, work)
            replace(world, work / name, kind)
            if use(world, work, case):
                refused.add(name.name)
    # Where only the final weights are used, a result that cannot be read is a warning.
    used = {"pool"} if command in ("export", "landscape") else {"pool", "result.json"}
    assert refused >= {"overwrite": {".lock"}, "card": {"result.json"}}.get(command, names & used)
    # All entries that the command does not use, at once.
    shutil.rmtree(work)
    shutil.copytree(world / case.directory, work)
    for name in layout:
        if name.name not in names and not (work / name).is_dir():
            replace(world, work / name, "device" if kind == "pipe" else kind)
    use(world, work, case)


def test_links_in_an_untrusted_directory_are_refused_in_python_too(world: Path, tmp_path: Path):
    shutil.copytree(world / "started", tmp_path / "run")
    replace(world, tmp_path / "run" / "checkpoint", "link")
    settings = DistillSettings.model_validate({**TINY, **TINY_NOISE, "teacher": world / "teacher.safetensors"})
    with pytest.raises(InputError, match=r"checkpoint is a symbolic link where a"):
        distill(settings, tmp_path / "run", resume=True)
