"""Requests to stop from outside (SIGTERM), and a watchdog for processes that make no progress."""

import faulthandler
import os
import signal
import sys
import threading
import time

import jax
from jax.experimental import multihost_utils

from mrcnn_jax.errors import Interrupted


class PreemptionHandler:
    """Records SIGTERM, which schedulers and cloud machines send some time before they take a machine away.

    Several processes agree on the step they all stop at, whichever of them received the signal (JAX's
    preemption service).
    """

    def __init__(self):
        self._requested = threading.Event()
        self._previous = None
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, lambda *_: self._requested.set())

    def should_stop(self, step: int) -> bool:
        """Returns whether to save and stop after ``step`` steps; every process calls it after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested.is_set()

    def raise_if_requested(self) -> None:
        """Raises Interrupted if a single process was asked to stop: for work that can simply be repeated."""
        if self._requested.is_set():
            raise Interrupted("stopped on request (SIGTERM); repeat the command to resume")

    def __enter__(self) -> "PreemptionHandler":
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)


class Watchdog:
    """Ends the process when nothing has progressed for too long, and reports where its threads hang.

    A hanging disk, device or process would otherwise be waited for forever.

    Args:
        seconds: without progress; 0 disables the watchdog.
    """

    def __init__(self, seconds: int | float):
        self._seconds, self._phase, self._since = seconds, "starting", time.monotonic()
        self._closed = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def progress(self, phase: str) -> None:
        """Records that something has progressed, and which phase begins now."""
        self._phase, self._since = phase, time.monotonic()

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def _watch(self):
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - self._since > self._seconds:
                process = f" in process {jax.process_index()}" if jax.process_count() > 1 else ""
                print(f"\nNo progress for {self._seconds:g} seconds (train.stall_seconds) while {self._phase}"
                      f"{process}. Stack traces of all threads:", file=sys.stderr)  # fmt: skip
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
                print("Repeat the command to resume from the last checkpoint.", file=sys.stderr, flush=True)
                os._exit(os.EX_TEMPFAIL)  # an orderly exit would wait for the thread that hangs
