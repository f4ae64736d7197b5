"""Every variant trains: on a batch of `shapes` each loss falls, and the gradient reaches every parameter that is to learn."""

import jax
import numpy as np
import pytest
import tiny
import tiny_run
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from variants import VARIANTS

from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.data.pipeline import training_batches
from mrcnn_jax.models.mask_rcnn import MaskRCNN
from mrcnn_jax.distributed import DEVICE_AXIS
from mrcnn_jax.models.resnet import frozen_modules
from mrcnn_jax.training.optimizer import make_optimizer
from mrcnn_jax.training.step import create_state, make_train_step

IMAGES = 2


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Two images of `shapes`, among them puppets with visible keypoints."""
    source = open_dataset(tiny_run.dataset(tmp_path_factory.getbasetemp()), "train")
    batches = training_batches(source, tiny.experiment().data, steps=20, images_per_process=IMAGES, seed=0)
    batch = next(batch for batch, _ in batches if (batch.keypoints[..., 2] == 2).sum() > 4)
    return jax.tree.map(lambda leaf: leaf[None], batch)


def is_frozen(name: str, config) -> bool:
    """By its place in the tree of parameters, whether a parameter keeps its value."""
    stages = tuple(f"['backbone']['{stage}" for stage in frozen_modules(config.backbone))
    return name.startswith(("['proposer']", *stages))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_loss_falls_and_every_parameter_learns(name, batch):
    config = VARIANTS[name]
    separate = config.rpn.training == "separate"
    experiment = tiny.experiment(config, optimizer="adamw", weight_decay=0.0, learning_rate=0.005, images_per_device=IMAGES, rpn_from="elsewhere" if separate else "")
    optimizer = make_optimizer(experiment.train, config, images_per_step=IMAGES)
    step = make_train_step(MaskRCNN(config), optimizer, experiment, jax.devices()[:1])
    everywhere = NamedSharding(Mesh(jax.devices()[:1], (DEVICE_AXIS,)), PartitionSpec())  # as the loop has it, so that nothing compiles twice
    state = jax.device_put(create_state(tiny.variables(config), optimizer), everywhere)
    before = tiny.names_and_leaves(state.params)
    history = []
    for _ in range(100 if "resnext" in name else 80):  # its box loss takes the longest to fall
        state, metrics = step(state, batch)
        history.append(jax.tree.map(float, metrics))
    assert int(state.failures) == 0 and all(np.isfinite(value) for line in history for value in line.values())
    losses = {"boxes": {"loss_class", "loss_box"}, "masks": {"loss_mask"}, "keypoints": {"loss_keypoint"}}
    terms = {"loss"}.union(*(losses[task] for task in config.tasks), set() if separate else {"loss_rpn_objectness", "loss_rpn_box"})
    assert set(history[0]) == terms | {"gradient_norm", "failed"}
    for term in terms:
        # from its highest: at first most positive RoIs are the objects themselves, whose boxes have nothing left to learn
        course = np.reshape([line[term] for line in history], (-1, 10)).mean(axis=1)
        assert course[-1] < 0.9 * course.max(), f"{term}: {course}"
    for parameter, value in tiny.names_and_leaves(state.params).items():
        assert (value != before[parameter]).any() != is_frozen(parameter, config), parameter
    jax.clear_caches()  # a program for each variant would fill the memory
