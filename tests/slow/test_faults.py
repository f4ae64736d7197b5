"""Real training processes, killed and damaged: a short version of the long harness, and that the harness sees what it should see."""

import json
import os
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from benchmarks.scaling import report as robustness_report
from tests.slow import faults, single_faults
from tests.slow.faults import Kill
from tests.slow.training_process import (
    FINISHED,
    PHASES,
    Task,
    Training,
    checkpoints,
    comparison,
    damage,
    files_by_size,
    saved_arrays,
)

SILENT = lambda line: None
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax, reading what is damaged


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    folder = tmp_path_factory.mktemp("faults")
    cache = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", folder / "compiled"))
    task = Task(folder / "shapes", cache, steps=16, checkpoint_every=4, evaluate_every=16, portrait=False)
    task.prepare()
    return task


@pytest.fixture(scope="module")
def finished(task) -> Path:
    """A run that was left alone: look, but do not touch."""
    directory = task.data.parent / "undisturbed"
    training = Training(task, directory)
    assert training.wait() == FINISHED, training.stderr
    assert training.steps_made == task.steps and training.resumed_at is None and not training.sentences
    return directory


def test_a_run_through_kills_and_damage_ends_as_an_undisturbed_one(task, finished, tmp_path):
    kills = [Kill("SIGKILL", "steps", 0.7), Kill("SIGTERM", "start-up", 0.5), Kill("SIGTERM", "steps", 0.4)]
    durations = dict.fromkeys(PHASES, 1.0)
    found = faults.disturbed(task, tmp_path / "run", kills, durations, SILENT, damages=("bytes flipped",))
    assert found["failures"] == []
    assert [(kill["signal"], kill["planned"]) for kill in found["kills"]] == [kill[:2] for kill in kills]
    assert found["starts"] == 4 and len(found["damaged"]) == 1 and found["damaged"][0]["warned"]
    lost = sum(kill["steps_lost"] for kill in found["kills"])
    assert found["steps_made"] >= task.steps + lost and found["steps_needed"] == task.steps
    compared = comparison(tmp_path / "run", finished)
    assert compared["failures"] == [] and compared["losses"] == task.steps and set(compared["arrays"]) >= {"params", "opt_state", "step"}


@pytest.mark.parametrize("fault", [single_faults.started_again, single_faults.damaged_checkpoints, partial(single_faults.damaged_files, most=2)])
def test_single_faults(task, finished, tmp_path, fault):
    found = fault(task, finished, tmp_path)
    assert found["failures"] == [] and found["said"]


# ---- the harness itself ----


def test_kills_follow_from_the_seed_and_meet_every_signal_in_every_phase():
    kills = faults.plan_kills(30, seed=3)
    assert kills == faults.plan_kills(30, seed=3) != faults.plan_kills(30, seed=4)
    assert Counter((kill.signal, kill.phase) for kill in kills) == dict.fromkeys([(kind, phase) for kind in faults.SIGNALS for phase in PHASES], 3)
    assert all(0 <= kill.moment < 1 for kill in kills) and len(faults.plan_kills(7, seed=0)) == 7


def test_the_comparison_sees_a_bit_and_a_loss_that_differ(task, finished, tmp_path):
    assert comparison(finished, finished)["failures"] == []
    shutil.copytree(finished, tmp_path / "run")
    lines = (finished / "history.jsonl").read_text().splitlines()
    other = json.loads(lines[3])
    other["loss"] *= 1 + 1e-7
    (tmp_path / "run" / "history.jsonl").write_text("\n".join([*lines[:3], json.dumps(other), *lines[4:]]))
    last = tmp_path / "run" / "checkpoints" / str(task.steps)
    shutil.rmtree(last)
    shutil.copytree(finished / "checkpoints" / str(task.steps - task.checkpoint_every), last)
    found = comparison(tmp_path / "run", finished)["failures"]
    assert len(found) == 2 and "arrays are not those" in found[0] and "losses" in found[1]
    shutil.rmtree(last)
    assert comparison(tmp_path / "run", finished)["failures"] == [f"the run did not come to its end, step {task.steps}"]


def test_a_copy_of_a_run_as_it_was_before(task, finished, tmp_path):
    assert single_faults.begun(finished, tmp_path / "run", checkpoints_back=2) == task.steps - 2 * task.checkpoint_every
    assert checkpoints(tmp_path / "run") == checkpoints(finished)[:-2] and not (tmp_path / "run" / "metrics.json").exists()
    assert (saved_arrays(finished, task.steps)["step"]) == task.steps


@pytest.mark.parametrize("how, left", [("bytes flipped", 100), ("cut short", 50), ("deleted", None)])
def test_damage(tmp_path, how, left):
    (tmp_path / "large").write_bytes(bytes(range(100)))
    (tmp_path / "small").write_bytes(b"one")
    (tmp_path / "empty").touch()
    assert [file.name for file in files_by_size(tmp_path)] == ["large", "small"]
    damage(tmp_path / "large", how)
    found = (tmp_path / "large").read_bytes() if (tmp_path / "large").exists() else None
    assert found != bytes(range(100)) and (found if found is None else len(found)) == left


def test_options_out_of_range_are_refused_in_a_sentence(capsys, tmp_path):
    for arguments, sentence in (
        (("--kills", "-1"), "--kills is -1, but must be 0 or more"),
        (("--steps", "10"), "--steps is 10, but must be 50 or more"),
        (("--faults", "fire"), f"--faults has fire; choose from {', '.join(faults.Options().faults)}"),
        (("--out", "faults.txt"), "--out is faults.txt, but must end in .json"),
    ):
        assert faults.main(list(arguments)) == 2
        assert capsys.readouterr().err == f"python -m tests.slow.faults: {sentence}\n"


def test_what_is_left_out_keeps_its_figures():
    row = lambda name, fault, *failures: {"name": name, "fault": fault, "failures": list(failures)}
    before = {"kills": {"failures": []}, "single": {"rows": [row("full_disk", "old"), row("started_again", "old", "it was not")]}}
    options = faults.Options(parts=("single",), faults=("full_disk", "unreadable_images"))
    new = {"single": {"rows": [row("full_disk", "new"), row("unreadable_images", "new", "why")]}}
    merged = faults._with_what_was_left_out(new, before, options)
    assert merged["kills"] == before["kills"]
    assert [(line["name"], line["fault"]) for line in merged["single"]["rows"]] == [
        ("started_again", "old"),
        ("full_disk", "new"),
        ("unreadable_images", "new"),
    ]
    assert merged["single"]["failures"] == ["old: it was not", "new: why"]


# ---- the page ----


def test_the_published_page_is_made_from_the_result_files():
    assert (robustness_report.RESULTS / robustness_report.PAGE).read_text() == robustness_report.page(*robustness_report.read())


def test_a_figure_that_changes_changes_the_page_and_a_failure_is_shown(tmp_path, capsys):
    measured, scaling = robustness_report.read()
    measured["kills"]["kills"][0]["steps_lost"] = 123
    measured["single"]["failures"] = ["the loss explodes: a | line"]
    for name, content in (("faults", measured), ("scaling", scaling)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert robustness_report.main([str(tmp_path)]) == 0 and robustness_report.PAGE in capsys.readouterr().out
    text = (tmp_path / robustness_report.PAGE).read_text()
    assert "| 123 |" in text and "Not as it should be:\n\n- the loss explodes: a \\| line" in text


def test_without_results_there_is_no_page(tmp_path, capsys):
    assert robustness_report.main([str(tmp_path)]) == 2
    assert "faults.json cannot be read: run `python -m tests.slow.faults` first" in capsys.readouterr().err and not list(tmp_path.iterdir())
