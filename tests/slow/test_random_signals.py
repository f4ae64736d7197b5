"""Signals at random moments: a short version of the harness."""

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.scaling._processes import PHASES
from tests.slow import random_signals
from tests.slow.training_process import Task

pytestmark = pytest.mark.slow


def test_signals_end_a_run_with_the_right_status_and_lose_nothing(tmp_path):
    task = Task(tmp_path / "shapes", tmp_path / "compiled", 120, 10, 40, devices=1, portrait=False)
    task.prepare()
    result = random_signals.measure(task, tmp_path, random_signals.plan(2, seed=1))
    assert result["failures"] == [] and result["signals"] == 2


def test_every_signal_is_planned_in_every_phase_once_and_twice():
    planned = random_signals.plan(60, seed=3)
    assert planned == random_signals.plan(60, seed=3) != random_signals.plan(60, seed=4)
    cases = Counter((each.signal, each.phase, each.again is None) for each in planned)
    assert len(cases) == 6 * len(PHASES) and set(cases.values()) == {2}


def test_the_full_run_found_no_failure():
    file = Path(random_signals.__file__).with_suffix(".json")
    if not file.exists():
        pytest.skip("the full run, `python -m tests.slow.random_signals`, is not recorded")
    result = json.loads(file.read_text())
    assert result["signals"] >= 200 and result["failures"] == []
