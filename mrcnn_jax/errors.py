"""Errors with one-sentence messages that need no traceback; ``cli.exit_codes`` maps them to exit statuses."""


class InputError(ValueError):
    """Invalid input: a file, a field or an id. The message names it and says what is allowed."""


class TooManyUnreadableError(InputError):
    """More training images are unreadable than allowed."""


class TrainingError(RuntimeError):
    """A run that would fail again if restarted. The message says why and what to change."""


class Interrupted(RuntimeError):
    """A run that was stopped from outside; the same command resumes it."""


class KeyboardInterrupted(Interrupted):
    """A run that Ctrl-C has stopped."""


class HostLostError(Interrupted):
    """Another process of the run no longer responds."""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type if there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def printable(text: object) -> str:
    """Returns a text on one line whose control characters and lone surrogates are escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(text)
    )
