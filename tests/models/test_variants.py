"""Every variant trains: on a batch of shapes each loss falls and every trainable parameter changes."""

import jax
import numpy as np
import pytest
import tiny
import tiny_run
from flax.traverse_util import flatten_dict
from variants import COVERING, VARIANTS

from mrcnn_jax.config import ModelConfig, to_dict
from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.data.pipeline import training_batches
from mrcnn_jax.models.resnet import frozen_modules
from mrcnn_jax.models.systems import make_model
from mrcnn_jax.training.optimizer import make_optimizer
from mrcnn_jax.training.step import create_state, make_train_step

IMAGES = 2
LOSSES = {
    "boxes": {"loss_class", "loss_box"},
    "masks": {"loss_mask"},
    "keypoints": {"loss_keypoint"},
}


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Two images of shapes, among them puppets with visible keypoints."""
    source = open_dataset(tiny_run.dataset(tmp_path_factory.getbasetemp()), "train")
    batches = training_batches(source, tiny.experiment().data, steps=20, images_per_process=IMAGES, seed=0)
    batch = next(batch for batch, _ in batches if (batch.keypoints[..., 2] == 2).sum() > 4)
    return jax.tree.map(lambda leaf: leaf[None], batch)


def terms_of(config: ModelConfig) -> set[str]:
    """Names of a model's losses."""
    terms = set().union(*(LOSSES[task] for task in config.tasks))
    if config.system == "mnc":
        terms |= {"loss_box_class"}
        terms |= {f"{term}_2" for term in terms} if config.mnc.training_stages == 5 else set()
    rpn = set() if config.rpn.proposals_from else {"loss_rpn_objectness", "loss_rpn_box"}
    return {"loss"} | terms | rpn


def is_frozen(name: str, config: ModelConfig) -> bool:
    """Returns whether a parameter must keep its value, by its path."""
    stages = tuple(f"['backbone']['{stage}" for stage in frozen_modules(config.backbone))
    return name.startswith(("['proposer']", *stages))


def settings(config: ModelConfig) -> set:
    """The settings of the parts that a model has, as (path, value)."""
    unused = {part for part in ("mask", "keypoint") if f"{part}s" not in config.tasks}
    unused |= set() if config.tasks else {"box", "roi", "pool"}
    fields = flatten_dict(to_dict(config))
    return {(path, str(value)) for path, value in fields.items() if path[0] not in unused}


def has_fallen(term: str, history: list[dict[str, float]]) -> bool:
    """Returns whether a loss is a tenth below its maximum, in means over 10 steps.

    Not below its beginning: at first most positive RoIs are the objects' own boxes, which need no regression.
    """
    means = np.reshape([line[term] for line in history], (-1, 10)).mean(axis=1)
    return means[-1] < 0.9 * means.max()


def test_covering_variants_have_every_setting():
    covered = set().union(*map(settings, COVERING.values()))
    missing = {name: settings(config) - covered for name, config in VARIANTS.items()}
    assert not any(missing.values()), missing
    assert len(COVERING) <= 9


@pytest.mark.parametrize(
    "config",
    [
        *(pytest.param(config, id=name) for name, config in COVERING.items()),
        *(
            pytest.param(config, id=name, marks=pytest.mark.slow)
            for name, config in VARIANTS.items()
            # ResNet-50s take longest and are among the covering ones
            if config.backbone.name == "resnet18" and config not in COVERING.values()
        ),
    ],
)
def test_every_loss_falls_and_every_parameter_learns(config, batch):
    experiment = tiny.experiment(
        config, optimizer="adamw", weight_decay=0.0, learning_rate=0.005, images_per_device=IMAGES
    )
    optimizer = make_optimizer(experiment.train, config, images_per_step=IMAGES)
    devices = jax.devices()[:1]
    step = make_train_step(make_model(config), optimizer, experiment, devices)
    state = jax.jit(create_state, static_argnums=1)(tiny.variables(config), optimizer)
    state = tiny.replicate(state, devices)
    before = tiny.names_and_leaves(state.params)
    terms = terms_of(config)
    history = []
    while len(history) < 150:
        for _ in range(10):
            state, metrics = step(state, batch)
            history.append(jax.tree.map(float, metrics))
        if len(history) > 10 and all(has_fallen(term, history) for term in terms):
            break

    assert int(state.failures) == 0
    assert all(np.isfinite(value) for line in history for value in line.values())
    assert set(history[0]) == terms | {"gradient_norm", "failed"}
    for term in terms:
        assert has_fallen(term, history), (term, [line[term] for line in history])
    for parameter, value in tiny.names_and_leaves(state.params).items():
        assert (value != before[parameter]).any() != is_frozen(parameter, config), parameter
    jax.clear_caches()  # programs of all variants together would fill the memory
