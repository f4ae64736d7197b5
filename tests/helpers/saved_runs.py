"""Writes directories of finished runs without training, and small data sets for them."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import tiny
import tiny_run
from example_records import letter, picture_of, record

from mrcnn_jax.checkpoint import CheckpointStore
from mrcnn_jax.config import Experiment, to_dict
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.training import run_setup
from mrcnn_jax.training.data_identity import contents_of
from mrcnn_jax.training.loop import train
from mrcnn_jax.training.optimizer import make_optimizer
from mrcnn_jax.training.step import create_state
from mrcnn_jax.training.warm_start import resolve_dataset_fields

INFO = DatasetInfo("set", (1, 2), ("a", "b"))
METRICS = {"bbox": {"AP": 1.0, "AP50": 2.0, "AP75": None}}
MASK, BOX = letter()


def image(id_: int, objects: int = 2, masks: bool = True, level: int = 255, **fields):
    """Returns a record with objects of both classes in turn."""
    classes = fields.pop("classes", [index % 2 for index in range(objects)])
    encoded = [MASK] * objects if masks else None
    one = record(picture_of(MASK) // 255 * level, [BOX] * objects, encoded, classes, **fields)
    return one._replace(image_id=id_, file_name=f"{id_}.png")


def write(directory: Path, train=None, validation=None, info: DatasetInfo = INFO) -> Path:
    """Writes a set of two training images and one validation image, unless others are given."""
    splits = {"train": train or [image(1), image(2)], "validation": validation or [image(3)]}
    write_dataset(directory, info, splits, overwrite=True)
    return directory


def saved_run(
    directory: Path, data: Path, steps: tuple[int, ...] = (6,), average_scale: float = 1.0
) -> Experiment:
    """Writes what a finished run leaves, without training; returns its experiment as it was given.

    The moving average is ``average_scale`` times the parameters.
    """
    experiment = tiny_run.run_experiment(data)
    splits = run_setup.open_splits(experiment.data)
    resolved = resolve_dataset_fields(experiment, splits[0])
    optimizer = make_optimizer(resolved.train, resolved.model, 8)
    state = jax.jit(create_state, static_argnums=(1, 2))(tiny.variables(resolved.model), optimizer, True)
    state = replace(state, averaged=jax.tree.map(lambda leaf: average_scale * leaf, state.averaged))
    with CheckpointStore(directory / "checkpoints") as store:
        for step in steps:
            store.save(step, state, 8 * step, resolved, splits[0].info, contents_of(splits))
    (directory / "experiment.json").write_text(json.dumps(to_dict(resolved)))
    (directory / "metrics.json").write_text(json.dumps(METRICS))
    return experiment


def repeat(experiment: Experiment, directory: Path) -> str:
    """Repeats the command of a finished run; returns what it prints."""
    console = tiny_run.recording_console()
    assert train(experiment, directory, console) == METRICS
    return console.file.getvalue()


class Started(Exception):
    """A run is about to take its first step."""
