"""The one exception that is the user's to mend."""


class InputError(ValueError):
    """Something given is wrong: a file, a field, an id. The message is one sentence that names it and says what is allowed.

    The command line prints the sentence, without a traceback, and exits with status 2.
    """
