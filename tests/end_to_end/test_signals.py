"""Signals ask a run for a checkpoint or for its end, and the second leaves at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gapssg.cli.signals import listen
from gapssg.engine.requests import Requests, Stopped
from tests.runs import files_of

pytestmark = pytest.mark.slow


@pytest.fixture
def requests() -> Iterator[Requests]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield listen()
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


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
    assert capfd.readouterr().err == "left at once; --resume continues from the last checkpoint\n"


def test_a_signal_while_no_run_is_there_to_answer_leaves_at_once(requests):
    with pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGTERM)


def test_sigusr1_asks_for_a_checkpoint_and_not_for_the_end(requests):
    os.kill(os.getpid(), signal.SIGUSR1)
    assert not requests.checkpoint
    requests.attended = True
    os.kill(os.getpid(), signal.SIGUSR1)
    assert requests.checkpoint
    assert requests.stop is None


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_writes_a_checkpoint_in_the_middle_of_an_epoch_stops_and_goes_on(teacher_file: Path, tmp_path: Path):
    command = [sys.executable, "-m", "gapssg", "distill"]
    options = ["--teacher", str(teacher_file), "--student", "wrn16_1", "--epochs", "1", "--checkpoint-every", "9"]
    options += ["--set", "method.generator_steps=30", "--set", "method.synthesis_batch_size=16"]
    options += ["--set", "method.distillation_steps=4"]
    options += ["--set", "batch_size=8", "--device", "cpu"]
    subprocess.run([*command, *options, "--output", str(tmp_path / "whole")], check=True, capture_output=True)
    run = tmp_path / "run"
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
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert errors.strip() == f"terminated; continue with: gapssg distill --resume {run}"
    subprocess.run([*command, "--resume", str(run)], check=True, capture_output=True)
    assert files_of(run) == files_of(tmp_path / "whole")
