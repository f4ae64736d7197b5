"""Every implementation of the RoI operations against the oracle, forwards and backwards, with small tiles."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rois import HUGE, PYRAMID, STRIDES, boxes_and_levels, oracle_bins

from mrcnn_jax import ops
from mrcnn_jax.ops.roi import tuning
from mrcnn_jax.runtime import compiling_for

pytestmark = pytest.mark.usefixtures("strict_promotion")

KINDS = [
    ("align", "average", 2),
    ("align", "average", 0),
    ("align", "max", 2),
    ("align", "max", 0),
    ("pool", "max", 2),
]
CASES = [(kind, name) for kind in KINDS for name in ops.roi_implementations(*kind)]
CASES += [(("align", "average", 3), "matmul"), (("align", "average", 3), "reference")]
CASES += [(("warp", "average", 2), "reference")]
every_implementation = pytest.mark.parametrize("kind, implementation", CASES)
BOXES, LEVELS = boxes_and_levels()
COTANGENT = np.random.default_rng(8).standard_normal((*LEVELS.shape, 3, 5, 2), dtype=np.float32)
DIRECTION = [
    np.random.default_rng(9 + level).standard_normal(maps.shape) for level, maps in enumerate(PYRAMID)
]
ROW_BYTES = 5 * 2 * 4
SMALL_TILES = {
    "JOINED_PYRAMID_BYTES": 0,
    "TILE_BYTES_FIXED": 9 * ROW_BYTES,
    "TILE_BYTES_ADAPTIVE": 5 * ROW_BYTES,
    "TILE_BYTES_GRADIENT": 4 * ROW_BYTES,
    "SCATTERED_ROW_CELLS": 3,
    "MATMUL_ROIS": 3,
}


@pytest.fixture(autouse=True, scope="module")
def small_tiles():
    """Tiles so small that a few RoIs need several."""
    jax.clear_caches()  # programs traced with the usual sizes
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL_TILES.items():
            patch.setattr(tuning, name, value)
        yield
    jax.clear_caches()


@cache
def program(kind, implementation, dtype=jnp.float32):
    """Compiles a function of pyramid, boxes and levels to the bins and the gradient of the features."""

    def both(pyramid, boxes, levels):
        operation, reduction, samples = kind

        def pool(pyramid):
            return ops.pool_rois(
                pyramid, boxes, levels, STRIDES, (3, 5), operation, reduction, samples,
                implementation=implementation,
            )  # fmt: skip

        pooled, backward = jax.vjp(pool, pyramid)
        return pooled, backward(COTANGENT.astype(dtype))[0]

    return (
        jax.jit(both).lower([jnp.asarray(features, dtype) for features in PYRAMID], BOXES, LEVELS).compile()
    )


@cache
def oracle(kind):
    """The bins, and the derivative of their product with the cotangent along DIRECTION."""
    operation, reduction, samples = kind

    def pooled(change):
        bins = np.zeros(COTANGENT.shape)
        for image, level in np.ndindex(2, len(PYRAMID)):
            own = LEVELS[image] == level
            features = PYRAMID[level][image] + change * DIRECTION[level][image]
            bins[image, own] = oracle_bins(
                features, BOXES[image, own], 1 / STRIDES[level], operation, reduction, samples, True
            )
        return bins

    return pooled(0.0), (COTANGENT * (pooled(1e-6) - pooled(-1e-6))).sum() / 2e-6


@every_implementation
def test_equals_the_oracle_forwards_and_backwards(kind, implementation):
    pooled, gradient = program(kind, implementation)(PYRAMID, BOXES, LEVELS)
    expected, change = oracle(kind)
    np.testing.assert_allclose(pooled, expected, atol=2e-5, rtol=0)
    assert abs(change) > 1
    along = sum((own * direction).sum() for own, direction in zip(gradient, DIRECTION, strict=True))
    np.testing.assert_allclose(along, change, rtol=2e-4)
    for own, others in zip(gradient, program(kind, "gather")(PYRAMID, BOXES, LEVELS)[1], strict=True):
        np.testing.assert_allclose(own, others, atol=2e-5, rtol=0)


@every_implementation
def test_any_finite_box_gives_the_same_finite_numbers(kind, implementation):
    boxes, levels = BOXES.copy(), LEVELS.copy()
    boxes[:, : len(HUGE)] = HUGE
    levels[:, 1::2] = 0
    results = [program(kind, name)(PYRAMID, boxes, levels) for name in (implementation, "gather")]
    for own, others in zip(*map(jax.tree.leaves, results), strict=True):
        assert np.isfinite(own).all()
        np.testing.assert_allclose(own, others, atol=2e-5, rtol=0)


@every_implementation
def test_other_levels_and_images_do_not_matter(kind, implementation):
    levels = np.ones_like(LEVELS)
    anything = 1e30 if implementation == "matmul" else np.nan  # a weight of 0 does not hide NaN
    spoiled = [np.full_like(PYRAMID[0], anything), PYRAMID[1].copy(), np.full_like(PYRAMID[2], anything)]
    spoiled[1][1] = anything
    run = program(kind, implementation)
    others, own = (run(pyramid, BOXES, levels)[0][0] for pyramid in (spoiled, PYRAMID))
    np.testing.assert_array_equal(others, own)


@every_implementation
def test_levels_with_few_rois_or_none(kind, implementation):
    levels = np.where(np.arange(LEVELS.shape[1]) < 1, 2, 0).astype(np.int32) * np.ones_like(LEVELS)
    results = [program(kind, name)(PYRAMID, BOXES, levels) for name in (implementation, "gather")]
    (pooled, gradient), (expected, _) = results
    np.testing.assert_allclose(pooled, expected, atol=2e-5, rtol=0)
    assert gradient[0].any() and not gradient[1].any()


@pytest.mark.parametrize("implementation", ops.roi_implementations("align"))
def test_low_precision_features_are_summed_in_float32(implementation):
    kind, rounded = KINDS[0], [jnp.asarray(features, jnp.bfloat16) for features in PYRAMID]
    pooled, gradient = program(kind, implementation, jnp.bfloat16)(rounded, BOXES, LEVELS)
    in_float32 = [np.asarray(features, np.float32) for features in rounded]
    expected, expected_gradient = program(kind, implementation)(in_float32, BOXES, LEVELS)
    assert pooled.dtype == jnp.bfloat16 and all(own.dtype == jnp.bfloat16 for own in gradient)
    np.testing.assert_allclose(pooled.astype(jnp.float32), expected, atol=0.03)
    # dozens of parts of a cell, each rounded by up to 1/256 in the cotangent
    tolerance = 0.02 if implementation == "reference" else 0.01
    for own, others in zip(gradient, expected_gradient, strict=True):
        np.testing.assert_allclose(own.astype(jnp.float32), others, atol=tolerance * np.abs(others).max())


def test_default_implementation_follows_the_target_platform():
    def lowered(platform, implementation=None):
        def pool(pyramid):
            return ops.pool_rois(pyramid, BOXES, LEVELS, STRIDES, 3, implementation=implementation)

        with compiling_for(platform):
            traced = jax.jit(pool).trace([jnp.asarray(features) for features in PYRAMID])
        return traced.lower(lowering_platforms=({"gpu": "cuda"}.get(platform, platform),)).as_text()

    defaults = {
        platform: ops.default_implementation("align", platform=platform) for platform in ("cpu", "gpu", "tpu")
    }
    assert defaults == {"cpu": "tiled", "gpu": "gather", "tpu": "matmul"}
    assert "dot_general" in lowered("tpu") and "dot_general" not in lowered("cpu")
    assert "dot_general" in lowered("cpu", "matmul")
    assert lowered("gpu").count("stablehlo.while") < lowered("cpu").count(
        "stablehlo.while"
    )  # no loop over tiles
    with compiling_for("tpu"):
        assert ops.default_implementation("align") == "matmul"


def test_reference_has_forward_mode_and_second_derivatives():
    features, boxes = jnp.asarray(PYRAMID[0][0]), jnp.asarray(BOXES[0, :2])

    def total(boxes):
        return (ops.roi_align(features, boxes, 2, 0.5, implementation="reference") ** 2).sum()

    forward, reverse = jax.jacfwd(total)(boxes), jax.grad(total)(boxes)
    np.testing.assert_allclose(forward, reverse, rtol=1e-4, atol=1e-4)
    assert np.isfinite(jax.hessian(total)(boxes)).all()


def test_unknown_implementations_are_refused():
    with pytest.raises(ValueError, match="'gather', 'tiled', 'reference' or None, not 'matmul'"):
        ops.roi_pool(PYRAMID[0][0], BOXES[0], 7, implementation="matmul")
    with pytest.raises(ValueError, match="'gather', 'tiled', 'matmul' or None, not 'reference'"):
        ops.roi_align(PYRAMID[0][0], BOXES[0], 7, sampling_ratio=0, implementation="reference")
