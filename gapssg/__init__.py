"""Compress a trained image classifier without its training data.

The functions are imported when they are first used, so that `import gapssg` is instant.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, wraps
from types import FunctionType
from typing import TYPE_CHECKING, Any

from gapssg._version import __version__ as __version__

if TYPE_CHECKING:
    from gapssg.audit.audit import audit_model as audit_model
    from gapssg.audit.settings import AuditSettings as AuditSettings
    from gapssg.errors import GapssgError as GapssgError
    from gapssg.errors import InputError as InputError
    from gapssg.errors import RunError as RunError
    from gapssg.evaluation.evaluate import evaluate as evaluate
    from gapssg.evaluation.import_teacher import import_teacher as import_teacher
    from gapssg.evaluation.inspect_model import inspect as inspect
    from gapssg.evaluation.live_model import model_from_module as model_from_module
    from gapssg.evaluation.predict_files import predict as predict
    from gapssg.evaluation.settings import ClassifierSettings as ClassifierSettings
    from gapssg.evaluation.settings import EvaluateSettings as EvaluateSettings
    from gapssg.evaluation.settings import ImportSettings as ImportSettings
    from gapssg.evaluation.settings import InspectSettings as InspectSettings
    from gapssg.evaluation.settings import PredictSettings as PredictSettings
    from gapssg.evaluation.settings import ProposeSettings as ProposeSettings
    from gapssg.evaluation.students import propose_students as propose_students
    from gapssg.export.export import export_model as export_model
    from gapssg.export.settings import ExportSettings as ExportSettings
    from gapssg.landscape.measure import measure_landscape as measure_landscape
    from gapssg.landscape.settings import LandscapeSettings as LandscapeSettings
    from gapssg.models.model_file import load_model as load_model
    from gapssg.quality.estimate import estimate_quality as estimate_quality
    from gapssg.quality.settings import QualitySettings as QualitySettings
    from gapssg.report.card import write_card as write_card
    from gapssg.report.page import write_report as write_report
    from gapssg.report.push import push_model as push_model
    from gapssg.report.settings import ReportSettings as ReportSettings
    from gapssg.runs.requests import Requests as Requests
    from gapssg.runs.requests import Stopped as Stopped
    from gapssg.runs.results.audit import AuditResult as AuditResult
    from gapssg.runs.results.distillation import DistillResult as DistillResult
    from gapssg.runs.results.evaluation import PredictResult as PredictResult
    from gapssg.runs.results.landscape import LandscapeResult as LandscapeResult
    from gapssg.runs.results.training import PretrainResult as PretrainResult
    from gapssg.settings.load import load_settings as load_settings
    from gapssg.training.distill import distill as distill
    from gapssg.training.distill import estimate_distillation as estimate_distillation
    from gapssg.training.pretrain_teacher import estimate_pretraining as estimate_pretraining
    from gapssg.training.pretrain_teacher import pretrain_teacher as pretrain_teacher
    from gapssg.training.settings import DistillSettings as DistillSettings
    from gapssg.training.settings import PretrainSettings as PretrainSettings

_NAMES = {
    "gapssg.audit.audit": "audit_model",
    "gapssg.audit.settings": "AuditSettings",
    "gapssg.errors": "GapssgError InputError RunError",
    "gapssg.evaluation.evaluate": "evaluate",
    "gapssg.evaluation.import_teacher": "import_teacher",
    "gapssg.evaluation.inspect_model": "inspect",
    "gapssg.evaluation.live_model": "model_from_module",
    "gapssg.evaluation.predict_files": "predict",
    "gapssg.evaluation.settings": "ClassifierSettings EvaluateSettings ImportSettings InspectSettings PredictSettings "
    "ProposeSettings",
    "gapssg.evaluation.students": "propose_students",
    "gapssg.export.export": "export_model",
    "gapssg.export.settings": "ExportSettings",
    "gapssg.landscape.measure": "measure_landscape",
    "gapssg.landscape.settings": "LandscapeSettings",
    "gapssg.models.model_file": "load_model",
    "gapssg.quality.estimate": "estimate_quality",
    "gapssg.quality.settings": "QualitySettings",
    "gapssg.report.card": "write_card",
    "gapssg.report.page": "write_report",
    "gapssg.report.push": "push_model",
    "gapssg.report.settings": "ReportSettings",
    "gapssg.runs.requests": "Requests Stopped",
    "gapssg.runs.results.audit": "AuditResult",
    "gapssg.runs.results.distillation": "DistillResult",
    "gapssg.runs.results.evaluation": "PredictResult",
    "gapssg.runs.results.landscape": "LandscapeResult",
    "gapssg.runs.results.training": "PretrainResult",
    "gapssg.settings.load": "load_settings",
    "gapssg.training.distill": "distill estimate_distillation",
    "gapssg.training.pretrain_teacher": "estimate_pretraining pretrain_teacher",
    "gapssg.training.settings": "DistillSettings PretrainSettings",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gapssg' has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    return _checked(found) if isinstance(found, FunctionType) and "settings" in found.__annotations__ else found


@cache
def _checked(function: FunctionType) -> Callable[..., Any]:
    """Return a function that raises `TypeError` if its `settings` are not of the class that its signature names."""
    wanted = function.__globals__[function.__annotations__["settings"]]

    @wraps(function)
    def checked(*arguments: Any, **named: Any) -> Any:
        given = {**dict(zip(function.__annotations__, arguments, strict=False)), **named}
        if "settings" in given and not isinstance(given["settings"], wanted):
            kinds = f"{wanted.__name__}, not {type(given['settings']).__name__}"
            raise TypeError(f"{function.__name__} takes {kinds}; construct them with gapssg.{wanted.__name__}(...)")
        return function(*arguments, **named)

    checked.__module__ = __name__  # where pickle finds it
    return checked
