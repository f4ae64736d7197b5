"""What cuts a run short from outside: a request to stop, and everything that makes no progress any more."""

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
    """Takes note of SIGTERM, which schedulers and cloud machines send some time before they take a machine away.

    Several processes agree on the step they all stop at, whichever of them was told (JAX's preemption service).
    """

    def __init__(self):
        self._asked = threading.Event()
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, lambda *_: self._asked.set())
        else:
            self._before = None

    def before_next_step(self, done: int) -> bool:
        """Whether to save and leave after ``done`` steps; every process asks after every step."""
        return multihost_utils.reached_preemption_sync_point(done) if jax.process_count() > 1 else self._asked.is_set()

    def check(self) -> None:
        """Raises StartAgain where a process that is alone was asked to stop: for work that is simply done again."""
        if self._asked.is_set():
            raise Interrupted("stopped as asked (SIGTERM)")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


class Watchdog:
    """Ends the process where nothing has moved for too long, and says what it was at: a hanging disk, device or process would be waited for forever."""

    def __init__(self, seconds: float):
        self.seconds, self._phase, self._since = seconds, "starting", time.monotonic()
        self._over = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def at(self, phase: str) -> None:
        """Something has moved, and this comes next."""
        self._phase, self._since = phase, time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._over.set()

    def _watch(self):
        while not self._over.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self._since > self.seconds:
                where = f" of process {jax.process_index()}" if jax.process_count() > 1 else ""
                print(f"\nNo progress for {self.seconds:g} seconds (train.stall_seconds) while {self._phase}{where}: the process ends here, where its threads are:",
                      file=sys.stderr)  # fmt: skip
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
                print("Give the same command again: the run goes on from its last checkpoint.", file=sys.stderr, flush=True)
                os._exit(os.EX_TEMPFAIL)  # nothing orderly is left to do: a thread of this process hangs
