"""`models --for`: proposes students that are smaller than a teacher, with their measured latency."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn

from gapssg.core.runtime import Runtime
from gapssg.errors import InputError
from gapssg.evaluation.latency import FEWEST_PASSES, measure_latency
from gapssg.evaluation.settings import ProposeSettings
from gapssg.models import MODELS, create_model
from gapssg.models.create import empty_model
from gapssg.models.description import ModelCard, ModelProfile
from gapssg.models.libraries import library_names
from gapssg.models.model_file import LoadedModel, load_model
from gapssg.models.profile import parameters_of, profile_model
from gapssg.models.reference import TIMM, TORCHVISION, library_model
from gapssg.runs.directory import Display, SilentDisplay, run_facts
from gapssg.runs.failures import warn_of_failure
from gapssg.runs.results.common import ModelFile
from gapssg.runs.results.evaluation import Latency
from gapssg.runs.results.models import Proposal, ProposeResult, ProposeTiming

# Small classifiers of several families; those that an installed version does not have are left out.
_SMALL = {
    TORCHVISION: (
        "densenet121 efficientnet_b0 mnasnet0_5 mnasnet1_0 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small "
        "regnet_x_400mf regnet_y_400mf resnet18 resnet34 resnet50 shufflenet_v2_x0_5 shufflenet_v2_x1_0 squeezenet1_1"
    ),
    TIMM: (
        "convnext_atto edgenext_xx_small efficientnet_lite0 fbnetc_100 ghostnet_050 ghostnet_100 lcnet_050 lcnet_100 "
        "mixnet_s mobilenetv3_small_050 mobilenetv4_conv_small mobileone_s0 repvgg_a0 resnet10t resnet14t "
        "semnasnet_050 tinynet_a tinynet_c tinynet_e"
    ),
}
_RELATIVES = 12
_LIKENESS = 0.6  # of names, between 0 and 1: resnet50 has 0.8 with resnet18 and 0.4 with densenet121
_SECONDS_A_MODEL = 0.5


@dataclass(frozen=True)
class _Sized:
    name: str
    profile: ModelProfile


def propose_students(settings: ProposeSettings, *, display: Display | None = None) -> ProposeResult:
    """Propose models with fewer parameters than a teacher and no more multiply-adds.

    Tried are the built-in models, small ones of torchvision and timm, and those of both whose names are most like the
    teacher's, if they can be built for its images and classes. Of each, forward passes of one image are timed, with
    random weights.

    Returns:
        The students, the fastest first; measured times decide on order and choice.

    Raises:
        InputError: The teacher cannot be used.
        RunError: Memory ran out.
    """
    display = display or SilentDisplay()
    deadline = time.perf_counter() + settings.seconds
    runtime = Runtime.from_settings(settings.runtime, seed=0)
    teacher = load_model(settings.teacher, settings.model_factories)
    warn_of_failure(teacher.path, display)
    card = teacher.card
    of_teacher = _latency(teacher.module, card, runtime, deadline)
    smaller, unsized = _smaller_than(teacher, deadline - settings.seconds / 2, display)
    measured: list[Proposal] = []
    unmeasured: list[str] = []
    for number, candidate in enumerate(smaller):
        display.progress("measuring latency", number, len(smaller))
        latency = None
        if time.perf_counter() < deadline:
            module = create_model(candidate.name, num_classes=card.num_classes, input_shape=card.input_shape)
            latency = _latency(module.eval(), card, runtime, deadline)
        if latency is None or latency.passes < FEWEST_PASSES:
            unmeasured.append(candidate.name)
        else:
            measured.append(Proposal(architecture=candidate.name, **dict(candidate.profile), latency=latency))
    measured.sort(key=lambda each: each.latency.median_ms)
    most = float("inf") if settings.max_latency_ms is None else settings.max_latency_ms
    return ProposeResult(
        teacher=ModelFile(**teacher.facts),
        num_classes=card.num_classes,
        input_shape=card.input_shape,
        **dict(teacher.profile),
        max_latency_ms=settings.max_latency_ms,
        students=tuple(each for each in measured if each.latency.median_ms <= most),
        timing=ProposeTiming(
            teacher=of_teacher,
            threads=torch.get_num_threads(),
            is_complete=not unmeasured and not unsized,
            measured=len(measured),
            fastest=measured[0] if measured else None,
            unmeasured=tuple(unmeasured),
            unsized=tuple(unsized),
        ),
        **dict(run_facts(runtime, settings)),
    )


def _smaller_than(teacher: LoadedModel, deadline: float, display: Display) -> tuple[list[_Sized], list[str]]:
    """Return the candidates that are smaller, the fastest first, and those that were not built until the deadline."""
    names = _candidates(teacher.card.architecture)
    smaller: list[_Sized] = []
    unsized: list[str] = []
    for number, name in enumerate(names):
        display.progress("building candidates", number, len(names))
        if time.perf_counter() > deadline:
            unsized = names[number:]
            break
        smaller += _smaller(name, teacher.card, teacher.profile)
    return sorted(smaller, key=lambda each: each.profile.macs), unsized  # the slowest are left out if time runs out


def _candidates(architecture: str) -> list[str]:
    """Return the names of candidates, each once."""
    names = list(MODELS)
    own_library, own_name = library_model(architecture) or (None, architecture)
    for library, small in _SMALL.items():
        if library == TIMM and find_spec(TIMM) is None:
            continue
        known = library_names(library)
        alike = difflib.get_close_matches(own_name, known, _RELATIVES, _LIKENESS) if library == own_library else []
        names += [f"{library}:{name}" for name in (*alike, *small.split()) if name in known]
    return list(dict.fromkeys(names))


def _smaller(name: str, card: ModelCard, teacher: ModelProfile) -> Iterator[_Sized]:
    """Yield the candidate with its size, if it is smaller and can be built for the teacher's images and classes."""
    try:
        module = empty_model(name, num_classes=card.num_classes, input_shape=card.input_shape)
        if parameters_of(module) < teacher.parameters:
            profile = profile_model(module, card.input_shape)
            if profile.macs <= teacher.macs:
                yield _Sized(name, profile)
    except InputError:
        return


def _latency(module: nn.Module, card: ModelCard, runtime: Runtime, deadline: float) -> Latency:
    return measure_latency(runtime.place(module), card.input_shape, runtime, 1, _SECONDS_A_MODEL, deadline)
