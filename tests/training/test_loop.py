"""Whole runs, small but real: files, resuming, and settings that are rejected."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_run
from jax.errors import JaxRuntimeError

from mrcnn_jax.config import Experiment, read_experiment
from mrcnn_jax.data import shapes
from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.data.pipeline import training_batches
from mrcnn_jax.errors import HostLostError, InputError
from mrcnn_jax.training import loop, run_setup
from mrcnn_jax.training.loggers import Logger
from mrcnn_jax.training.logging import SPEED_METRICS
from mrcnn_jax.training.loop import train
from mrcnn_jax.training.skipped_steps import DivergedError


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_run.dataset(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tiny_run.trained_run(tmp_path_factory.getbasetemp())


def history(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


def training_history(directory: Path) -> list[dict]:
    """Returns the reproducible entries of the training lines."""
    return [
        {name: value for name, value in line.items() if name not in SPEED_METRICS}
        for line in history(directory)
        if "loss" in line
    ]


def change(experiment: Experiment, part: str, **fields) -> Experiment:
    return dataclasses.replace(
        experiment, **{part: dataclasses.replace(getattr(experiment, part), **fields)}
    )


def assert_same_run(directory: Path, expected: Path) -> None:
    """Compares state, position in the data and history bit for bit."""
    state, images_seen = tiny_run.saved_state(directory, tiny_run.STEPS)
    expected_state, expected_images_seen = tiny_run.saved_state(expected, tiny_run.STEPS)
    tiny.assert_same(state, expected_state)
    assert images_seen == expected_images_seen == 8 * tiny_run.STEPS
    assert training_history(directory) == training_history(expected)


# ---- files of a run ----


def test_train_writes_the_documented_files(run):
    assert {path.name for path in run.iterdir()} == {
        "checkpoints", "experiment.json", "history.jsonl", "metrics.csv", "curves.png", "tensorboard",
        "metrics.json", "predictions.png",
    }  # fmt: skip
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["3", "6"]
    assert any((run / "tensorboard").glob("events.*"))
    for picture in ("curves.png", "predictions.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")


def test_train_writes_the_experiment_with_the_number_of_classes(run, data):
    expected = change(tiny_run.run_experiment(data), "model", num_classes=len(shapes.KINDS))
    assert read_experiment(run / "experiment.json") == expected


def test_metrics_are_the_twelve_of_coco_for_boxes_and_masks(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics) == ["bbox", "segm"]
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    for values in metrics.values():
        assert list(values) == names
        assert values["APl"] is None  # no object in these images is larger than 96 x 96 pixels
        assert all(0 <= value <= 100 for name, value in values.items() if name not in ("APl", "ARl"))


def test_history_has_a_line_per_step_and_the_final_evaluation(run):
    lines = history(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 6]
    losses = {"loss", "loss_rpn_objectness", "loss_rpn_box", "loss_class", "loss_box", "loss_mask"}
    for line in lines[:-1]:
        assert line.keys() == {"step", *losses, "gradient_norm", "learning_rate", *SPEED_METRICS}
        assert all(np.isfinite(value) for value in line.values()) and line["images_per_second"] > 0
        assert line["learning_rate"] == pytest.approx(0.02)
    metrics = json.loads((run / "metrics.json").read_text())
    kinds, names = ("bbox", "segm"), ("AP", "AP50", "AP75")
    expected = {f"{kind}/{name}": metrics[kind][name] for kind in kinds for name in names}
    assert lines[-1] == {"step": 6, **expected}


def test_training_changes_every_parameter(run):
    early, late = (tiny.names_and_leaves(tiny_run.saved_state(run, step)[0].params) for step in (3, 6))
    assert all((early[name] != late[name]).any() for name in early)


# ---- resuming ----


def test_resumed_run_equals_an_uninterrupted_one(run, data, tmp_path):
    """The first part also evaluates along the way, which changes nothing."""
    first = train(
        tiny_run.run_experiment(data, steps=3, evaluate_every=2), tmp_path, tiny_run.recording_console()
    )
    assert set(first) == {"bbox", "segm"}
    assert [line["step"] for line in history(tmp_path) if "segm/AP" in line] == [2, 3]
    console = tiny_run.recording_console()
    metrics = train(tiny_run.run_experiment(data), tmp_path, console)
    assert f"Resumed {tmp_path} at step 3 of 6." in console.file.getvalue()
    assert_same_run(tmp_path, run)
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == json.loads((run / "metrics.json").read_text())


def test_finished_run_is_reported_and_left_unchanged(run, data):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    console = tiny_run.recording_console()
    metrics = train(tiny_run.run_experiment(data), run, console)
    assert metrics == json.loads((run / "metrics.json").read_text())
    assert f"{run} is finished: 6 steps." in console.file.getvalue()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


class ClosedLogger(Logger):
    """Notes that it is closed."""

    closed = False

    def close(self):
        self.closed = True


@pytest.mark.parametrize("message, error", [
    ("UNAVAILABLE: connection reset by peer", HostLostError), ("INVALID_ARGUMENT: shapes", JaxRuntimeError),
])  # fmt: skip
def test_errors_that_come_again_are_not_those_of_a_lost_process(monkeypatch, tmp_path, message, error):
    def fail(*_):
        raise JaxRuntimeError(message)

    monkeypatch.setattr(loop, "_train", fail)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(error, match=message):
        train(tiny.experiment(), tmp_path)


def test_diverged_run_names_images_and_resumes_before_the_skipped_step(run, data, tmp_path, monkeypatch):
    """A weight becomes infinite before step 5; flags are checked every fourth step and at the end."""
    make = run_setup.make_train_step

    def with_infinite_weight(*args):
        step = make(*args)

        def damaged(state, batch):
            if int(state.step) == 4:
                conv1 = {**state.params["mask"]["conv1"]}
                conv1["kernel"] = conv1["kernel"] * jnp.inf
                mask = {**state.params["mask"], "conv1": conv1}
                state = state.replace(params={**state.params, "mask": mask})
            return step(state, batch)

        return damaged

    experiment = tiny_run.run_experiment(data)
    source = open_dataset(data, "train")
    batches = training_batches(source, experiment.data, steps=6, images_per_process=8, seed=0, start=4)
    ids = ", ".join(map(str, next(batches)[1].image_ids.tolist()))
    message = rf"skipped step 4 \(image ids {ids}\) and .* is not finite.* resumes from its last checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr(run_setup, "make_train_step", with_infinite_weight)
        with pytest.raises(DivergedError, match=message):
            changed = tiny_run.run_experiment(data, log_every=4)
            train(changed, tmp_path, tiny_run.recording_console(), loggers=[logger := ClosedLogger()])
    assert logger.closed and not (tmp_path / "metrics.json").exists()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    train(experiment, tmp_path, tiny_run.recording_console())
    tiny.assert_same(tiny_run.saved_state(tmp_path, 6)[0], tiny_run.saved_state(run, 6)[0])


# ---- settings of a run ----


@pytest.mark.parametrize(
    "part, fields, named",
    [
        ("model", {"pixel_mean": (0.0, 0.0, 0.0)}, "model.pixel_mean"),
        ("data", {"padding_divisor": 32, "mask_size": 14}, "data.mask_size, data.padding_divisor"),
        ("train", {"seed": 1}, "train.seed"),
    ],
)
def test_resuming_rejects_other_settings(run, data, part, fields, named):
    with pytest.raises(InputError) as error:
        train(change(tiny_run.run_experiment(data), part, **fields), run, tiny_run.recording_console())
    assert str(error.value) == (
        f"{run} holds another run ({named} differ): choose another --directory, or give the same settings"
    )


def test_resuming_accepts_more_steps_and_other_threads(run, data, monkeypatch):
    experiment = change(tiny_run.run_experiment(data, steps=8), "data", threads=1)

    class StepReached(Exception):
        pass

    def stop(*_):
        raise StepReached

    monkeypatch.setattr(run_setup, "make_train_step", stop)
    monkeypatch.setattr(run_setup, "_write_experiment", lambda *_: None)  # the run is shared
    with pytest.raises(StepReached):
        train(experiment, run, tiny_run.recording_console())


def test_number_of_classes_must_match_the_data_set(data, tmp_path):
    experiment = change(tiny_run.run_experiment(data), "model", num_classes=3)
    message = r"^model.num_classes is 3, but .*shapes.* has 7 classes; 0 takes the number from the data set$"
    with pytest.raises(InputError, match=message):
        train(experiment, tmp_path, tiny_run.recording_console())


# ---- input of the step ----


class StepInput(Exception):
    """Carries the arguments of the training step out of ``train``."""


@pytest.fixture
def step_input(monkeypatch):
    """``step_input(experiment, directory)``: state and batch of the first step, and the console."""

    def make_train_step(*_):
        def step(state, batch):
            raise StepInput(state, batch)

        return step

    def capture(experiment, directory):
        console = tiny_run.recording_console()
        with pytest.raises(StepInput) as captured:
            train(experiment, directory, console)
        return *captured.value.args, console.file.getvalue()

    monkeypatch.setattr(run_setup, "make_train_step", make_train_step)
    monkeypatch.setattr(run_setup, "init_variables", lambda model, key: tiny.variables(model.config))
    return capture


def test_batches_have_a_device_axis_and_states_are_replicated(tmp_path, step_input):
    """On a data set without keypoints, whose arrays have an axis of length 0."""
    config = shapes.ShapesConfig(
        train_images=20, validation_images=1, image_sizes=((64, 64),), min_size=12, max_size=50
    )
    info = shapes.INFO._replace(keypoint_names=(), keypoint_flip=(), skeleton=())

    def without_keypoints(split):
        for record in shapes.generate(config, split):
            objects = record.objects
            yield record._replace(objects=objects._replace(keypoints=objects.keypoints[:, :0]))

    splits = {split: without_keypoints(split) for split in shapes.SPLITS}
    write_dataset(tmp_path / "data", info, splits)
    experiment = tiny_run.run_experiment(tmp_path / "data", images_per_device=2)
    state, batch, _ = step_input(experiment, tmp_path / "run")
    assert batch.images.shape == (8, 2, 64, 96, 3) and batch.images.dtype == np.uint8
    assert batch.boxes.shape == (8, 2, tiny.SLOTS, 4) and batch.valid.shape == (8, 2, tiny.SLOTS)
    assert batch.keypoints.shape == (8, 2, tiny.SLOTS, 0, 3)
    assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(state)} == {8}
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state))


def test_run_describes_itself(data, tmp_path, step_input):
    *_, output = step_input(tiny_run.run_experiment(data, images_per_device=2), tmp_path)
    assert "7 classes, 20 training and 10 validation images" in output
    assert "Batch 16 = 8 x 2 images, so learning rate 0.04 (0.02 for 8); 6 steps are 4.8 epochs" in output
