"""Dispatches `mrcnn` to its subcommands and maps errors to messages and exit statuses."""

import io
import logging
import os
import re
import signal
import sys
import threading
from importlib import import_module

from mrcnn_jax import __version__, signals
from mrcnn_jax.cli import PROGRAM
from mrcnn_jax.cli.exit_codes import FAILED, INVALID_INPUT, KEYBOARD_INTERRUPT, OK, RETRY, exit_status
from mrcnn_jax.errors import (
    HostLostError,
    InputError,
    Interrupted,
    TrainingError,
    first_line,
    printable,
)
from mrcnn_jax.runtime import check_xla_flags, fewer_collections

COMMANDS = {
    "train": "Train an experiment, or fine-tune trained weights, and evaluate the result.",
    "evaluate": "Evaluate a trained detector on a data set.",
    "compare": "Compare two evaluations on the same images.",
    "predict": "Detect objects in image files.",
    "serve": "Detect objects in a browser, or over HTTP.",
    "dataset": "Prepare a data set for training, or show what a prepared one holds.",
    "inspect": "Show the contents of a data set, a run or weights, and likely mistakes in them.",
    "zoo": "List published weights, which other commands take by name.",
    "export": "Export a detector to StableHLO or ONNX.",
    "benchmark": "Measure the speed of detectors, live and exported.",
    "import-weights": "Import weights of torchvision, Detectron2, Detectron or our own.",
    "export-weights": "Export weights to torchvision, or to a file of our own.",
    "push": "Share a detector on the Hugging Face Hub, or as a folder.",
}
"""Subcommands and their summaries; each is the function ``main`` of the module of its name."""
_COMPLAINED = threading.Event()  # a sentence says already why the command ends
TRACEBACK = "MRCNN_TRACEBACK"
"""Environment variable that shows the traceback of an unexpected error."""


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
    if arguments[0] == "--version":
        print(f"{PROGRAM} {__version__}")
        return OK
    try:
        if arguments[0] not in COMMANDS:
            raise InputError(f"there is no command {arguments[0]!r}; choose from {', '.join(COMMANDS)}")
        if arguments[0] not in ("dataset", "zoo"):  # which do without XLA
            check_xla_flags()
        return import_module(f"mrcnn_jax.cli.{arguments[0].replace('-', '_')}").main(arguments[1:])
    except BrokenPipeError:
        raise
    except HostLostError as error:
        _complain(error)
        os._exit(exit_status(error))  # a normal exit would wait for the lost process
    except (InputError, TrainingError, Interrupted) as error:
        _complain(error)
        return exit_status(error)
    except OSError as error:  # a full disk, above all
        _complain(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error)
        return exit_status(error)
    except (RuntimeError, AssertionError, ValueError) as error:
        if (reason := _platform_problem(error)) is None:
            raise
        _complain(reason)
        return INVALID_INPUT
    except KeyboardInterrupt as error:
        _complain("interrupted")
        return exit_status(error)


def _platform_problem(error: Exception) -> str | None:
    """Returns a sentence if JAX can use no device or does not understand the environment."""
    if re.search(r"value .* for environment '?JAX_", str(error)):
        return first_line(error)
    jax, chosen = sys.modules.get("jax"), os.environ.get("JAX_PLATFORMS")
    try:
        return jax and jax.devices() and None
    except Exception as failure:  # AssertionError without a text, among others
        reason = (str(failure).splitlines() or ["no such device"])[0].partition(" (")[0]
        where = f"JAX_PLATFORMS={chosen}: {reason}; unset it, or" if chosen else f"this machine: {reason};"
        return f"JAX cannot compute with {where} install what the platform needs (mrcnn_jax[cuda], [tpu])"


def _complain(error: object) -> None:
    _COMPLAINED.set()
    print(f"{PROGRAM}: {printable(error)}", file=sys.stderr, flush=True)


def console() -> None:
    """Runs the installed command `mrcnn` and ends the process."""
    interruption = Interruption(ends_at_once=sys.argv[1:2] == ["train"])
    _prepare_process()
    with signals.receiving(interruption.receive, interruption.in_main_thread), fewer_collections():
        status = _run(interruption)
        if status == KEYBOARD_INTERRUPT and interruption.received not in (None, signal.SIGINT):
            status = RETRY
        if status in (RETRY, KEYBOARD_INTERRUPT) and not _is_one_of_several():
            os._exit(status)  # threads that were interrupted could be waited for for ever
    sys.exit(status)


def _prepare_process() -> None:
    """Makes output possible wherever it goes, and keeps that of libraries away."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA reports slow compilations as errors
    silence_library_threads()
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: else the next file that is opened would take its place
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names need not be valid, nor terminals know them
            stream.reconfigure(errors="backslashreplace")


def _run(interruption: "Interruption") -> int:
    """Returns the exit status of the command, whatever it raises."""
    try:
        try:
            status = main()
        except SystemExit as exit:  # after the help
            status = exit.code if isinstance(exit.code, int) else OK
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # a reader such as `head` has closed the pipe
        # else Python's own flush at exit complains
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return KEYBOARD_INTERRUPT
    except OSError as error:  # standard output is full or closed
        _complain(f"standard output cannot be written: {error.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        if interruption.received is not None:  # a library that is being imported raises its own
            _complain("interrupted")
            return KEYBOARD_INTERRUPT
        first = f"{type(error).__name__}: {error}".splitlines()[0]
        _complain(f"unexpected error, please report it: {first}; {TRACEBACK}=1 shows where it comes from")
        return FAILED


def _is_one_of_several() -> bool:
    """Returns whether other processes wait until this one leaves the run in an orderly manner."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


class Interruption:
    """Ends a command on Ctrl-C, SIGTERM and SIGHUP: the first raises KeyboardInterrupt, a second exits.

    The process also exits if the exception has no effect in time: compiled code and callbacks may delay it.

    Args:
        ends_at_once: the first one does already; training handles them itself once it runs.
    """

    PATIENCE = 10.0  # seconds

    def __init__(self, ends_at_once: bool):
        self._ends_at_once = ends_at_once
        self.received: signal.Signals | None = None

    def receive(self, kind: signal.Signals) -> None:
        if kind == signal.SIGHUP:
            signals.detach_terminal()
        again, self.received = self.received is not None, kind
        if self._ends_at_once or again:
            self._end()
        else:
            timer = threading.Timer(self.PATIENCE, self._end)
            timer.daemon = True
            timer.start()

    def in_main_thread(self, kind: int, _: object) -> None:
        if not self._ends_at_once:
            raise KeyboardInterrupt

    def _end(self) -> None:
        message = "" if _COMPLAINED.is_set() else f"stopped by {signals.NAMES[self.received]}"
        signals.end_process(self.received, message)


def silence_library_threads() -> None:
    """Suppresses what threads of libraries print about a failure that is reported in one sentence already."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    noise = "Event loop is closed"  # printed dozens of times after a damaged checkpoint was read
    sys.unraisablehook = lambda args: None if str(args.exc_value) == noise else sys.__unraisablehook__(args)
    sys.excepthook = lambda *args: None if str(args[1]) == noise else sys.__excepthook__(*args)
