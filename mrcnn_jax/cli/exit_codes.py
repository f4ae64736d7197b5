"""Exit statuses of the command line: schedulers can tell from them whether to run the same command again."""

import os

from mrcnn_jax.errors import InputError, Interrupted

OK = 0
FAILED = 1
"""The command cannot be completed, and would fail again; the message says what to change."""
INVALID_INPUT = 2
"""An argument or an input file is wrong."""
RETRY = os.EX_TEMPFAIL
"""75: the run was interrupted; the same command resumes it."""
KEYBOARD_INTERRUPT = 130


def exit_status(error: BaseException) -> int:
    """Returns the exit status of an error."""
    if isinstance(error, KeyboardInterrupt):
        return KEYBOARD_INTERRUPT
    if isinstance(error, Interrupted):
        return RETRY
    return INVALID_INPUT if isinstance(error, InputError) else FAILED
