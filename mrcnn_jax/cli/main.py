"""Dispatches `mrcnn` to its subcommands and maps errors to messages and exit statuses."""

import logging
import os
import sys
from importlib import import_module

from mrcnn_jax.cli.exit_codes import INVALID_INPUT, OK, exit_status
from mrcnn_jax.cli.terminal import PROGRAM
from mrcnn_jax.errors import HostLostError, InputError, Interrupted, TrainingError

COMMANDS = {
    "train": "Train an experiment, or fine-tune trained weights, and evaluate the result.",
    "evaluate": "Evaluate a trained detector on a data set.",
    "predict": "Detect objects in image files.",
    "dataset": "Prepare a data set for training, or show what a prepared one holds.",
    "import-weights": "Import weights of torchvision, Detectron2 or Detectron.",
    "export-weights": "Export weights to torchvision.",
}
"""Subcommands and their summaries; each is the function ``main`` of the module of its name."""


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand and prints errors as one sentence.

    Args:
        arguments: the words after `mrcnn`; by default those of the process.

    Returns:
        The exit status (``exit_codes``).
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        listing = "\n".join(f"  {name:<16}{summary}" for name, summary in COMMANDS.items())
        print(f"usage: {PROGRAM} COMMAND ...\n\nMask R-CNN in JAX.\n\ncommands:\n{listing}\n\n"
              f"`{PROGRAM} COMMAND --help` lists the options of a command.")
        return OK if arguments else INVALID_INPUT
    try:
        if arguments[0] not in COMMANDS:
            raise InputError(f"there is no command {arguments[0]!r}; choose from {', '.join(COMMANDS)}")
        return import_module(f"mrcnn_jax.cli.{arguments[0].replace('-', '_')}").main(arguments[1:])
    except BrokenPipeError:
        raise
    except HostLostError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr, flush=True)
        os._exit(exit_status(error))  # a normal exit would wait for the lost process
    except (InputError, TrainingError, Interrupted, OSError) as error:  # OSError: a full disk, above all
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return exit_status(error)
    except KeyboardInterrupt as error:
        hint = "the same command resumes a training run from its last checkpoint"
        print(f"{PROGRAM}: interrupted; {hint}", file=sys.stderr)
        return exit_status(error)


def console() -> None:
    """Runs the installed command `mrcnn` and ends the process."""
    silence_library_threads()
    try:
        try:
            status = main()
        finally:  # the argument parser raises SystemExit
            sys.stdout.flush()
    except BrokenPipeError:  # a reader such as `head` has closed the pipe
        # else Python's own flush at exit complains
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def silence_library_threads() -> None:
    """Suppresses what threads of libraries print about a failure that is reported in one sentence already."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    noise = "Event loop is closed"  # printed dozens of times after a damaged checkpoint was read
    sys.unraisablehook = lambda args: None if str(args.exc_value) == noise else sys.__unraisablehook__(args)
    sys.excepthook = lambda *args: None if str(args[1]) == noise else sys.__excepthook__(*args)
