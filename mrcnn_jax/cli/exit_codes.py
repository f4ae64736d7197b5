"""Exit statuses of the command line: schedulers can tell from them whether to run the same command again."""

import os

from mrcnn_jax.errors import InputError, Interrupted, TrainingError

OK = 0
FAILED = 1
"""The run cannot continue; the message says what to change."""
INVALID_INPUT = 2
"""Something that was given is wrong."""
RETRY = os.EX_TEMPFAIL
"""75: the run was interrupted; the same command resumes it."""
KEYBOARD_INTERRUPT = 130


def exit_status(error: InputError | TrainingError | Interrupted) -> int:
    """Returns the exit status of an error."""
    if isinstance(error, Interrupted):
        return RETRY
    return INVALID_INPUT if isinstance(error, InputError) else FAILED
