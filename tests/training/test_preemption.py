"""Requests to stop and the watchdog, without a run. tests/slow interrupts whole runs."""

import os
import signal
import time

import pytest
from etils import epath

from mrcnn_jax.errors import Interrupted, KeyboardInterrupted
from mrcnn_jax.signals import NAMES
from mrcnn_jax.training import preemption
from mrcnn_jax.training.preemption import PreemptionHandler, Watchdog


def send(kind: signal.Signals, wait_for) -> None:
    """Sends this process a signal and waits until the thread that receives it has acted."""
    os.kill(os.getpid(), kind)
    deadline = time.monotonic() + 20
    while not wait_for() and time.monotonic() < deadline:
        time.sleep(0.005)


def test_one_of_several_processes_waits_for_the_others(monkeypatch):
    monkeypatch.setattr(preemption.jax, "process_count", lambda: 2)
    handler = PreemptionHandler()
    handler._received = signal.SIGINT
    handler.raise_if_requested()  # they stop together after a step


@pytest.mark.parametrize("own_process", [False, True])
@pytest.mark.parametrize("kind, error", [("SIGTERM", Interrupted), ("SIGHUP", Interrupted),
                                         ("SIGINT", KeyboardInterrupted)])  # fmt: skip
def test_signals_are_recorded_and_the_previous_handlers_restored(kind, error, own_process, capfd):
    kind = signal.Signals[kind]
    before = signal.getsignal(kind)
    with PreemptionHandler(own_process) as handler:
        handler.unsaved = True
        assert not handler.should_stop(3)
        handler.raise_if_requested()
        send(kind, lambda: handler.should_stop(4))
        assert handler.should_stop(5)
        with pytest.raises(error, match=f"^stopped by {NAMES[kind]}; repeat the command to resume$"):
            handler.raise_if_requested()
    assert signal.getsignal(kind) == before
    assert capfd.readouterr().err.startswith(f"\r{NAMES[kind]}: the run saves after this step and ends")


def test_a_second_ctrl_c_ends_the_process_and_repeated_requests_of_schedulers_do_not(
    exit_statuses, capfd, tmp_path
):
    (tmp_path / "checkpoints/20").mkdir(parents=True)
    with PreemptionHandler(True, epath.Path(tmp_path / "checkpoints")) as handler:
        handler.unsaved = True
        send(signal.SIGTERM, lambda: handler.should_stop(4))
        send(signal.SIGTERM, lambda: False if time.sleep(0.1) else True)
        assert exit_statuses == []
        send(signal.SIGINT, lambda: exit_statuses)
    assert exit_statuses == [130]
    assert "mrcnn: stopped by Ctrl-C; the same command resumes at step 20\n" in capfd.readouterr().err


@pytest.mark.parametrize("kind, status", [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)])
def test_a_process_without_anything_to_save_ends_at_once(exit_statuses, capfd, kind, status):
    with PreemptionHandler(own_process=True):
        send(kind, lambda: exit_statuses)
    assert exit_statuses == [status]
    assert "the same command starts over, as nothing was saved yet" in capfd.readouterr().err


def test_ctrl_c_in_a_notebook_interrupts_where_nothing_is_to_be_saved():
    with PreemptionHandler(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with PreemptionHandler():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def exit_statuses(monkeypatch):
    """Statuses with which the process would have been ended."""
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


def test_watchdog_does_not_count_the_time_in_which_the_process_was_stopped(exit_statuses, monkeypatch):
    clock, stopped = time.monotonic, [0.0]
    monkeypatch.setattr(preemption.time, "monotonic", lambda: clock() + stopped[0])
    with Watchdog(0.8):
        time.sleep(0.3)
        stopped[0] = 3600.0
        time.sleep(0.4)
    assert not exit_statuses


def test_watchdog_is_disabled_at_0(exit_statuses):
    with Watchdog(0):
        time.sleep(0.1)
    assert not exit_statuses
