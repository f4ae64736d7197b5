"""Requests to stop from outside, and a watchdog for processes that make no progress."""

import faulthandler
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack

import jax
from etils import epath
from jax.experimental import multihost_utils

from mrcnn_jax import signals
from mrcnn_jax.errors import Interrupted


class PreemptionHandler:
    """Receives requests to stop: Ctrl-C, SIGTERM (schedulers, cloud machines) and SIGHUP (a closed terminal).

    The first one lets the run save after its step. A second Ctrl-C ends the process at once, as does any
    request while nothing would be lost: before the first step, while it is compiled, and during evaluations.
    Schedulers and shells may repeat the other two, which changes nothing. Several processes agree on the step
    they all stop at, whichever of them received the signal (JAX's preemption service).

    Args:
        own_process: False never ends the process, which is not the run's alone (a notebook): Ctrl-C then
            raises KeyboardInterrupt where a run of its own would end at once.
        checkpoints: directory of the run's checkpoints, which messages mention.
    """

    def __init__(self, own_process: bool = False, checkpoints: epath.Path | None = None):
        self.unsaved = False
        """True if steps would be lost if the process ended now."""
        self._checkpoints = checkpoints
        self._own_process, self._several = own_process, jax.process_count() > 1
        self._received: signal.Signals | None = None
        self._interrupts, self._resources = 0, ExitStack()

    def should_stop(self, step: int) -> bool:
        """Returns whether to save and stop after ``step`` steps; every process calls it after every step."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received is not None

    def interruption(self, what: str) -> Interrupted:
        """Returns the error that ends a stopped run."""
        kind = self._received or signal.SIGTERM
        return signals.interruption(kind, f"stopped by {signals.NAMES[kind]}{what}")

    def raise_if_requested(self) -> None:
        """Raises Interrupted if a single process was asked to stop: for work that can simply be repeated."""
        if self._received is not None and not self._several:  # which stop together after a step
            raise self.interruption("; repeat the command to resume")

    def _receive(self, kind: signal.Signals) -> None:
        if kind == signal.SIGHUP:
            signals.detach_terminal()
        if self._several and self._received is None:
            self._received = kind
            os.kill(os.getpid(), signal.SIGTERM)  # for JAX's service, whose handler it reaches
        elif self._received is None and (self.unsaved or not self._own_process):
            self._received = kind
            again = "; a second Ctrl-C ends it now, without saving" if self._own_process else ""
            signals.say(f"{signals.NAMES[kind]}: the run saves after this step and ends{again}")
        elif self._own_process and (not self.unsaved or kind == signal.SIGINT):
            signals.end_process(kind, f"stopped by {signals.NAMES[kind]}; the same command {self._outlook()}")

    def _outlook(self) -> str:
        steps = self._checkpoints.iterdir() if self._checkpoints and self._checkpoints.exists() else ()
        newest = max((int(path.name) for path in steps if path.name.isdigit()), default=None)
        return "starts over, as nothing was saved yet" if newest is None else f"resumes at step {newest:,}"

    def _in_main_thread(self, kind: int, _: object) -> None:
        if kind == signal.SIGINT and not self._own_process and not self._several:
            self._interrupts += 1
            if self._interrupts > 1 or not self.unsaved:
                raise KeyboardInterrupt

    def __enter__(self) -> "PreemptionHandler":
        # JAX's service has a handler of its own for SIGTERM
        kinds = [kind for kind in signals.NAMES if not (self._several and kind == signal.SIGTERM)]
        self._resources.enter_context(signals.receiving(self._receive, self._in_main_thread, kinds))
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()


class Watchdog:
    """Ends the process when nothing has progressed for too long, and reports where its threads hang.

    A hanging disk, device or process would otherwise be waited for forever. Time in which this process was
    itself stopped, as by Ctrl-Z, does not count.

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
        interval, checked = min(1.0, self._seconds / 4), time.monotonic()
        while not self._closed.wait(interval):
            now = time.monotonic()
            stopped = max(0.0, now - checked - interval)
            checked, self._since = now, min(now, self._since + stopped)
            if now - self._since > self._seconds:
                process = f" in process {jax.process_index()}" if jax.process_count() > 1 else ""
                print(f"\nNo progress for {self._seconds:g} seconds (train.stall_seconds) while {self._phase}"
                      f"{process}. Stack traces of all threads:", file=sys.stderr)  # fmt: skip
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
                print("Repeat the command: it resumes from the last checkpoint, or starts over without one.",
                      file=sys.stderr, flush=True)  # fmt: skip
                os._exit(os.EX_TEMPFAIL)  # an orderly exit would wait for the thread that hangs
