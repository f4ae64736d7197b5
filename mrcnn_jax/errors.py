"""Errors with one-sentence messages that need no traceback. The command line maps them to exit statuses (``cli.exit_codes``)."""


class InputError(ValueError):
    """Invalid input: a file, a field or an id. The message names it and says what is allowed."""


class TrainingError(RuntimeError):
    """A run that cannot continue, and would fail again if restarted. The message says why and what to change."""


class Interrupted(RuntimeError):
    """A run that was stopped from outside; the same command resumes it."""


class HostLostError(Interrupted):
    """Another process of the run no longer responds."""
