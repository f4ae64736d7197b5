"""python -m benchmarks.model.measure [EXPERIMENT] [--steps N] [--objects N]: times the training step.

Runs on synthetic images, without a data set. Prints one JSON object: compilation time, median step time after
warm-up, images per second, and the compiler's memory figures.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from mrcnn_jax import presets
from mrcnn_jax.config import Experiment
from mrcnn_jax.data.transforms import padded_size
from mrcnn_jax.models.mask_rcnn import MaskRCNN, init_variables
from mrcnn_jax.structures import Batch
from mrcnn_jax.training.optimizer import make_optimizer
from mrcnn_jax.training.sharding import Sharding
from mrcnn_jax.training.step import TrainState, create_state, make_train_step


@dataclass(frozen=True)
class Options:
    """Time the training step of an experiment on synthetic landscape images."""

    experiment: tyro.conf.Positional[str] = "demo"
    """Name of a preset."""
    steps: int = 10
    """Number of timed steps."""
    objects: int = 8
    """Objects per image."""


def standalone(experiment: Experiment, classes: int = 8, keypoints: int = 7) -> Experiment:
    """Returns the experiment with the numbers of classes and keypoints that its data set would give it."""
    model = experiment.model
    keypoint = replace(model.keypoint, num_keypoints=model.keypoint.num_keypoints or keypoints)
    model = replace(model, num_classes=model.num_classes or classes, keypoint=keypoint)
    return replace(experiment, model=model)


def make_step(
    experiment: Experiment, devices: Sequence[jax.Device] | None = None
) -> tuple[Any, Callable[[], TrainState]]:
    """Returns the training step for devices, all by default, and a function that makes its first state."""
    config = experiment.train
    model = MaskRCNN(experiment.model, jnp.dtype(config.dtype), config.remat)
    images = config.images_per_device * len(devices or jax.devices())
    optimizer = make_optimizer(config, experiment.model, images)
    step = make_train_step(model, optimizer, experiment, devices=devices)
    return step, lambda: create_state(init_variables(model, jax.random.key(0)), optimizer)


def synthetic_batch(
    experiment: Experiment, devices: int, objects: int | Sequence[int], seed: int = 0, portrait: bool = False
) -> Batch:
    """Returns noise images with random boxes and keypoints, of shape [devices, images_per_device, ...].

    The experiment has numbers of classes and keypoints; ``objects`` is the number of all or of each image.
    """
    random, data = np.random.default_rng(seed), experiment.data
    lead = (devices, experiment.train.images_per_device)
    height, width = padded_size(data, portrait)
    slots, side = data.max_objects, data.mask_size
    corner = random.uniform(0, 0.7, (*lead, slots, 2))
    boxes = np.concatenate([corner, corner + random.uniform(0.05, 0.3, corner.shape)], axis=-1)
    boxes *= [width, height, width, height]
    return Batch(
        images=random.integers(0, 256, (*lead, height, width, 3), dtype=np.uint8),
        sizes=np.broadcast_to(np.array([height, width], np.int32), (*lead, 2)),
        boxes=boxes.astype(np.float32),
        classes=random.integers(0, experiment.model.num_classes, (*lead, slots)).astype(np.int32),
        valid=np.broadcast_to(np.arange(slots) < np.asarray(objects)[..., None], (*lead, slots)),
        crowd=np.zeros((*lead, slots), bool),
        masks=np.ones((*lead, slots, side, side), np.uint8),
        has_mask=np.ones((*lead, slots), bool),
        keypoints=_keypoints(random, boxes, experiment.model.keypoint.num_keypoints),
    )


def _keypoints(random: np.random.Generator, boxes: np.ndarray, number: int) -> np.ndarray:
    """Returns visible keypoints at random places in their boxes, [..., number, 3]."""
    place = random.uniform(size=(*boxes.shape[:-1], number, 2))
    points = boxes[..., None, :2] + place * (boxes[..., None, 2:] - boxes[..., None, :2])
    return np.concatenate([points, np.full_like(points[..., :1], 2)], axis=-1).astype(np.float32)


def measure(options: Options) -> dict[str, object]:
    """Compiles and times the step; returns the figures."""
    experiment, devices = standalone(presets.get(options.experiment)), jax.local_device_count()
    images = devices * experiment.train.images_per_device
    step, make_state = make_step(experiment)
    state = Sharding(experiment.train.parallel).replicate(make_state())
    batch = synthetic_batch(experiment, devices, options.objects)
    begin = time.perf_counter()
    memory = step.lower(state, batch).compile().memory_analysis()
    compile_seconds, seconds = time.perf_counter() - begin, []
    for _ in range(2 + options.steps):  # the first two warm up
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch))
        seconds.append(time.perf_counter() - start)
    step_seconds = float(np.median(seconds[2:]))
    return {
        "experiment": options.experiment,
        "device": f"{devices} x {jax.devices()[0].device_kind}",
        "images_per_step": images,
        "compile_seconds": round(compile_seconds, 2),
        "step_seconds": round(step_seconds, 4),
        "images_per_second": round(images / step_seconds, 2),
        "temporary_bytes": memory.temp_size_in_bytes,
        "loss": float(metrics["loss"]),
    }


if __name__ == "__main__":
    print(json.dumps(measure(tyro.cli(Options, prog="python -m benchmarks.model.measure")), indent=1))
