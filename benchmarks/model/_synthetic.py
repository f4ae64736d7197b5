"""Experiments without a data set: synthetic batches and objects, photos, and the training step."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.config import Experiment
from mrcnn_jax.data.image_io import read_image
from mrcnn_jax.data.transforms import padded_size
from mrcnn_jax.models.systems import init_variables, make_model
from mrcnn_jax.structures import Batch, TrainState
from mrcnn_jax.training.optimizer import make_optimizer
from mrcnn_jax.training.step import create_state, make_train_step


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
    model = make_model(experiment.model, jnp.dtype(config.dtype), config.remat)
    images = config.images_per_device * len(devices or jax.devices())
    optimizer = make_optimizer(config, experiment.model, images)
    step = make_train_step(model, optimizer, experiment, devices=devices)
    average = bool(config.ema_decay)
    return step, lambda: create_state(init_variables(model, jax.random.key(0)), optimizer, average)


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


def make_photos(number: int, height: int, width: int) -> np.ndarray:
    """Returns landscape photos of MRCNN_TEST_DATA, stretched to a size, or noise, [number, h, w, 3]."""
    if not (folder := os.environ.get("MRCNN_TEST_DATA")):
        return np.random.default_rng(0).integers(0, 256, (number, height, width, 3), dtype=np.uint8)
    photos = map(read_image, sorted(Path(folder, "coco_instances", "val").glob("*.jpg")))
    landscape = (photo for photo in photos if photo.shape[1] > photo.shape[0])
    return np.stack([cv2.resize(photo, (width, height)) for photo in islice(landscape, number)])


def make_objects(number: int, objects: int, height: int, width: int) -> np.ndarray:
    """Returns boxes inside images of a size, [number, objects, 4]."""
    random = np.random.default_rng(1)
    side = random.uniform(0.05, 0.4, (number, objects, 2))
    corner = random.uniform(0, 1 - side)
    return np.float32(np.concatenate([corner, corner + side], axis=-1) * [width, height, width, height])
