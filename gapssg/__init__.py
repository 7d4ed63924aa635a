"""Compress a trained image classifier without its training data.

The functions are imported when they are first used, so that `import gapssg` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gapssg._version import __version__

if TYPE_CHECKING:
    from gapssg.engine.distill import distill, estimate_distillation
    from gapssg.engine.evaluate import evaluate
    from gapssg.engine.import_teacher import import_teacher
    from gapssg.engine.inspection import inspect
    from gapssg.engine.pretrain import estimate_pretraining, pretrain_teacher
    from gapssg.engine.requests import Requests, Stopped
    from gapssg.engine.settings import (
        DistillSettings,
        EvaluateSettings,
        ImportSettings,
        InspectSettings,
        PretrainSettings,
    )
    from gapssg.errors import GapssgError, InputError, RunError
    from gapssg.export.export import export_model
    from gapssg.export.settings import ExportSettings
    from gapssg.landscape.measure import measure_landscape
    from gapssg.landscape.settings import LandscapeSettings
    from gapssg.models.model_file import load_model
    from gapssg.report.card import write_card
    from gapssg.report.page import write_report
    from gapssg.report.settings import ReportSettings
    from gapssg.runs.results import DistillResult, LandscapeResult, PretrainResult
    from gapssg.settings import load_settings

__all__ = [
    "DistillResult",
    "DistillSettings",
    "EvaluateSettings",
    "ExportSettings",
    "GapssgError",
    "ImportSettings",
    "InputError",
    "InspectSettings",
    "LandscapeResult",
    "LandscapeSettings",
    "PretrainResult",
    "PretrainSettings",
    "ReportSettings",
    "Requests",
    "RunError",
    "Stopped",
    "__version__",
    "distill",
    "estimate_distillation",
    "estimate_pretraining",
    "evaluate",
    "export_model",
    "import_teacher",
    "inspect",
    "load_model",
    "load_settings",
    "measure_landscape",
    "pretrain_teacher",
    "write_card",
    "write_report",
]

_HOMES = {
    "distill": "gapssg.engine.distill",
    "estimate_distillation": "gapssg.engine.distill",
    "estimate_pretraining": "gapssg.engine.pretrain",
    "evaluate": "gapssg.engine.evaluate",
    "import_teacher": "gapssg.engine.import_teacher",
    "inspect": "gapssg.engine.inspection",
    "pretrain_teacher": "gapssg.engine.pretrain",
    "DistillSettings": "gapssg.engine.settings",
    "EvaluateSettings": "gapssg.engine.settings",
    "ImportSettings": "gapssg.engine.settings",
    "InspectSettings": "gapssg.engine.settings",
    "PretrainSettings": "gapssg.engine.settings",
    "ExportSettings": "gapssg.export.settings",
    "export_model": "gapssg.export.export",
    "LandscapeSettings": "gapssg.landscape.settings",
    "ReportSettings": "gapssg.report.settings",
    "write_card": "gapssg.report.card",
    "write_report": "gapssg.report.page",
    "measure_landscape": "gapssg.landscape.measure",
    "GapssgError": "gapssg.errors",
    "InputError": "gapssg.errors",
    "RunError": "gapssg.errors",
    "Requests": "gapssg.engine.requests",
    "Stopped": "gapssg.engine.requests",
    "load_model": "gapssg.models.model_file",
    "load_settings": "gapssg.settings",
    "DistillResult": "gapssg.runs.results",
    "LandscapeResult": "gapssg.runs.results",
    "PretrainResult": "gapssg.runs.results",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gapssg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
