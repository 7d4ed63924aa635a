"""The two kinds of failure that a user may see, each one sentence with a hint."""


class GapssgError(Exception):
    """Base class of every error that is shown to the user as a sentence.

    Attributes:
        exit_status: Exit status of the command that ends with this error.
    """

    exit_status = 1


class InputError(GapssgError):
    """What was given cannot be used: a file, a name, a setting. Nothing has been written."""

    exit_status = 2


class RunError(GapssgError):
    """Something that was sound when the run began failed while it ran."""
