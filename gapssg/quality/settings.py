"""The settings of `estimate`. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from gapssg.models.settings import WithFactories
from gapssg.settings.base import UserPath
from gapssg.settings.parts import RuntimeSettings


class QualitySettings(WithFactories):
    """The prediction of how a student does on real images, without any."""

    student: UserPath
    """A finished run of distill, or a model file; the file of the student in a run stands for the run."""
    teacher: UserPath | None = None
    """The model file of its teacher; by default the one that the run names."""
    pool: UserPath | None = None
    """Run whose sample pool shows which classes the student has; by default the one that it learned from, which is used
    for probe images, too."""
    teacher_top1: float | None = Field(default=None, ge=0, le=1)
    """Top-1 accuracy of the teacher on real images, from 0 to 1, if known: gives an interval of the student's."""
    runtime: RuntimeSettings = RuntimeSettings()
    """Device and precision."""
