"""Signals that ask the process to end (Ctrl-C, SIGTERM, a closed terminal), received in a thread."""

import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from mrcnn_jax.errors import Interrupted, KeyboardInterrupted

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
"""Signals that ask to end, with their names in messages."""
_SHOW_CURSOR = "\x1b[?25h"  # progress bars hide it


@contextmanager
def receiving(
    receive: Callable[[signal.Signals], object], in_main_thread: Callable[..., object] = lambda *_: None,
    kinds: Collection[signal.Signals] = NAMES,
) -> Iterator[None]:  # fmt: skip
    """Calls a function in a thread for every signal of some kinds inside the block.

    Python runs its own handlers in the main thread, but only once that leaves compiled code: XLA may compile
    for minutes. Signals that are ignored (``nohup``) stay ignored. Blocks can be nested: the innermost
    receives. Outside the main thread this does nothing.

    Args:
        receive: called in the thread, at once.
        in_main_thread: handler of Python, called later.
        kinds: signals to receive.
    """
    watched = [kind for kind in kinds if signal.getsignal(kind) is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread() or not watched:
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # Python writes a byte for each signal
    handlers = {kind: signal.signal(kind, in_main_thread) for kind in watched}

    def watch():
        while number := os.read(reading, 1):
            if number[0] in watched:
                receive(signal.Signals(number[0]))

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
        os.close(writing)
        thread.join()
        os.close(reading)


def interruption(kind: int, message: str) -> Interrupted:
    """Returns the error of a run that a signal has stopped."""
    return (KeyboardInterrupted if kind == signal.SIGINT else Interrupted)(message)


def end_process(kind: int, message: str) -> None:
    """Ends the process at once: an orderly exit could wait for ever for a thread that was interrupted."""
    if message:
        say(f"mrcnn: {message}")
    os._exit(128 + kind if kind == signal.SIGINT else os.EX_TEMPFAIL)


def say(message: str) -> None:
    """Writes a line to stderr from any thread, past all buffers; terminals may be gone."""
    try:
        os.write(2, f"\r{_SHOW_CURSOR if sys.stderr.isatty() else ''}{message}\n".encode())
    except (OSError, ValueError):
        pass


def detach_terminal() -> None:
    """Redirects output to a closed terminal to nowhere, so that writing raises no errors."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        try:
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nowhere, descriptor)
        except OSError:  # closed
            pass
    os.close(nowhere)
