"""Whole runs, small but real: what they leave behind, and that an interrupted one ends where an undisturbed one does."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_run
from paths import TESTS

from mrcnn_jax.config import Experiment, read_experiment
from mrcnn_jax.data import dataset as records
from mrcnn_jax.data import shapes
from mrcnn_jax.data.pipeline import training_batches
from mrcnn_jax.errors import InputError
from mrcnn_jax.training import loop
from mrcnn_jax.training.logging import SPEED
from mrcnn_jax.training.loop import DivergedError, train


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_run.dataset(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tiny_run.trained_run(tmp_path_factory.getbasetemp())


def history(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


def losses(directory: Path) -> list[dict]:
    """What was logged of the training itself, without its speed."""
    return [{name: value for name, value in line.items() if name not in SPEED} for line in history(directory) if "loss" in line]


def assert_same_run(directory: Path, expected: Path) -> None:
    """State, position in the data and history are equal to the last bit."""
    (state, images_seen), (expected_state, expected_images_seen) = (tiny_run.saved_state(each, tiny_run.STEPS) for each in (directory, expected))
    tiny.assert_same(state, expected_state)
    assert images_seen == expected_images_seen == 8 * tiny_run.STEPS
    assert losses(directory) == losses(expected)


# ---- what a run leaves behind ----


def test_the_run_directory_holds_what_is_promised(run):
    promised = {"checkpoints", "experiment.json", "history.jsonl", "curves.png", "tensorboard", "metrics.json", "predictions.png"}
    assert {path.name for path in run.iterdir()} == promised
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["3", "6"]
    assert any((run / "tensorboard").glob("events.*"))
    for picture in ("curves.png", "predictions.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")


def test_the_experiment_is_kept_with_the_number_of_classes(run, data):
    experiment = read_experiment(run / "experiment.json")
    assert experiment.model.num_classes == len(shapes.KINDS)
    wanted = tiny_run.run_experiment(data)
    assert experiment == dataclasses.replace(wanted, model=dataclasses.replace(wanted.model, num_classes=len(shapes.KINDS)))


def test_metrics_have_twelve_figures_of_boxes_and_masks(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics) == ["bbox", "segm"]
    for figures in metrics.values():
        assert list(figures) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
        assert figures["APl"] is None  # nothing in these images is larger than 96 x 96 pixels
        assert all(0 <= value <= 100 for name, value in figures.items() if name not in ("APl", "ARl"))


def test_history_has_a_line_a_step_and_the_final_evaluation(run):
    lines = history(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 6]
    terms = {"loss", "loss_rpn_objectness", "loss_rpn_box", "loss_class", "loss_box", "loss_mask", "gradient_norm"}
    for line in lines[:-1]:
        assert line.keys() == {"step", *terms, "learning_rate", *SPEED}
        assert all(np.isfinite(value) for value in line.values()) and line["images_per_second"] > 0
        assert line["learning_rate"] == pytest.approx(0.02)
    metrics = json.loads((run / "metrics.json").read_text())
    assert lines[-1] == {"step": 6, **{f"{kind}/{name}": metrics[kind][name] for kind in ("bbox", "segm") for name in ("AP", "AP50", "AP75")}}


def test_training_changed_the_parameters(run):
    (early, _), (late, _) = tiny_run.saved_state(run, 3), tiny_run.saved_state(run, 6)
    early, late = tiny.names_and_leaves(early.params), tiny.names_and_leaves(late.params)
    assert all((early[name] != late[name]).any() for name in early)


# ---- interrupted runs ----


def test_three_steps_and_three_more_are_six(run, data, tmp_path):
    first = train(tiny_run.run_experiment(data, steps=3, evaluate_every=2), tmp_path, tiny_run.quiet())
    assert set(first) == {"bbox", "segm"}
    assert [line["step"] for line in history(tmp_path) if "segm/AP" in line] == [2, 3]  # on the way, and at the end
    console = tiny_run.quiet()
    metrics = train(tiny_run.run_experiment(data), tmp_path, console)
    assert f"Resumed {tmp_path} at step 3 of 6." in console.file.getvalue()
    assert_same_run(tmp_path, run)
    assert metrics == json.loads((tmp_path / "metrics.json").read_text()) == json.loads((run / "metrics.json").read_text())


KILLED = """
import os, signal, sys, time
from pathlib import Path
import conftest, tiny_run
from mrcnn_jax.training import loop

data, directory = map(Path, sys.argv[1:])
original = loop.training_batches

def batches(*args, **settings):
    for step, batch in enumerate(original(*args, **settings)):
        if step == 5:  # asked for while the fifth step is still to come
            while not (directory / "checkpoints" / "3").exists():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch

loop.training_batches = batches
loop.train(tiny_run.run_experiment(data), directory)
"""


def test_a_killed_process_resumes_as_if_nothing_had_happened(run, data, tmp_path):
    here = TESTS / "helpers"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    process = subprocess.run([sys.executable, "-c", KILLED, str(data), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert [line["step"] for line in history(tmp_path)] == [1, 2, 3, 4] and not (tmp_path / "metrics.json").exists()
    console = tiny_run.quiet()
    train(tiny_run.run_experiment(data), tmp_path, console)
    assert "at step 3 of 6" in console.file.getvalue()
    assert_same_run(tmp_path, run)


def test_a_finished_run_says_so_and_is_left_alone(run, data):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    console = tiny_run.quiet()
    assert train(tiny_run.run_experiment(data), run, console) == json.loads((run / "metrics.json").read_text())
    assert f"{run} is finished: 6 steps." in console.file.getvalue()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


# ---- what is refused ----


@pytest.mark.parametrize(
    "part, change, named",
    [
        ("model", {"pixel_mean": (0.0, 0.0, 0.0)}, "model.pixel_mean"),
        ("data", {"flip": False, "mask_size": 14}, "data.mask_size, data.flip"),
        ("train", {"seed": 1}, "train.seed"),
    ],
)
def test_another_run_in_the_same_directory_is_refused(run, data, monkeypatch, part, change, named):
    experiment = tiny_run.run_experiment(data)
    experiment = dataclasses.replace(experiment, **{part: dataclasses.replace(getattr(experiment, part), **change)})
    monkeypatch.setattr(loop, "initialise", lambda model, key: tiny.variables(model.config))
    with pytest.raises(InputError) as refusal:
        train(experiment, run, tiny_run.quiet())
    assert str(refusal.value) == f"{run} holds another run ({named} differ): choose another --directory, or give the same settings"


def test_more_steps_and_other_threads_are_the_same_run(run, data, monkeypatch):
    """It gets as far as building the step: what does not touch the result may change."""
    experiment = tiny_run.run_experiment(data, steps=8)
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, threads=1))

    class Reached(Exception):
        pass

    def reached(*_):
        raise Reached

    monkeypatch.setattr(loop, "make_train_step", reached)
    monkeypatch.setattr(loop, "initialise", lambda model, key: tiny.variables(model.config))
    for method in ("write_text", "unlink"):  # the run belongs to all tests
        monkeypatch.setattr(Path, method, lambda *_, **__: None)
    with pytest.raises(Reached):
        train(experiment, run, tiny_run.quiet())


def test_the_number_of_classes_must_be_the_data_sets(data, tmp_path):
    experiment = tiny_run.run_experiment(data)
    experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, num_classes=3))
    with pytest.raises(InputError, match=r"^model.num_classes is 3, but .*shapes.* has 7 classes; 0 takes the number from the data set$"):
        train(experiment, tmp_path, tiny_run.quiet())


# ---- what the loop gives the step, and what it makes of what comes back ----


def test_a_diverged_run_names_the_images_and_resumes_before_them(run, data, tmp_path, monkeypatch):
    """A weight becomes infinite before the fifth step; the loop looks every fourth step and at the end."""
    make = loop.make_train_step

    def fragile(*args):
        step = make(*args)

        def broken(state, batch):
            if int(state.step) == 4:
                kernel = state.params["mask"]["conv1"]["kernel"]
                params = {**state.params, "mask": {**state.params["mask"], "conv1": {**state.params["mask"]["conv1"], "kernel": kernel * jnp.inf}}}
                state = state.replace(params=params)
            return step(state, batch)

        return broken

    source = records.open_dataset(data, "train")
    batches = training_batches(source, tiny_run.run_experiment(data).data, steps=6, images_per_process=8, seed=0, start=4)
    ids = ", ".join(map(str, next(batches)[1].image_ids.tolist()))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_train_step", fragile)
        with pytest.raises(DivergedError, match=rf"not finite.* at step 4, with the images of id {ids} and .* resumes from its last checkpoint"):
            train(tiny_run.run_experiment(data, log_every=4), tmp_path, tiny_run.quiet())
    assert not (tmp_path / "metrics.json").exists()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]  # that of the sixth step was not written
    train(tiny_run.run_experiment(data), tmp_path, tiny_run.quiet())
    tiny.assert_same(tiny_run.saved_state(tmp_path, 6)[0], tiny_run.saved_state(run, 6)[0])


@pytest.mark.parametrize("failures, allowed, halts", [(0, 0, False), (2, 2, False), (3, 2, True), (1, 0, True)])
def test_failed_steps_are_told_and_more_than_allowed_halt(tmp_path, failures, allowed, halts):
    """``failures`` counts those before the host looked last, too."""
    console, unseen = tiny_run.quiet(), deque([(7, [70, 71], jnp.zeros(())), (8, [80, 81], jnp.float32(failures > 0))])
    state = SimpleNamespace(failures=jnp.int32(failures))
    told = "at step 8, with the images of id 80, 81; nothing was learned from it"
    if halts:
        with pytest.raises(DivergedError, match=f"{told}.*train.learning_rate.*train.bad_steps.*resumes from its last checkpoint"):
            loop._look_at_failures(state, unseen, allowed, tmp_path, console)
    else:
        loop._look_at_failures(state, unseen, allowed, tmp_path, console)
        assert (told in console.file.getvalue()) == (f"{failures} of train.bad_steps {allowed}." in console.file.getvalue()) == (failures > 0)
    assert not unseen


class Given(Exception):
    """Carries what the loop gave to the step."""


def given_to_the_step(monkeypatch, experiment: Experiment, directory: Path):
    def make_train_step(*_):
        def step(state, batch):
            raise Given(state, batch)

        return step

    monkeypatch.setattr(loop, "make_train_step", make_train_step)
    monkeypatch.setattr(loop, "initialise", lambda model, key: tiny.variables(model.config))
    with pytest.raises(Given) as given:
        train(experiment, directory, tiny_run.quiet())
    return given.value.args


def test_a_batch_has_an_axis_of_devices_also_without_keypoints(tmp_path, monkeypatch):
    config = shapes.ShapesConfig(train_images=20, validation_images=1, image_sizes=((64, 64),), min_size=12, max_size=50)
    info = shapes.INFO._replace(keypoint_names=(), keypoint_flip=(), skeleton=())

    def without_keypoints(split):
        for record in shapes.generate(config, split):
            yield record._replace(objects=record.objects._replace(keypoints=record.objects.keypoints[:, :0]))

    records.write(tmp_path / "data", info, {split: without_keypoints(split) for split in shapes.SPLITS})
    experiment = tiny_run.run_experiment(tmp_path / "data", images_per_device=2)
    state, batch = given_to_the_step(monkeypatch, experiment, tmp_path / "run")
    assert batch.images.shape == (8, 2, 64, 96, 3) and batch.images.dtype == np.uint8
    assert batch.boxes.shape == (8, 2, tiny.SLOTS, 4) and batch.valid.shape == (8, 2, tiny.SLOTS)
    assert batch.keypoints.shape == (8, 2, tiny.SLOTS, 0, 3)
    assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(state)} == {8}
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state))


def test_the_run_tells_what_it_is(run, data, tmp_path, monkeypatch):
    console = tiny_run.quiet()
    monkeypatch.setattr(tiny_run, "quiet", lambda: console)
    given_to_the_step(monkeypatch, tiny_run.run_experiment(data, images_per_device=2), tmp_path)
    told = console.file.getvalue()
    assert "7 classes, 20 training and 10 validation images" in told
    assert "Batch 16 = 8 x 2 images, so learning rate 0.04 (0.02 for 8); 6 steps are 4.8 epochs" in told
