"""Several processes of one command: signals, the death of one, bad input of one, and torchrun itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gapssg.cli.processes import are_several, check_command
from gapssg.errors import InputError
from tests.program import gapssg
from tests.run_fixtures import events
from tests.several import start

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

METHOD = ["--set", "method.generator_steps=100", "--set", "method.synthesis_batch_size=16"]
METHOD += ["--set", "method.distillation_steps=2", "--set", "batch_size=8", "--epochs", "1"]
SECONDS_TO_END = 30
CONTINUE = "--resume continues a run from its last checkpoint"


def command(teacher: Path, run: Path) -> list[object]:
    """Return a run whose synthesis takes long enough to be interrupted."""
    where = ["--output", run, "--device", "cpu", "--precision", "fp32"]
    return ["distill", "--teacher", teacher, "--student", "wrn10_half", *METHOD, *where]


def wait_for(condition: Callable[[], bool], processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert all(each.poll() is None for each in processes), [each.communicate() for each in processes]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def in_the_middle_of_a_run(teacher: Path, run: Path) -> list[subprocess.Popen[str]]:
    """Start two processes, and wait for a checkpoint that one of them was asked for."""
    processes = start(2, *command(teacher, run), module="gapssg")
    wait_for((run / "events.jsonl").exists, processes)

    def ask_and_look() -> bool:
        processes[1].send_signal(signal.SIGUSR1)
        return (run / "checkpoint" / "latest.safetensors").exists()

    wait_for(ask_and_look, processes)
    return processes


def test_a_signal_to_one_process_stops_all_after_a_checkpoint_that_one_process_continues(
    teacher_file: Path, tmp_path: Path
):
    run = tmp_path / "run"
    processes = in_the_middle_of_a_run(teacher_file, run)
    before = (run / "checkpoint" / "latest.safetensors").read_bytes()
    processes[1].send_signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):  # longer than between two looks whether it is there
        processes[0].wait(timeout=6)
    processes[1].send_signal(signal.SIGCONT)
    processes[1].send_signal(signal.SIGTERM)
    (shown, said), silent = (each.communicate(timeout=120) for each in processes)
    assert [each.returncode for each in processes] == [143, 143]
    assert said == f"terminated; continue with: gapssg distill --resume {run}\n"
    assert ", 2 processes\n" in shown
    assert silent == ("", "")
    assert (run / "checkpoint" / "latest.safetensors").read_bytes() != before
    gapssg("distill", "--resume", run)
    assert [event["event"] for event in events(run)] == ["start", "epoch", "end"]


def test_the_death_of_a_process_ends_the_other_and_the_checkpoint_is_intact(teacher_file: Path, tmp_path: Path):
    run = tmp_path / "run"
    processes = in_the_middle_of_a_run(teacher_file, run)
    processes[1].kill()
    _, said = processes[0].communicate(timeout=SECONDS_TO_END)
    assert processes[0].returncode == 1
    assert said == f"error: rank 1 of 2 has ended or does not answer; {CONTINUE}\n"
    processes[1].communicate()
    gapssg("distill", "--resume", run)
    assert (run / "student.safetensors").exists()


def test_the_death_of_a_process_that_prepares_ends_the_others(tmp_path: Path):
    processes = start(3, tmp_path, "prepare")
    wait_for(lambda: len(list(tmp_path.glob("prepares-*"))) == 3, processes)
    processes[2].send_signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):  # one that is stopped is not dead
        processes[0].wait(timeout=2)
    processes[1].send_signal(signal.SIGSTOP)
    processes[2].kill()
    with pytest.raises(subprocess.TimeoutExpired):  # the others must be able to read why it ends
        processes[0].wait(timeout=2)
    processes[1].send_signal(signal.SIGCONT)
    first, second = (each.communicate(timeout=SECONDS_TO_END)[1].splitlines()[-1] for each in processes[:2])
    sentence = f"rank 2 of 3 has ended or does not answer; {CONTINUE}"
    assert first.endswith(f"RunError: {sentence}")
    assert second.endswith(f"RunError: rank 0: {sentence}")
    processes[2].communicate()


def test_the_death_of_the_first_process_is_told_by_the_second(teacher_file: Path, tmp_path: Path):
    processes = in_the_middle_of_a_run(teacher_file, tmp_path / "run")
    processes[0].kill()
    _, said = processes[1].communicate(timeout=SECONDS_TO_END)
    assert processes[1].returncode == 1
    assert said == f"error: rank 0 of 2 has ended or does not answer; {CONTINUE}\n"
    processes[0].communicate()


def test_bad_input_of_one_process_is_one_sentence_of_the_first_and_nothing_is_written(
    teacher_file: Path, tmp_path: Path
):
    run = tmp_path / "run"
    good, bad = command(teacher_file, run), command(tmp_path / "none.safetensors", run)
    processes = start(2, *good, module="gapssg", of_the_last=bad)
    (shown, said), silent = (each.communicate(timeout=120) for each in processes)
    assert [each.returncode for each in processes] == [2, 2]
    assert said.startswith("error: rank 1: ") and said.count("\n") == 1
    assert str(tmp_path / "none.safetensors") in said
    assert (shown, silent) == ("", ("", ""))
    assert not run.exists()


def test_torchrun_runs_a_command_once(teacher_file: Path, tmp_path: Path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gapssg"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    options = [*command(teacher_file, tmp_path / "run"), "--set", "method.generator_steps=3"]
    found = subprocess.run(
        [*torchrun, *map(str, options)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("distilling wrn10_half into wrn10_half") == 1
    assert (tmp_path / "run" / "result.json").exists()


def test_what_the_guide_says_runs(teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    guide = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    commands = re.findall(r"^    torchrun .* -m gapssg (.*)$", guide.replace("\\\n", " "), re.MULTILINE)
    assert len(commands) == 3
    for arguments in commands:
        gapssg(*arguments.split(), "--dry-run")
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    short = {"method": {"name": "noise"}, "epochs": 1, "runtime": {"device": "cpu"}}
    place = '"student": {"name": "wrn16_1"}'
    assert place in code
    (tmp_path / "guide.py").write_text(code.replace(place, f"{place}, **{short}"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for process in start(2, module="guide"):
        assert process.communicate(timeout=240) == ("", "")
        assert process.returncode == 0
    assert (tmp_path / "run" / "student.safetensors").exists()


def test_only_some_commands_are_shared(monkeypatch: pytest.MonkeyPatch):
    several = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    assert are_several(several)
    assert not are_several({**several, "WORLD_SIZE": "1"})
    assert not are_several({})
    monkeypatch.setattr("gapssg.cli.processes.are_several", lambda: True)
    with pytest.raises(InputError, match="gapssg table runs in one process; start it without torchrun"):
        check_command("table")
    check_command("distill")
