"""A run of a few steps, really trained: one for all tests that look at what a run leaves behind."""

import dataclasses
import io
from functools import cache
from pathlib import Path

import jax
import tiny
from rich.console import Console

from mrcnn_jax.checkpoint import Checkpoints
from mrcnn_jax.config import Experiment
from mrcnn_jax.data import shapes
from mrcnn_jax.models.mask_rcnn import MaskRCNN, initialise
from mrcnn_jax.training.loop import train
from mrcnn_jax.training.optimizer import make_optimizer
from mrcnn_jax.training.step import create_state

STEPS, CHECKPOINT = 6, 3


@cache
def dataset(base: Path) -> Path:
    """The embedded shapes, fewer and smaller; all landscape, so that one program trains on them."""
    directory = base / "tiny-shapes"
    shapes.prepare(directory, shapes.ShapesConfig(train_images=20, validation_images=10, image_sizes=((64, 64), (64, 96)), min_size=16, max_size=64))
    return directory


def run_experiment(data: Path, **settings) -> Experiment:
    """What trained_run trains."""
    model = tiny.model_config(num_classes=0)
    model = dataclasses.replace(model, box=dataclasses.replace(model.box, score_threshold=0.0))  # hardly trained, it is sure of nothing
    return tiny.experiment(model, {"dataset": str(data)}, **{"steps": STEPS, "checkpoint_every": CHECKPOINT, **settings})


@cache
def trained_run(base: Path) -> Path:
    """The directory of a run of six steps, one for all tests: look, but do not touch."""
    directory = base / "tiny-run"
    train(run_experiment(dataset(base)), directory, quiet())
    return directory


def quiet() -> Console:
    """A console whose output is kept in its file."""
    return Console(file=io.StringIO(), width=10_000)


def saved_state(directory: Path, step: int):
    """The training state of a checkpoint as plain arrays, and how many images it has seen."""
    checkpoints = Checkpoints(directory / "checkpoints", read_only=True)
    saved = checkpoints.read(step)
    checkpoints.close()
    model = MaskRCNN(saved.experiment.model)
    optimizer = make_optimizer(saved.experiment.train, saved.experiment.model, len(jax.devices()))
    return saved.state(jax.eval_shape(lambda: create_state(initialise(model, jax.random.key(0)), optimizer))), saved.images_seen
