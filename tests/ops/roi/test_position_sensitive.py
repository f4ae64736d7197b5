"""Position-sensitive RoI pooling: worked examples, oracles, all implementations, torchvision's operators."""

import os
import subprocess
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from paths import TESTS
from rois import BOXES, HUGE

from mrcnn_jax.ops import ps_roi_align, ps_roi_pool

pytestmark = pytest.mark.usefixtures("strict_promotion")
MAPS = np.random.default_rng(8).standard_normal((12, 16, 2, 2, 3), dtype=np.float32)
FAST = ("gather", "tiled", "matmul")


def channels_last(features, groups):
    """Features [.., c k k, H, W] of torchvision and FCIS as [.., H, W, k, k, c]."""
    *batch, channels, height, width = features.shape
    features = features.reshape(*batch, channels // groups**2, groups, groups, height, width)
    return np.moveaxis(features, (-2, -1, -4, -3, -5), (-5, -4, -3, -2, -1))


def test_worked_examples_of_fcis():
    """Channel c at row y, column x is 1000 c + 10 y + x; bins of output channel 0 by hand."""
    channel, y, x = np.ogrid[:8, :6, :8]
    maps = channels_last((1000 * channel + 10 * y + x).astype(np.float32), 2)
    boxes = np.float32([[1, 2, 8, 9], [0.4, 0.6, 3.4, 2.6], [10, 8, 19.6, 15], [2, 2, 1, 1]])
    expected = np.float32([
        [[10.5, 11.5, 1012.5, 1013.5], [20.5, 21.5, 1022.5, 1023.5],
         [2030.5, 2031.5, 3032.5, 3033.5], [2040.5, 2041.5, 3042.5, 3043.5]],
        [[0, 0, 1001, 1001], [5, 5, 1006, 1006], [2010, 2010, 3011, 3011], [2010, 2010, 3011, 3011]],
        [[45.5, 46.5, 1047, 0], [55.5, 56.5, 1057, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[11, 11, 1011, 1011], [11, 11, 1011, 1011], [2011, 2011, 3011, 3011], [2011, 2011, 3011, 3011]],
    ])  # fmt: skip
    pooled = np.asarray(ps_roi_pool(maps, boxes, 4, 0.5))
    np.testing.assert_array_equal(pooled[..., 0], expected)
    np.testing.assert_array_equal(pooled[..., 1], np.where(expected > 0, expected + 4000, pooled[..., 1]))


@pytest.mark.parametrize("rounding", ["pixels", "cells"])
def test_pool_equals_the_oracle(rounding):
    pooled = ps_roi_pool(MAPS, BOXES, (6, 4), 0.5, rounding)
    expected = oracles.ps_roi_pool(MAPS, BOXES, (6, 4), 0.5, rounding)
    np.testing.assert_allclose(pooled, expected, atol=2e-6, rtol=0)


def test_halves_of_pixels_are_rounded_up_at_any_scale():
    """At a scale such as 0.7, a corner in cells and back in pixels is no longer at half a pixel."""
    corners = np.arange(30, dtype=np.float32)[:, None]
    boxes = corners + np.float32([0.5, 0.5, 4.5, 4.5])
    maps = np.arange(30, dtype=np.float32).repeat(30).reshape(30, 30, 1, 1, 1)
    pooled = ps_roi_pool(maps, boxes, 4, 0.7)
    np.testing.assert_array_equal(pooled, ps_roi_pool(maps, boxes + np.float32(0.25), 4, 0.7))


def test_align_is_roi_align_of_each_parts_map():
    pooled = ps_roi_align(MAPS, BOXES, (4, 6), 0.5)
    for p in range(4):
        for q in range(6):
            whole = oracles.roi_align(MAPS[:, :, p // 2, q // 3], BOXES, (4, 6), 0.5)
            np.testing.assert_allclose(pooled[:, p, q], whole[:, p, q], atol=2e-5, rtol=0)


@pytest.mark.parametrize("operation", [ps_roi_pool, ps_roi_align])
def test_implementations_agree_forward_and_backward(operation):
    """On two images of different RoIs, with the definition's gradient from autodiff."""
    maps = jnp.stack([MAPS, MAPS[::-1]])
    rois = np.column_stack([np.arange(len(BOXES)) % 2, BOXES]).astype(np.float32)
    cotangent = np.random.default_rng(9).standard_normal((len(rois), 4, 6, 3), dtype=np.float32)

    def both(implementation):
        pool = partial(operation, output_size=(4, 6), spatial_scale=0.5, implementation=implementation)
        pooled, backward = jax.vjp(lambda maps: pool(maps, rois), maps)
        return pooled, *backward(jnp.asarray(cotangent))

    expected = both("reference")
    for implementation in FAST:
        for own, reference in zip(both(implementation), expected, strict=True):
            np.testing.assert_allclose(own, reference, atol=1e-4, rtol=0, err_msg=implementation)


def test_boxes_get_a_gradient_from_align_only():
    boxes = jnp.asarray(BOXES[:4])
    moved = jax.grad(lambda boxes: jnp.sum(ps_roi_align(MAPS, boxes, 4, 0.5)))(boxes)
    fixed = jax.grad(lambda boxes: jnp.sum(ps_roi_pool(MAPS, boxes, 4, 0.5)))(boxes)
    assert (moved != 0).all(axis=1).any() and (fixed == 0).all()


def test_no_rois_and_impossible_boxes():
    for operation in (ps_roi_pool, ps_roi_align):
        assert operation(MAPS, np.zeros((0, 4), np.float32), 4).shape == (0, 4, 4, 3)
        pooled = np.asarray(operation(MAPS, np.concatenate([HUGE, HUGE * np.float32(np.nan)]), 4))
        assert np.isfinite(pooled).all()
    assert ps_roi_pool(MAPS.astype(jnp.bfloat16), BOXES, 2).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((MAPS, BOXES, 3), r"output_size must be multiples of k = 2, not \(3, 3\)"),
        ((MAPS, BOXES, 2, 1.0, "bins"), "rounding must be \"pixels\" or \"cells\", not 'bins'"),
        ((MAPS, BOXES, 2, 1.0, "cells", "sorted"), "implementation of this operation must be 'gather'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ps_roi_pool(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ps_roi_pool", "ps_roi_align"])
def test_equals_torchvision_forward_and_backward(name, tmp_path):
    """Away from the last row and column, which torchvision's ps_roi_pool never reads forwards but does
    backwards."""
    python = os.environ.get("MRCNN_TORCHVISION_PYTHON")
    if not python:
        pytest.skip("MRCNN_TORCHVISION_PYTHON does not name an interpreter that has torch and torchvision")
    rng = np.random.default_rng(10)
    features = rng.standard_normal((2, 3 * 49, 20, 30), dtype=np.float32)
    corner = rng.uniform(0, (200, 120), (40, 2))
    sides = rng.uniform(4, 160, (40, 2))
    rois = np.column_stack([rng.integers(0, 2, 40), corner, corner + sides]).astype(np.float32)
    cotangent = rng.standard_normal((40, 3, 7, 7), dtype=np.float32)
    np.savez(tmp_path / "in.npz", features=features, rois=rois, cotangent=cotangent)
    script = TESTS / "helpers" / "torchvision_ps_roi.py"
    subprocess.run([python, "-I", script, name, tmp_path], check=True)
    theirs = np.load(tmp_path / "out.npz")
    operation = partial(ps_roi_pool, rounding="cells") if name == "ps_roi_pool" else ps_roi_align
    maps = jnp.asarray(channels_last(features, 7))
    pooled, backward = jax.vjp(lambda maps: operation(maps, rois, 7, 1 / 16), maps)
    np.testing.assert_allclose(pooled, theirs["pooled"].transpose(0, 2, 3, 1), atol=1e-5, rtol=0)
    (gradient,) = backward(jnp.asarray(cotangent.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(gradient, channels_last(theirs["gradient"], 7), atol=1e-5, rtol=0)
