"""Requests to stop and the watchdog, without a run. tests/slow interrupts whole runs."""

import os
import signal
import time

import pytest

from mrcnn_jax.errors import Interrupted
from mrcnn_jax.training import preemption
from mrcnn_jax.training.preemption import PreemptionHandler, Watchdog


def test_sigterm_is_recorded_and_the_previous_handler_restored():
    before = signal.getsignal(signal.SIGTERM)
    with PreemptionHandler() as handler:
        assert not handler.should_stop(3)
        handler.raise_if_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert handler.should_stop(4) and handler.should_stop(5)
        with pytest.raises(Interrupted, match="SIGTERM"):
            handler.raise_if_requested()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def exit_statuses(monkeypatch):
    """Statuses with which a watchdog would have ended the process."""
    statuses = []
    monkeypatch.setattr(preemption.os, "_exit", statuses.append)
    monkeypatch.setattr(preemption.faulthandler, "dump_traceback", lambda file, all_threads: None)
    return statuses


def test_watchdog_ends_a_hanging_process_and_reports_the_phase(exit_statuses, capsys):
    with Watchdog(0.2) as watchdog:
        watchdog.progress("waiting for the images of step 7")
        deadline = time.monotonic() + 20
        while not exit_statuses and time.monotonic() < deadline:
            time.sleep(0.02)
    assert exit_statuses[0] == os.EX_TEMPFAIL == 75
    error = capsys.readouterr().err
    message = "No progress for 0.2 seconds (train.stall_seconds) while waiting for the images of step 7"
    assert message in error and "Repeat the command" in error


def test_watchdog_leaves_a_process_that_progresses_alone(exit_statuses):
    with Watchdog(0.8) as watchdog:
        for _ in range(12):
            time.sleep(0.1)
            watchdog.progress("moving")
    time.sleep(1.0)  # closed
    assert not exit_statuses


def test_watchdog_is_disabled_at_0(exit_statuses):
    with Watchdog(0):
        time.sleep(0.1)
    assert not exit_statuses
