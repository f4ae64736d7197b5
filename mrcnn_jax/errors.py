"""What ends a program with one sentence and an exit status of its own, without a traceback."""


class InputError(ValueError):
    """Something given is wrong: a file, a field, an id. The message is one sentence that names it and says what is allowed."""

    status = 2


class RunFailed(RuntimeError):
    """A run cannot go on, and would not if it were just started again. The message says why and what to change."""

    status = 1


class StartAgain(RuntimeError):
    """A run was cut short through no fault of its own: the same command goes on where it was. Schedulers can tell by the status."""

    status = 75  # EX_TEMPFAIL of sysexits.h


class ProcessLost(StartAgain):
    """One of several processes does not answer any more."""
