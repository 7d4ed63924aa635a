"""Data-free methods: one file each, the losses they share, and the sample pool. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, get_args

from pydantic import Field

from gapssg.synthesis.base import SynthesisSettings
from gapssg.synthesis.cmi import CMISettings
from gapssg.synthesis.dafl import DAFLSettings
from gapssg.synthesis.deepinversion import DeepInversionSettings
from gapssg.synthesis.dfad import DFADSettings
from gapssg.synthesis.dfq import DFQSettings
from gapssg.synthesis.fast import FastSettings
from gapssg.synthesis.gapssg import GapSSGSettings
from gapssg.synthesis.gapssg_fast import GapSSGFastSettings
from gapssg.synthesis.mad import MADSettings
from gapssg.synthesis.nayer import NAYERSettings
from gapssg.synthesis.noise import NoiseSettings
from gapssg.synthesis.zskt import ZSKTSettings

MethodSettings = Annotated[
    GapSSGFastSettings
    | GapSSGSettings
    | DAFLSettings
    | ZSKTSettings
    | DFADSettings
    | DFQSettings
    | DeepInversionSettings
    | CMISettings
    | FastSettings
    | MADSettings
    | NAYERSettings
    | NoiseSettings,
    Field(discriminator="name"),
]


def method_classes() -> tuple[type[SynthesisSettings], ...]:
    """Return the settings class of every method."""
    return get_args(get_args(MethodSettings)[0])


_PUBLISHED_OPTIMIZER: Mapping[str, float | str] = {
    "optimizer.algorithm": "sgd",
    "optimizer.nesterov": False,
    "optimizer.schedule": "cosine",
    "optimizer.weight_decay": 1e-4,
}


def published_settings(method: object, teacher: str | None) -> dict[str, float | str]:
    """Return the published run settings of a method, and its own settings that depend on the teacher's architecture.

    They are values by dotted key of the settings of `distill`. A method without known run settings takes those of
    GapSSG; this project's own methods and unknown names take none.
    """
    for settings in method_classes():
        if settings.model_fields["name"].default == method and not settings.is_own:
            return {
                **_PUBLISHED_OPTIMIZER,
                **(settings.published or GapSSGSettings.published),
                **settings.published_for_teacher.get(teacher or "", {}),
            }
    return {}


def unknown_run_settings(method: str, pair: str) -> str | None:
    """Return which published run settings of a method are not known, and what replaces them; None if they are known.

    `pair` is data, teacher and student, joined by hyphens. Of this project's own method, none are published.
    """
    for settings in method_classes():
        if settings.model_fields["name"].default == method and not settings.is_own:
            what = f"published epochs, batch size and learning rate of {method} not known"
            if not settings.published:
                return f"{what}: those of gapssg"
            if settings.published_pair not in (None, pair):
                return f"{what} for this pair: those of {settings.published_pair}"
    return None


def departures_of(method: str, teacher: str) -> tuple[str, ...]:
    """Return how a method departs from its publication for a teacher architecture, one phrase each."""
    for settings in method_classes():
        if settings.model_fields["name"].default == method:
            return (*settings.departs, *settings.departs_for_teacher.get(teacher, ()))
    return ()
