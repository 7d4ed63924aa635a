"""Makes one run of a table in this process."""

from __future__ import annotations

import gc
import sys
import traceback
from functools import partial
from typing import Any

import torch

from gapssg.errors import GapssgError, InputError, Taken
from gapssg.files import is_file
from gapssg.runs.checkpoint import has_checkpoint
from gapssg.runs.requests import Requests
from gapssg.runs.results.distillation import DistillResult
from gapssg.runs.results.training import PretrainResult
from gapssg.safe_paths import inside
from gapssg.settings.load import SETTINGS, load_settings
from gapssg.table.ledger import Failure
from gapssg.table.place import CellDisplay, Ending
from gapssg.table.plan import Task
from gapssg.table.rows import settings_to_resume
from gapssg.training.distill import distill
from gapssg.training.pretrain_teacher import pretrain_teacher
from gapssg.training.settings import DistillSettings, PretrainSettings


def make_run(task: Task, display: CellDisplay, requests: Requests) -> Ending:
    """Start or resume a run here; only a request ends it early, by `Stopped`, and the run can be resumed."""
    try:
        result = _start_or_resume(task, display, requests)
    except Taken as error:
        return Ending(holder=error.holder)
    except Exception as error:  # the other runs are made nevertheless
        return Ending(failure=_failure(task, error))
    finally:
        _release()
    assert result.model.top1 is not None  # a table has evaluation data
    return Ending(top1=result.model.top1, seconds=result.timing.total)


def _failure(task: Task, error: Exception) -> Failure:
    sentence, trace = str(error).split("\n")[0], None
    if not isinstance(error, GapssgError):
        sentence = f"{type(error).__name__}: {sentence}"
        trace = "".join(traceback.format_exception(error))
    return Failure(seed=task.settings.seed, message=sentence, traceback=trace)


def _start_or_resume(task: Task, display: CellDisplay, requests: Requests) -> DistillResult | PretrainResult:
    """Make a run; one that has a checkpoint is never restarted."""
    run = partial(_run, task, display, requests)
    if not is_file(inside(task.run) / SETTINGS):
        return run(task.settings)
    if not has_checkpoint(task.run):
        display.say("restarting: no checkpoint found")
        return run(task.settings, overwrite=True)
    try:
        started_with = load_settings(type(task.settings), section="-", config=task.run / SETTINGS)
        return run(settings_to_resume(task.settings, started_with), resume=True)
    except Taken:
        raise
    except InputError as error:
        sentence = str(error).split("\n")[0]
        raise InputError(f"{sentence}; the run is kept; to restart it, remove {task.run}") from error


def _run(
    task: Task,
    display: CellDisplay,
    requests: Requests,
    settings: PretrainSettings | DistillSettings,
    resume: bool = False,
    overwrite: bool = False,
) -> DistillResult | PretrainResult:
    common: dict[str, Any] = {"overwrite": overwrite, "resume": resume, "display": display, "requests": requests}
    if isinstance(settings, DistillSettings):
        return distill(settings, task.run, **common)
    return pretrain_teacher(settings, task.run, **common)


def _release() -> None:
    """Free the memory of a run and its compiled steps, whose number torch limits."""
    if "torch._dynamo" in sys.modules:  # importing it takes seconds
        torch.compiler.reset()
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
