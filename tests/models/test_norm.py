"""Normalisation layers: collections, formulas, and batch norm over devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mrcnn_jax.config import BackboneConfig
from mrcnn_jax.distributed import DEVICE_AXIS
from mrcnn_jax.models.mask_rcnn import MaskRCNN
from mrcnn_jax.models.norm import BatchNorm, FrozenBatchNorm, GroupNorm
from mrcnn_jax.models.resnet import ResNet
from mrcnn_jax.models.systems import init_variables


@pytest.mark.parametrize(
    "norm, collections",
    [("frozen", {"params", "frozen"}), ("batch", {"params", "batch_stats"}), ("group", {"params"})],
)
def test_collections_of_each_kind_of_normalisation(norm, collections):
    model = MaskRCNN(tiny.model_config(norm=norm))
    variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    assert set(variables) == collections
    trained = jax.tree_util.tree_leaves_with_path(variables["params"]["backbone"])
    vectors = [path for path, _ in trained if path[-1].key != "kernel"]
    assert bool(vectors) == (norm != "frozen")  # the backbone's convolutions have no bias
    if norm == "frozen":
        frozen = jax.tree_util.tree_leaves_with_path(variables["frozen"])
        assert {path[-1].key for path, _ in frozen} == {"scale", "bias", "mean", "var"}


def test_frozen_batch_norm_is_a_fixed_affine_map():
    rng = np.random.default_rng(0)
    shapes = (2, 3, 3, 5), 5, 5, 5
    x, scale, bias, mean = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    var = rng.uniform(1e-4, 2, 5).astype(np.float32)
    given = {"frozen": {"scale": scale, "bias": bias, "mean": mean, "var": var}}
    out = FrozenBatchNorm(epsilon=1e-3).apply(given, x)
    np.testing.assert_allclose(out, (x - mean) / np.sqrt(var + 1e-3) * scale + bias, atol=2e-5, rtol=2e-5)
    fresh = FrozenBatchNorm(epsilon=0.0).init(jax.random.key(0), x)
    np.testing.assert_allclose(FrozenBatchNorm(epsilon=0.0).apply(fresh, x), x, rtol=1e-6)


def test_frozen_stages_keep_their_running_statistics():
    config = BackboneConfig(name="resnet18", width=8, norm="batch", freeze_stages=2, features="c4")
    model, images = ResNet(config), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def changed(variables, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])[1]

    traced = jax.make_jaxpr(changed, axis_env=[(DEVICE_AXIS, 1)])(variables, images).jaxpr
    kept = {var for var in traced.outvars if var in traced.invars}
    paths = jax.tree_util.tree_leaves_with_path({"batch_stats": variables["batch_stats"]})
    paths = [jax.tree_util.keystr(path) for path, _ in paths]
    names = {name: var in kept for name, var in zip(paths, traced.outvars, strict=True)}
    assert len(names) > 20
    for name, is_kept in names.items():
        assert is_kept == ("stem" in name or "res2" in name), name


@pytest.mark.parametrize("channels, groups", [(64, 32), (48, 16), (8, 8)])
def test_group_norm_has_32_groups_or_the_most_that_divide(channels, groups):
    x = 3 + 2 * np.random.default_rng(0).standard_normal((2, 4, 4, channels)).astype(np.float32)
    out = GroupNorm().apply(GroupNorm().init(jax.random.key(0), x), x)
    grouped = x.reshape(2, 16, groups, -1).astype(np.float64)
    mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    expected = (grouped - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(out, expected.reshape(x.shape), atol=1e-4)


@pytest.mark.parametrize("devices", [1, 2])
def test_batch_norm_weights_every_valid_entry_equally(devices):
    """Statistics, outputs and running averages are those of the valid entries, on however many devices."""
    rng = np.random.default_rng(0)
    x = (2 + 3 * rng.standard_normal((8, 3, 2, 5))).astype(np.float32)
    valid = np.array([1, 0, 1, 1, 0, 0, 0, 0], bool)  # none on the second device
    layer = BatchNorm(epsilon=1e-3, train=True)
    variables = BatchNorm(epsilon=1e-3).init(jax.random.key(0), x)
    split = [array.reshape(devices, -1, *array.shape[1:]) for array in (x, valid)]
    train = partial(layer.apply, variables, mutable=["batch_stats"])
    apply = jax.vmap(train, axis_name=DEVICE_AXIS)
    out, updated = apply(*split)
    counted = x[valid].astype(np.float64)
    mean, var = counted.mean((0, 1, 2)), counted.var((0, 1, 2))
    np.testing.assert_allclose(out.reshape(x.shape), (x - mean) / np.sqrt(var + 1e-3), atol=1e-4)
    for device in range(devices):
        np.testing.assert_allclose(updated["batch_stats"]["mean"][device], 0.1 * mean, atol=1e-5)
        np.testing.assert_allclose(updated["batch_stats"]["var"][device], 0.9 + 0.1 * var, atol=1e-4)
    out, updated = apply(split[0], np.zeros_like(split[1]))
    assert np.isfinite(out).all()
    unchanged = jax.tree.map(lambda leaf: leaf[0], updated["batch_stats"])  # without any valid entry
    tiny.assert_same(unchanged, variables["batch_stats"])
    running = {"mean": mean.astype(np.float32), "var": var.astype(np.float32)}
    out = BatchNorm(epsilon=1e-3).apply({"params": variables["params"], "batch_stats": running}, x)
    np.testing.assert_allclose(out, (x - mean) / np.sqrt(var + 1e-3), atol=1e-4)
