"""A small detector with every part, and batches for it: seconds to compile, milliseconds to run."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from mrcnn_jax.config import (
    BackboneConfig,
    BoxHeadConfig,
    BranchPoolConfig,
    DataConfig,
    EvaluationConfig,
    Experiment,
    MaskHeadConfig,
    ModelConfig,
    RoIConfig,
    RPNConfig,
    TrainConfig,
)
from mrcnn_jax.models.systems import init_variables, make_model
from mrcnn_jax.structures import Batch
from mrcnn_jax.training.sharding import REPLICATED, device_mesh

CLASSES = 3
SLOTS = 4  # object slots of an image
MASK = 28  # side of the masks of a batch


def model_config(num_classes: int = CLASSES, **backbone) -> ModelConfig:
    """ResNet-18 eight channels wide, few anchors, few RoIs."""
    narrow = {"name": "resnet18", "width": 8, "norm": "group", "freeze_stages": 0, "pyramid_channels": 16}
    return ModelConfig(
        num_classes=num_classes,
        backbone=BackboneConfig(**{**narrow, **backbone}),
        rpn=RPNConfig(
            anchor_sizes=(8, 16, 32, 64, 128), samples_per_image=32, pre_nms_train=16, post_nms_train=24,
            pre_nms_test=16, post_nms_test=16,
        ),  # fmt: skip
        roi=RoIConfig(canonical_size=64, samples_per_image=12, positive_fraction=0.5),
        box=BoxHeadConfig(channels=32, max_candidates=24, max_detections=6),
        mask=MaskHeadConfig(pool=BranchPoolConfig(size=7), layers=1, channels=16),
    )


def experiment(model: ModelConfig | None = None, data: dict | None = None, **settings) -> Experiment:
    """Every step logged, a constant learning rate, 64 x 96 images."""
    edges = {"short_edge": (64,), "short_edge_test": 64, "long_edge": 96}
    rate = {"learning_rate": 0.02, "reference_batch": 8, "warmup_steps": 0, "decay_steps": (),
            "clip_norm": 5.0}  # fmt: skip
    return Experiment(
        name="tiny",
        model=model or model_config(),
        data=DataConfig(**{**edges, "max_objects": SLOTS, "mask_size": MASK, "threads": 2, **(data or {})}),
        train=TrainConfig(**{**rate, "images_per_device": 1, "log_every": 1, **settings}),
        evaluation=EvaluationConfig(images_per_device=1, pictures=2, picture_score=0.0),
    )


def variables(config: ModelConfig, seed: int = 0) -> dict:
    """Random variables of the detector (see ``jittered``)."""
    return jittered(_shapes(config), seed)


@cache
def _shapes(config):
    return jax.eval_shape(lambda: init_variables(make_model(config), jax.random.key(0)))


def jittered(shapes, seed: int = 0) -> dict:
    """Random variables, none of them zero, drawn by NumPy so that nothing is compiled."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        name = path[-1].key
        if name.endswith("kernel"):
            return jnp.asarray(noise / np.sqrt(np.prod(leaf.shape[:-1])))
        return jnp.asarray(np.exp(0.1 * noise) if name in ("scale", "var") else 0.1 * noise)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def batch(counts, height: int = 64, width: int = 64, seed: int = 0) -> Batch:
    """Noise with ``counts[i]`` ellipses in the colour of their class; the last 4 rows are padding."""
    rng, number, inner = np.random.default_rng(seed), len(counts), height - 4
    images = np.zeros((number, height, width, 3), np.uint8)
    images[:, :inner] = rng.integers(0, 60, (number, inner, width, 3))
    boxes, classes = np.zeros((number, SLOTS, 4), np.float32), np.zeros((number, SLOTS), np.int32)
    masks = np.zeros((number, SLOTS, MASK, MASK), np.uint8)
    valid = np.arange(SLOTS) < np.asarray(counts)[:, None]
    y, x = np.mgrid[:inner, :width] + 0.5
    disk = np.hypot(*(np.mgrid[:MASK, :MASK] + 0.5 - MASK / 2)) < MASK / 2
    for image, slot in zip(*np.nonzero(valid), strict=True):
        size = rng.uniform(16, 40, 2)
        corner = rng.uniform(0, 1, 2) * ((width, inner) - size)
        centre, kind = corner + size / 2, rng.integers(CLASSES)
        ellipse = np.hypot((x - centre[0]) / size[0], (y - centre[1]) / size[1]) < 0.5
        images[image, :inner][ellipse] = 250 * (np.arange(3) == kind)
        boxes[image, slot] = np.concatenate([corner, corner + size])
        classes[image, slot], masks[image, slot] = kind, disk
    return Batch(
        images=images, sizes=np.tile(np.int32([inner, width]), (number, 1)), boxes=boxes, classes=classes,
        valid=valid, crowd=np.zeros_like(valid), masks=masks,
        has_mask=valid, keypoints=np.zeros((number, SLOTS, 0, 3), np.float32),
    )  # fmt: skip


def spread(whole: Batch, devices: int) -> Batch:
    """The batch with a leading axis of devices, as the training step takes it."""
    return jax.tree.map(lambda leaf: leaf.reshape(devices, len(leaf) // devices, *leaf.shape[1:]), whole)


def replicate(tree, devices):
    """The tree on all these devices, as the training loop puts it there, and safe to donate."""
    return jax.device_put(jax.tree.map(np.array, tree), NamedSharding(device_mesh(devices), REPLICATED))


def names_and_leaves(tree) -> dict[str, np.ndarray]:
    """Every array of a tree by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same(tree, expected) -> None:
    """Asserts equality of names, and of arrays to the last bit."""
    tree, expected = names_and_leaves(tree), names_and_leaves(expected)
    assert tree.keys() == expected.keys()
    for name in tree:
        np.testing.assert_array_equal(tree[name], expected[name], err_msg=name)
