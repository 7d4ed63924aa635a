"""Data-free methods: one file each, the losses they share, and the sample pool. Imports no torch."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from gapssg.synthesis.base import EpochPlan, SynthesisContext, SynthesisSettings, Synthesizer
from gapssg.synthesis.gapssg import GapSSGSettings
from gapssg.synthesis.noise import NoiseSettings

MethodSettings = Annotated[GapSSGSettings | NoiseSettings, Field(discriminator="name")]


def method_classes() -> tuple[type[SynthesisSettings], ...]:
    """Return the settings class of every method."""
    return get_args(get_args(MethodSettings)[0])


__all__ = [
    "EpochPlan",
    "GapSSGSettings",
    "MethodSettings",
    "NoiseSettings",
    "SynthesisContext",
    "SynthesisSettings",
    "Synthesizer",
    "method_classes",
]
