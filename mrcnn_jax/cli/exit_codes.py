"""Exit statuses of the command line: schedulers can tell from them whether to run the same command again."""

import errno
import os

from mrcnn_jax.errors import InputError, Interrupted, KeyboardInterrupted

OK = 0
FAILED = 1
"""The command cannot be completed, and would fail again; the message says what to change."""
INVALID_INPUT = 2
"""An argument or an input file is wrong."""
RETRY = os.EX_TEMPFAIL
"""75: the run was interrupted; the same command resumes it."""
KEYBOARD_INTERRUPT = 130
"""Ctrl-C; a run is saved, and the same command resumes it."""

_NAMES = {
    errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.ELOOP,
    errno.EROFS,
}  # fmt: skip
"""Errors of the operating system that come of a path that was given."""


def exit_status(error: BaseException) -> int:
    """Returns the exit status of an error."""
    if isinstance(error, KeyboardInterrupt | KeyboardInterrupted):
        return KEYBOARD_INTERRUPT
    if isinstance(error, Interrupted):
        return RETRY
    named = isinstance(error, OSError) and error.errno in _NAMES
    return INVALID_INPUT if named or isinstance(error, InputError) else FAILED
