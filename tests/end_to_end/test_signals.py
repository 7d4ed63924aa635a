"""Signals ask a run for a checkpoint or for its end, end whatever else goes on, and the second leaves at once."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gapssg.cli.signals import listening
from gapssg.runs.requests import Requests, Stopped
from tests.program import gapssg
from tests.run_fixtures import files_of

pytestmark = pytest.mark.slow


@pytest.fixture
def requests() -> Iterator[Requests]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    with listening() as requests:
        yield requests
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_asks_and_the_second_leaves_at_once(requests, number, status, monkeypatch, capfd):
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    requests.attended = True
    os.kill(os.getpid(), number)
    assert requests.stop == number
    assert left == []
    os.kill(os.getpid(), number)
    assert left == [status]
    assert capfd.readouterr().err == "exited at once; --resume continues from the last checkpoint\n"


def test_a_second_hang_up_is_the_same_request(requests, monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail(f"left with {status}"))
    requests.attended = True
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGHUP)
    assert requests.stop == signal.SIGHUP


def test_a_hang_up_is_ignored_where_nohup_has_it_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_no_run_is_there_to_answer_leaves_at_once(requests, number):
    with pytest.raises(Stopped) as stopped:
        os.kill(os.getpid(), number)
    assert stopped.value.signal_number == number


# What a package may do with an exception that is raised in it.
SWALLOWING = {
    "except Exception": "try: wait()\nexcept Exception: pass",
    "another exception": "try: wait()\nexcept BaseException as error: raise ImportError('no such library') from error",
    "a bare except": "try: wait()\nexcept: pass",
    "a destructor": "class Resource:\n    def __del__(self): wait()\nResource()",
    "every exception for a while": "while time.time() < began + 1.5:\n    try: wait()\n    except: pass",
}


@pytest.mark.parametrize(
    ("code", "number", "said"),
    [
        (SWALLOWING["except Exception"], signal.SIGTERM, "terminated"),
        (SWALLOWING["another exception"], signal.SIGHUP, "hung up"),
        (SWALLOWING["a bare except"], signal.SIGINT, "interrupted"),
        (SWALLOWING["a destructor"], signal.SIGTERM, "terminated"),
        (SWALLOWING["every exception for a while"], signal.SIGTERM, "terminated"),
    ],
    ids=SWALLOWING,
)
def test_a_signal_ends_the_program_whatever_a_package_does_with_the_exception(tmp_path: Path, code, number, said):
    """A command imports the package, as others import torch and its backends."""
    wait = "import time\nbegan = time.time()\ndef wait():\n    open('waiting', 'w').close()\n    time.sleep(60)\n"
    (tmp_path / "package.py").write_text(f"{wait}{code}\ntime.sleep(60)\n")
    program = "from gapssg.cli import app; app.app = lambda **_: __import__('package'); app.main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    wait_for((tmp_path / "waiting").exists, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=50)
    assert process.returncode == 128 + number
    assert errors == f"{said}\n"


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_writes_a_checkpoint_in_the_middle_of_an_epoch_stops_and_goes_on(teacher_file: Path, tmp_path: Path):
    command = [sys.executable, "-m", "gapssg", "distill"]
    options = ["--teacher", str(teacher_file), "--student", "wrn10_half", "--epochs", "1", "--checkpoint-every", "9"]
    options += ["--set", "method.generator_steps=30", "--set", "method.synthesis_batch_size=16"]
    options += ["--set", "method.distillation_steps=4"]
    options += ["--set", "batch_size=8", "--device", "cpu"]
    gapssg("distill", *options, "--output", tmp_path / "whole")
    run = tmp_path / "my $run"
    process = subprocess.Popen(
        [*command, *options, "--output", str(run)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for((run / "events.jsonl").exists, process)
    checkpoint = run / "checkpoint" / "latest.safetensors"

    def ask_and_look() -> bool:
        process.send_signal(signal.SIGUSR1)
        return checkpoint.exists()

    wait_for(ask_and_look, process)
    assert not (run / "pool").exists()  # the first synthesis is not over
    process.send_signal(signal.SIGHUP)  # SIGINT stops a run in tests/end_to_end/test_command_line.py
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGHUP
    said, again = errors.strip().split("; continue with: ")
    assert said == "hung up"
    assert shlex.split(again) == ["gapssg", "distill", "--resume", str(run)]
    gapssg(*shlex.split(again)[1:])
    assert files_of(run) == files_of(tmp_path / "whole")
