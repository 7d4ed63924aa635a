"""Compress a trained image classifier without its training data.

The functions are imported when they are first used, so that `import gapssg` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gapssg._version import __version__

if TYPE_CHECKING:
    from gapssg.audit.audit import audit_model
    from gapssg.audit.settings import AuditSettings
    from gapssg.errors import GapssgError, InputError, RunError
    from gapssg.evaluation.evaluate import evaluate
    from gapssg.evaluation.import_teacher import import_teacher
    from gapssg.evaluation.inspect_model import inspect
    from gapssg.evaluation.live_model import model_from_module
    from gapssg.evaluation.predict_files import predict
    from gapssg.evaluation.settings import (
        ClassifierSettings,
        EvaluateSettings,
        ImportSettings,
        InspectSettings,
        PredictSettings,
        ProposeSettings,
    )
    from gapssg.evaluation.students import propose_students
    from gapssg.export.export import export_model
    from gapssg.export.settings import ExportSettings
    from gapssg.landscape.measure import measure_landscape
    from gapssg.landscape.settings import LandscapeSettings
    from gapssg.models.model_file import load_model
    from gapssg.quality.estimate import estimate_quality
    from gapssg.quality.settings import QualitySettings
    from gapssg.report.card import write_card
    from gapssg.report.page import write_report
    from gapssg.report.push import push_model
    from gapssg.report.settings import ReportSettings
    from gapssg.runs.requests import Requests, Stopped
    from gapssg.runs.results import AuditResult, DistillResult, LandscapeResult, PredictResult, PretrainResult
    from gapssg.settings import load_settings
    from gapssg.training.distill import distill, estimate_distillation
    from gapssg.training.pretrain_teacher import estimate_pretraining, pretrain_teacher
    from gapssg.training.settings import DistillSettings, PretrainSettings

__all__ = [
    "AuditResult",
    "AuditSettings",
    "ClassifierSettings",
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
    "PredictResult",
    "PredictSettings",
    "PretrainResult",
    "PretrainSettings",
    "ProposeSettings",
    "QualitySettings",
    "ReportSettings",
    "Requests",
    "RunError",
    "Stopped",
    "__version__",
    "audit_model",
    "distill",
    "estimate_distillation",
    "estimate_pretraining",
    "estimate_quality",
    "evaluate",
    "export_model",
    "import_teacher",
    "inspect",
    "load_model",
    "load_settings",
    "measure_landscape",
    "model_from_module",
    "predict",
    "pretrain_teacher",
    "propose_students",
    "push_model",
    "write_card",
    "write_report",
]

_HOMES = {
    "audit_model": "gapssg.audit.audit",
    "AuditSettings": "gapssg.audit.settings",
    "distill": "gapssg.training.distill",
    "estimate_distillation": "gapssg.training.distill",
    "estimate_pretraining": "gapssg.training.pretrain_teacher",
    "estimate_quality": "gapssg.quality.estimate",
    "QualitySettings": "gapssg.quality.settings",
    "evaluate": "gapssg.evaluation.evaluate",
    "import_teacher": "gapssg.evaluation.import_teacher",
    "inspect": "gapssg.evaluation.inspect_model",
    "predict": "gapssg.evaluation.predict_files",
    "model_from_module": "gapssg.evaluation.live_model",
    "pretrain_teacher": "gapssg.training.pretrain_teacher",
    "ClassifierSettings": "gapssg.evaluation.settings",
    "DistillSettings": "gapssg.training.settings",
    "EvaluateSettings": "gapssg.evaluation.settings",
    "ImportSettings": "gapssg.evaluation.settings",
    "InspectSettings": "gapssg.evaluation.settings",
    "PredictSettings": "gapssg.evaluation.settings",
    "PretrainSettings": "gapssg.training.settings",
    "ProposeSettings": "gapssg.evaluation.settings",
    "propose_students": "gapssg.evaluation.students",
    "ExportSettings": "gapssg.export.settings",
    "export_model": "gapssg.export.export",
    "LandscapeSettings": "gapssg.landscape.settings",
    "ReportSettings": "gapssg.report.settings",
    "write_card": "gapssg.report.card",
    "write_report": "gapssg.report.page",
    "push_model": "gapssg.report.push",
    "measure_landscape": "gapssg.landscape.measure",
    "GapssgError": "gapssg.errors",
    "InputError": "gapssg.errors",
    "RunError": "gapssg.errors",
    "Requests": "gapssg.runs.requests",
    "Stopped": "gapssg.runs.requests",
    "load_model": "gapssg.models.model_file",
    "load_settings": "gapssg.settings",
    "AuditResult": "gapssg.runs.results",
    "DistillResult": "gapssg.runs.results",
    "LandscapeResult": "gapssg.runs.results",
    "PredictResult": "gapssg.runs.results",
    "PretrainResult": "gapssg.runs.results",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gapssg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
