"""Reads the teacher of a student."""

from __future__ import annotations

from pathlib import Path

from gapssg.errors import InputError
from gapssg.models.hub import local_file
from gapssg.models.model_file import LoadedModel, load_model


def read_teacher(
    student: LoadedModel, given: Path | None, recorded: Path | None, factories: tuple[str, ...], what: str
) -> LoadedModel:
    """Read the teacher of a student: the file given or, without one, that which its run recorded.

    Raises `InputError` if it cannot be read (`what` needs it), or is not the teacher of the student.
    """
    named = given or recorded
    if named is None:
        raise InputError(f"{student.path} does not name its teacher's file; add --teacher FILE")
    try:
        teacher = load_model(named if given else local_file(named, fetch=False), factories)
    except InputError as error:
        raise InputError(f"{what} needs the teacher of {student.path}, which --teacher may name: {error}") from error
    check_teacher(student, teacher)
    return teacher


def check_teacher(student: LoadedModel, teacher: LoadedModel) -> None:
    """Raise `InputError` if a student was distilled from another teacher."""
    if student.card.provenance.teacher_sha256 not in (None, teacher.sha256):
        raise InputError(
            f"{teacher.path} is not the teacher of {student.path} (its SHA-256 differs); "
            "give that teacher with --teacher"
        )
