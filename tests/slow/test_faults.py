"""Real training processes, killed and damaged: a short version of the harness, and its own tests."""

import json
import os
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from benchmarks.scaling._processes import PHASES
from mrcnn_jax.cli.exit_codes import OK
from tests.slow import faults, single_faults
from tests.slow.faults import Kill
from tests.slow.training_process import (
    Task,
    Training,
    checkpoints,
    compare_runs,
    damage,
    files_by_size,
    logged,
    saved_arrays,
)

# Orbax does not await its other reads when one of them fails
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


def silent(line):
    pass


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    folder = tmp_path_factory.mktemp("faults")
    cache = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", folder / "compiled"))
    task = Task(folder / "shapes", cache, steps=16, checkpoint_every=4, evaluate_every=8, portrait=False)
    task.prepare()
    return task


@pytest.fixture(scope="module")
def finished(task) -> Path:
    """An undisturbed run; shared, so not to be changed."""
    directory = task.data.parent / "undisturbed"
    training = Training(task, directory)
    assert training.wait() == OK, training.stderr
    assert training.steps_made == task.steps and training.resumed_at is None and not training.messages
    return directory


def test_killed_and_damaged_run_ends_like_an_undisturbed_one(task, finished, tmp_path):
    kills = [Kill("SIGKILL", "steps", 0.7), Kill("SIGTERM", "start-up", 0.5), Kill("SIGTERM", "steps", 0.4)]
    phases = dict.fromkeys(PHASES, 1.0)
    damages = ("bytes flipped",)
    result = faults.train_disturbed(task, tmp_path / "run", kills, phases, silent, damages=damages)
    assert result["failures"] == []
    assert [(kill["signal"], kill["planned"]) for kill in result["kills"]] == [kill[:2] for kill in kills]
    assert result["starts"] == 4 and len(result["damaged"]) == 1 and result["damaged"][0]["warned"]
    lost = sum(kill["steps_lost"] for kill in result["kills"])
    assert result["steps_made"] >= task.steps + lost and result["steps_needed"] == task.steps
    compared = compare_runs(tmp_path / "run", finished)
    assert compared["failures"] == [] and compared["losses"] == task.steps
    assert set(compared["arrays"]) >= {"params", "averaged", "opt_state", "step"}
    assert compared["evaluations"] == 2 and "validation_loss" in logged(finished)[1][8]


@pytest.mark.parametrize(
    "fault",
    [
        single_faults.started_again,
        single_faults.damaged_checkpoints,
        partial(single_faults.damaged_files, limit=2),
    ],
)
def test_single_faults(task, finished, tmp_path, fault):
    row = fault(task, finished, tmp_path)
    assert row["failures"] == [] and row["messages"]


# ---- the harness itself ----


def test_kills_depend_on_the_seed_and_cover_every_signal_in_every_phase():
    kills = faults.plan_kills(30, seed=3)
    assert kills == faults.plan_kills(30, seed=3) != faults.plan_kills(30, seed=4)
    pairs = [(kind, phase) for kind in faults.SIGNALS for phase in PHASES]
    assert Counter((kill.signal, kill.phase) for kill in kills) == dict.fromkeys(pairs, 3)
    assert all(0 <= kill.moment < 1 for kill in kills) and len(faults.plan_kills(7, seed=0)) == 7


def test_comparison_detects_different_arrays_and_losses(task, finished, tmp_path):
    assert compare_runs(finished, finished)["failures"] == []
    shutil.copytree(finished, tmp_path / "run")
    lines = (finished / "history.jsonl").read_text().splitlines()
    other = json.loads(lines[3])
    other["loss"] *= 1 + 1e-7
    history = "\n".join([*lines[:3], json.dumps(other), *lines[4:]])
    (tmp_path / "run" / "history.jsonl").write_text(history)
    last = tmp_path / "run" / "checkpoints" / str(task.steps)
    shutil.rmtree(last)
    shutil.copytree(finished / "checkpoints" / str(task.steps - task.checkpoint_every), last)
    failures = compare_runs(tmp_path / "run", finished)["failures"]
    assert len(failures) == 2 and "arrays, among them" in failures[0] and "losses" in failures[1]
    shutil.rmtree(last)
    unfinished = [f"the run did not reach its end, step {task.steps}"]
    assert compare_runs(tmp_path / "run", finished)["failures"] == unfinished


def test_copy_unfinished_leaves_out_the_last_checkpoints(task, finished, tmp_path):
    step = single_faults.copy_unfinished(finished, tmp_path / "run", checkpoints_back=2)
    assert step == task.steps - 2 * task.checkpoint_every
    assert checkpoints(tmp_path / "run") == checkpoints(finished)[:-2]
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert saved_arrays(finished, task.steps)["step"] == task.steps


@pytest.mark.parametrize("how, length", [("bytes flipped", 100), ("cut short", 50), ("deleted", None)])
def test_damage(tmp_path, how, length):
    (tmp_path / "large").write_bytes(bytes(range(100)))
    (tmp_path / "small").write_bytes(b"one")
    (tmp_path / "empty").touch()
    assert [file.name for file in files_by_size(tmp_path)] == ["large", "small"]
    damage(tmp_path / "large", how)
    left = (tmp_path / "large").read_bytes() if (tmp_path / "large").exists() else None
    assert left != bytes(range(100)) and (left if left is None else len(left)) == length


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--kills", "-1"], "--kills is -1, but must be 0 or more"),
        (["--steps", "10"], "--steps is 10, but must be 50 or more"),
        (["--out", "faults.txt"], "--out is faults.txt, but must end in .json"),
    ],
)
def test_options_out_of_range_are_rejected(capsys, arguments, message):
    assert faults.main(arguments) == 2
    assert capsys.readouterr().err == f"python -m tests.slow.faults: {message}\n"
