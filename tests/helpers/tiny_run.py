"""A run of a few steps, really trained, shared by the tests of what a run leaves behind."""

import dataclasses
import io
from functools import cache
from pathlib import Path

import jax
import tiny
from rich.console import Console

from mrcnn_jax.checkpoint import CheckpointStore
from mrcnn_jax.config import Experiment
from mrcnn_jax.data import shapes
from mrcnn_jax.models.systems import init_variables, make_model
from mrcnn_jax.training.loop import train
from mrcnn_jax.training.optimizer import make_optimizer
from mrcnn_jax.training.step import TrainState, create_state

STEPS, CHECKPOINT_EVERY = 6, 3
_SIZES = ((64, 64), (64, 96))  # all landscape, so that one program trains on them


@cache
def dataset(base: Path) -> Path:
    """Writes few and small images of the embedded shapes."""
    directory = base / "tiny-shapes"
    config = shapes.ShapesConfig(
        train_images=20, validation_images=10, image_sizes=_SIZES, min_size=16, max_size=64
    )
    shapes.prepare(directory, config)
    return directory


def run_experiment(data: Path, **settings) -> Experiment:
    """Returns the experiment that ``trained_run`` trains, with other fields of ``train``."""
    model = tiny.model_config(num_classes=0)
    box = dataclasses.replace(model.box, score_threshold=0.0)  # after a few steps every score is low
    settings = {"steps": STEPS, "checkpoint_every": CHECKPOINT_EVERY, "ema_decay": 0.5, **settings}
    return tiny.experiment(dataclasses.replace(model, box=box), {"dataset": str(data)}, **settings)


@cache
def trained_run(base: Path) -> Path:
    """Returns the directory of a run of six steps; shared, so not to be changed."""
    directory = base / "tiny-run"
    train(run_experiment(dataset(base)), directory, recording_console())
    return directory


def recording_console() -> Console:
    """Returns a console that writes to its ``file`` in memory."""
    return Console(file=io.StringIO(), width=10_000)


def saved_state(directory: Path, step: int) -> tuple[TrainState, int]:
    """Returns the training state of a checkpoint as NumPy arrays, and the number of images seen."""
    store = CheckpointStore(directory / "checkpoints", read_only=True)
    checkpoint = store.restore(step)
    store.close()
    config = checkpoint.experiment
    optimizer = make_optimizer(config.train, config.model, len(jax.devices()))
    template = _state_shapes(config.model, optimizer)
    return checkpoint.restore_state(template), checkpoint.images_seen


def _state_shapes(model, optimizer):
    return jax.eval_shape(
        lambda: create_state(init_variables(make_model(model), jax.random.key(0)), optimizer, average=True)
    )
