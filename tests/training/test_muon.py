"""Muon against singular value decompositions and optax's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest
import tiny

from mrcnn_jax.config import TrainConfig
from mrcnn_jax.models.systems import init_variables, make_model
from mrcnn_jax.training.muon import LEAST_SIDE, MOMENTUM, UPDATE_RMS, orthogonalize, scale_by_muon
from mrcnn_jax.training.optimizer import make_optimizer


@pytest.mark.parametrize("shape", [(20, 45), (45, 20)])
def test_orthogonalize_keeps_singular_vectors_and_makes_their_values_about_one(shape):
    rng = np.random.default_rng(0)
    left, values, right = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    values = values * np.logspace(0, -1, len(values))  # a momentum is far from orthogonal
    found = orthogonalize(jnp.float32(1e4 * (left * values) @ right))
    rotated = left.T @ np.float64(found) @ right.T
    assert (np.abs(np.diag(rotated) - 1) < 0.35).all()
    np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), atol=1e-4)


SHAPES = {"dense": (40, 24), "kernel": (3, 3, 16, 32), "bias": (32,), "classes": (32, LEAST_SIDE - 1)}


def some_gradient(seed):
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return {
        name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }


def test_first_update_equals_that_of_optax():
    gradient = some_gradient(0)
    found, _ = scale_by_muon().update(gradient, scale_by_muon().init(gradient), gradient)
    windows = {"kernel": optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)}
    muon, kernel = (
        optax.contrib.scale_by_muon(weight_dimension_numbers=windows),
        {"kernel": gradient["kernel"]},
    )
    update, _ = muon.update(kernel, muon.init(kernel))
    np.testing.assert_allclose(found["kernel"], UPDATE_RMS * 12 * update["kernel"], rtol=2e-4, atol=2e-5)
    adam, _ = optax.scale_by_adam().update(gradient, optax.scale_by_adam().init(gradient))
    for name in ("bias", "classes"):
        np.testing.assert_allclose(found[name], adam[name], rtol=1e-6, err_msg=name)
    rms = [np.sqrt(np.mean(np.square(found[name]))) for name in ("dense", "kernel")]
    assert rms == pytest.approx([UPDATE_RMS, UPDATE_RMS], rel=0.2)


def test_momentum_is_nesterovs():
    first, second = some_gradient(0), some_gradient(1)
    _, state = scale_by_muon().update(first, scale_by_muon().init(first))
    found, _ = scale_by_muon().update(second, state)
    sums = jax.tree.map(lambda a, b: b + MOMENTUM * (b + MOMENTUM * a), first, second)
    expected, _ = scale_by_muon().update(sums, scale_by_muon().init(sums))
    for name in ("dense", "kernel"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_layer_without_gradient_has_no_update():
    gradient = {"kernel": jnp.zeros((32, 32))}
    updates, _ = scale_by_muon().update(gradient, scale_by_muon().init(gradient))
    assert not np.any(updates["kernel"])


def test_hidden_layers_keep_one_moment_and_frozen_stages_none():
    model = tiny.model_config(freeze_stages=2)
    params = jax.eval_shape(lambda: init_variables(make_model(model), jax.random.key(0)))["params"]
    optimizer = make_optimizer(dataclasses.replace(TrainConfig(), optimizer="muon"), model, 16)
    kept = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(optimizer.init, params)) if leaf.ndim)
    expected = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        hidden = leaf.ndim > 1 and min(leaf.shape[-1], leaf.size // leaf.shape[-1]) >= LEAST_SIDE
        frozen = path[0].key == "backbone" and path[1].key.startswith(("stem", "res2"))
        expected += 0 if frozen else leaf.size if hidden else 2 * leaf.size
    assert kept == expected
