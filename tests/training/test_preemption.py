"""What cuts a run short from outside, without a run. Whole ones are interrupted in tests/test_faults.py."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mrcnn_jax.errors import Interrupted
from mrcnn_jax.training.preemption import PreemptionHandler, Watchdog


def test_a_request_to_stop_is_kept_until_someone_asks():
    before = signal.getsignal(signal.SIGTERM)
    with PreemptionHandler() as stop:
        assert not stop.before_next_step(3)
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.before_next_step(4) and stop.before_next_step(5)
        with pytest.raises(Interrupted, match="SIGTERM"):
            stop.check()
    assert signal.getsignal(signal.SIGTERM) == before


HANGS = """
import time
from mrcnn_jax.training.preemption import Watchdog

def a_disk_that_hangs():
    time.sleep(60)

with Watchdog({seconds}) as watchdog:
    watchdog.at("waiting for the images of step 7")
    a_disk_that_hangs()
"""


def test_a_hanging_process_says_where_and_ends():
    began = time.monotonic()
    process = subprocess.run([sys.executable, "-c", HANGS.format(seconds=0.5)], capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == os.EX_TEMPFAIL == 75 and time.monotonic() - began < 50
    assert "No progress for 0.5 seconds (train.stall_seconds) while waiting for the images of step 7" in process.stderr
    assert "in a_disk_that_hangs" in process.stderr and "Give the same command again" in process.stderr


def test_who_moves_is_left_alone():
    with Watchdog(0.4) as watchdog:
        for _ in range(8):
            time.sleep(0.1)
            watchdog.at("moving")
    time.sleep(0.6)  # and nobody watches what is over


def test_nobody_watches_at_0():
    with Watchdog(0):
        time.sleep(0.1)
