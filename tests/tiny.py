"""The smallest system that has every part, and batches for it."""

import dataclasses

import jax
import numpy as np

from mrcnn_jax.config import (
    BackboneConfig,
    BoxHeadConfig,
    DataConfig,
    EvaluationConfig,
    Experiment,
    MaskHeadConfig,
    ModelConfig,
    RoIConfig,
    RPNConfig,
    TrainConfig,
)
from mrcnn_jax.structures import Batch

CLASSES = 3
SLOTS = 4  # object slots of an image


def model_config(**backbone) -> ModelConfig:
    """ResNet-18, eight channels wide; about a tenth of a megabyte of parameters."""
    return ModelConfig(
        num_classes=CLASSES,
        backbone=BackboneConfig(**{"name": "resnet18", "width": 8, "norm": "group", "freeze_stages": 0, "pyramid_channels": 16, **backbone}),
        rpn=RPNConfig(
            anchor_sizes=(8, 16, 32, 64, 128), samples_per_image=32, pre_nms_train=16, post_nms_train=24, pre_nms_test=16, post_nms_test=16
        ),
        roi=RoIConfig(canonical_size=64, samples_per_image=12, positive_fraction=0.5),
        box=BoxHeadConfig(channels=32, candidates=24, detections=6),
        mask=MaskHeadConfig(pool_size=7, convolutions=1, channels=16),
    )


def experiment(model: ModelConfig | None = None, **train) -> Experiment:
    """One step as good as another: a constant learning rate, no evaluation on the way."""
    defaults = {"steps": 6, "images_per_device": 1, "learning_rate": 0.02, "reference_batch": 8, "warmup_steps": 0, "decay_steps": (), "clip_norm": 5.0}
    return Experiment(
        name="tiny",
        model=model or model_config(),
        data=DataConfig(short_edge=(64,), short_edge_test=64, long_edge=96, max_objects=SLOTS, mask_size=28, threads=2),
        train=TrainConfig(**{**defaults, "log_every": 1, "checkpoint_every": 3, **train}),
        evaluation=EvaluationConfig(images_per_device=1, pictures=2),
    )


def batch(counts, height: int = 64, width: int = 64, seed: int = 0) -> Batch:
    """Images of noise with ``counts[i]`` bright ellipses, whose classes are their colours. Only images[:60, :width] is not padding."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (len(counts), height, width, 3), dtype=np.uint8)
    images[:, 60:] = 0
    boxes, masks = np.zeros((len(counts), SLOTS, 4), np.float32), np.zeros((len(counts), SLOTS, 28, 28), np.uint8)
    classes = np.zeros((len(counts), SLOTS), np.int32)
    valid = np.arange(SLOTS) < np.asarray(counts)[:, None]
    y, x = np.mgrid[:60, :width] + 0.5
    inside = np.hypot(*(np.mgrid[:28, :28] - 13.5)) < 14
    for image, slot in zip(*np.nonzero(valid), strict=True):
        size = rng.uniform(14, 40, 2)
        corner = rng.uniform(0, 1, 2) * ((width, 60) - size)
        centre = corner + size / 2
        boxes[image, slot], masks[image, slot] = np.concatenate([corner, corner + size]), inside
        classes[image, slot] = rng.integers(CLASSES)
        ellipse = np.hypot((x - centre[0]) / size[0], (y - centre[1]) / size[1]) < 0.5
        images[image, :60][ellipse] = 250 * (np.arange(3) == classes[image, slot])
    return Batch(
        images=images, sizes=np.tile(np.int32([60, width]), (len(counts), 1)), boxes=boxes, classes=classes, valid=valid,
        crowd=np.zeros_like(valid), masks=masks, keypoints=np.zeros((len(counts), SLOTS, 0, 3), np.float32),
    )  # fmt: skip


def spread(whole: Batch, devices: int) -> Batch:
    """The batch with a leading axis of devices, as the training step takes it."""
    return jax.tree.map(lambda leaf: leaf.reshape(devices, len(leaf) // devices, *leaf.shape[1:]), whole)


def with_backbone(config: Experiment, **backbone) -> Experiment:
    """The experiment with another backbone."""
    model = dataclasses.replace(config.model, backbone=dataclasses.replace(config.model.backbone, **backbone))
    return dataclasses.replace(config, model=model)
