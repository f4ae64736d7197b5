"""The learning rate by step, and the update rule against torch's written out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from mrcnn_jax.config import ModelConfig, TrainConfig
from mrcnn_jax.config.rescale_schedule import with_epochs
from mrcnn_jax.models.systems import init_variables, make_model
from mrcnn_jax.training.optimizer import make_optimizer, make_schedule, scaled_learning_rate

SCHEDULE = TrainConfig(
    steps=100, learning_rate=0.02, warmup_steps=10, warmup_factor=0.1, decay_steps=(60, 80), decay_factor=0.1
)


@pytest.mark.parametrize(
    "step, rate",
    [(0, 0.002), (1, 0.0038), (5, 0.011), (9, 0.0182), (10, 0.02), (59, 0.02), (60, 0.002), (79, 0.002),
     (80, 0.0002), (99, 0.0002)],
)
def test_schedule_by_hand(step, rate):
    np.testing.assert_allclose(make_schedule(SCHEDULE, images_per_step=16)(step), rate, rtol=1e-5)


def test_no_warmup_starts_at_the_full_rate():
    schedule = make_schedule(dataclasses.replace(SCHEDULE, warmup_steps=0), 16)
    np.testing.assert_allclose([schedule(step) for step in (0, 1, 60)], [0.02, 0.02, 0.002], rtol=1e-6)


@pytest.mark.parametrize("images, rate", [(16, 0.02), (8, 0.01), (1, 0.00125), (256, 0.32)])
def test_the_rate_is_proportional_to_the_images_of_a_step(images, rate):
    assert scaled_learning_rate(SCHEDULE, images) == pytest.approx(rate)
    np.testing.assert_allclose(make_schedule(SCHEDULE, images)(30), rate, rtol=1e-6)


def rates(steps, **train):
    schedule = make_schedule(dataclasses.replace(SCHEDULE, **train), 16)
    return np.array([schedule(step) for step in steps])


def test_cosine_falls_from_the_warm_up_to_zero_at_the_last_step():
    expected = 0.02 * 0.5 * (1 + np.cos(np.pi * np.array([10, 50, 75, 100]) / 100))
    np.testing.assert_allclose(rates((10, 50, 75, 100), schedule="cosine"), expected, atol=1e-8)
    np.testing.assert_allclose(rates((0,), schedule="cosine"), 0.002, rtol=1e-5)


def test_one_cycle_rises_to_the_rate_and_falls_to_zero():
    found = rates(range(101), schedule="one_cycle")
    assert found.argmax() == 30 and found[30] == pytest.approx(0.02) and found[-1] < 1e-5
    assert (np.diff(found[:31]) > 0).all() and (np.diff(found[30:]) < 0).all()


def test_epochs_give_the_steps_and_move_the_decays():
    config = dataclasses.replace(SCHEDULE, epochs=12.0)
    found = with_epochs(config, images=1000, images_per_step=8)
    assert (found.steps, found.decay_steps, found.warmup_steps) == (1500, (900, 1200), 10)
    assert found.epochs == 0 and with_epochs(found, 1000, 8) == found  # as in its experiment.json
    assert with_epochs(config, 1000, 8, step=500, images_seen=4000) == found  # as when the run is resumed
    # on half as many devices from there on, 8,000 of the 12,000 images are left
    resumed = with_epochs(config, 1000, 4, step=500, images_seen=4000)
    assert (resumed.steps, resumed.decay_steps) == (2500, (1500, 2000))
    assert with_epochs(config, 1000, 8, step=2000, images_seen=16_000).steps == 1500
    assert with_epochs(SCHEDULE, 1000, 8) == SCHEDULE


def rule(model: ModelConfig | None = None, images: int = 16, **train):
    config = {"learning_rate": 0.1, "warmup_steps": 0, "decay_steps": (2,), "weight_decay": 0.05, **train}
    return make_optimizer(TrainConfig(**config), model or ModelConfig(), images)


def some_params(seed: int = 0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return {
        "backbone": {
            "stem": {"kernel": draw(3, 2)},
            "res2_0": {"conv1": {"kernel": draw(2, 2)}},
            "res3_0": {"conv1": {"kernel": draw(2, 2)}},
        },
        "fpn": {"output2": {"kernel": draw(2, 3), "bias": draw(3)}},
        "box": {"norm": {"scale": draw(4), "bias": draw(4)}},
    }


def is_frozen(name: str) -> bool:
    return "stem" in name or "res2" in name


def test_three_steps_of_torch_sgd():
    """As torch.optim.SGD: decay is added to the gradient, momentum is not dampened, then the rate applies."""
    optimizer, params = rule(), some_params()
    state = optimizer.init(params)
    expected, buffers = tiny.names_and_leaves(params), {}
    for step, rate in enumerate((0.1, 0.1, 0.01)):
        gradient = some_params(seed=step + 1)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        for name, leaf in tiny.names_and_leaves(gradient).items():
            if is_frozen(name):
                continue
            decayed = np.float64(leaf) + (0.05 * expected[name] if "kernel" in name else 0)
            buffers[name] = 0.9 * buffers.get(name, 0) + decayed
            expected[name] = expected[name] - rate * buffers[name]
        for name, leaf in tiny.names_and_leaves(params).items():
            np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_weight_decay_reaches_kernels_only(name):
    optimizer, params = rule(optimizer=name), some_params()
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    params, updates = tiny.names_and_leaves(params), tiny.names_and_leaves(updates)
    moved = {leaf for leaf, update in updates.items() if update.any()}
    assert moved == {"['backbone']['res3_0']['conv1']['kernel']", "['fpn']['output2']['kernel']"}
    for leaf in moved:
        np.testing.assert_allclose(updates[leaf], -0.1 * 0.05 * params[leaf], rtol=1e-6)


def test_clipping_excludes_frozen_stages_and_weight_decay():
    optimizer, params, gradient = rule(clip_norm=1.0), some_params(), some_params(seed=1)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    gradients = {name: leaf for name, leaf in tiny.names_and_leaves(gradient).items() if not is_frozen(name)}
    norm = np.sqrt(sum(np.sum(leaf.astype(np.float64) ** 2) for leaf in gradients.values()))
    assert norm > 1
    params, updates = tiny.names_and_leaves(params), tiny.names_and_leaves(updates)
    for name, leaf in gradients.items():
        decay = 0.05 * params[name] if "kernel" in name else 0
        expected = -0.1 * (leaf / norm + decay)
        np.testing.assert_allclose(updates[name], expected, rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_small_gradient_is_not_clipped():
    optimizer, params = rule(clip_norm=1.0, weight_decay=0.0), some_params()
    gradient = jax.tree.map(lambda leaf: leaf * 1e-3, some_params(seed=1))
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    update, bias = updates["fpn"]["output2"]["bias"], gradient["fpn"]["output2"]["bias"]
    np.testing.assert_allclose(update, -0.1 * bias, rtol=1e-6)


def size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name, stages", [("sgd", 0), ("sgd", 2), ("adamw", 5)])
def test_frozen_stages_have_no_update_and_no_optimizer_state(stages, name):
    config = tiny.model_config(freeze_stages=stages)
    params = jax.eval_shape(lambda: init_variables(make_model(config), jax.random.key(0)))["params"]
    optimizer = rule(config, optimizer=name)
    state = jax.eval_shape(optimizer.init, params)
    frozen = ("stem", "res2", "res3", "res4", "res5")[:stages]
    still = {name: part for name, part in params["backbone"].items() if name.startswith(frozen)}
    moments = {"sgd": 1, "adamw": 2}[name]
    kept = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert size(kept) == moments * (size(params) - size(still))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), params)
    updates, _ = jax.eval_shape(optimizer.update, ones, state, zeros)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_frozen_stages_do_not_move():
    optimizer, params = rule(), some_params()
    updates, _ = optimizer.update(some_params(seed=1), optimizer.init(params), params)
    for name, update in tiny.names_and_leaves(updates).items():
        assert update.any() != is_frozen(name), name


def test_stages_of_the_backbone_learn_slower_and_later():
    params = some_params()
    gradient = jax.tree.map(jnp.ones_like, params)
    trainable = dataclasses.replace(ModelConfig().backbone, freeze_stages=0)
    model = dataclasses.replace(ModelConfig(), backbone=trainable)
    options = {"momentum": 0.0, "weight_decay": 0.0, "decay_steps": ()}
    optimizer = rule(model, **options, layer_decay=0.5, freeze_backbone_steps=1)
    state, factors = optimizer.init(params), []
    for _ in range(2):
        updates, state = optimizer.update(gradient, state, params)
        backbone, heads = updates["backbone"], updates["fpn"]["output2"]["bias"][0]
        blocks = (backbone[name]["conv1"]["kernel"] for name in ("res2_0", "res3_0"))
        factors.append([float(stage[0, 0] / heads) for stage in (backbone["stem"]["kernel"], *blocks)])
    np.testing.assert_allclose(factors, [[0, 0, 0], [1 / 8, 1 / 4, 1 / 2]])


def test_a_run_may_be_resumed_with_another_layer_decay_and_freeze():
    params = some_params()
    changes = ({}, {"layer_decay": 0.5}, {"freeze_backbone_steps": 3})
    states = [rule(**change).init(params) for change in changes]
    assert len({jax.tree.structure(state) for state in states}) == 1
