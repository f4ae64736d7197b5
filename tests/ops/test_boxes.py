"""Boxes: overlaps, coding and clipping against the libraries and the oracle; degenerate boxes."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.ops import (
    area,
    clip,
    decode,
    encode,
    giou,
    intersection,
    intersection_over_area,
    iou,
    is_nonempty,
)

pytestmark = pytest.mark.usefixtures("strict_promotion")

WEIGHTS = {"w1": (1, 1, 1, 1), "w10": (10, 10, 5, 5)}
DEGENERATE = np.float32(
    [
        [5, 5, 5, 5],
        [5, 5, 5, 9],
        [2, 3, 9, 3],
        [8, 8, 2, 2],
        [0, 0, 0, 0],
        [-4, -4, 400, 400],
        [1e6, 1e6, 1e6 + 1, 1e6 + 1],
    ]
)


@pytest.fixture(scope="module")
def boxes():
    rng = np.random.default_rng(0)
    corner = rng.uniform(-20, 100, (60, 2))
    random = np.concatenate([corner, corner + rng.uniform(-10, 60, (60, 2))], axis=1).astype(np.float32)
    return np.concatenate([random, DEGENERATE])


def test_area_of_inverted_boxes_is_zero():
    boxes = jnp.asarray(
        [[[1.0, 2.0, 4.0, 4.0], [4.0, 2.0, 1.0, 4.0], [4.0, 4.0, 1.0, 2.0], [3.0, 3.0, 3.0, 9.0]]]
    )
    np.testing.assert_array_equal(area(boxes), [[6, 0, 0, 0]])


def test_overlaps_of_two_squares():
    a, b = (
        jnp.asarray([[0.0, 0.0, 4.0, 4.0]]),
        jnp.asarray([[2.0, 1.0, 6.0, 5.0], [4.0, 0.0, 8.0, 4.0], [1.0, 1.0, 3.0, 3.0]]),
    )
    np.testing.assert_array_equal(intersection(a, b), [[6, 0, 4]])
    np.testing.assert_allclose(iou(a, b), [[6 / 26, 0, 4 / 16]], rtol=1e-6)
    np.testing.assert_allclose(intersection_over_area(a, b), [[6 / 16, 0, 1]], rtol=1e-6)


def test_generalised_iou():
    a = jnp.asarray([[0.0, 0.0, 1.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    b = jnp.asarray([[0.0, 0.0, 1.0, 1.0], [2.0, 0.0, 3.0, 1.0], [5.0, 5.0, 5.0, 5.0], [jnp.nan] * 4])
    np.testing.assert_allclose(giou(a, b)[:, [0, 1, 3]], [[1, -1 / 3, 0], [-0.96, -14 / 15, 0]], rtol=1e-6)
    assert float(giou(a, b)[1, 2]) == 0  # no box encloses anything


def test_generalised_iou_equals_the_oracle(boxes):
    corners = np.sort(boxes.reshape(-1, 2, 2), axis=1)
    ordered = corners.reshape(-1, 4)
    expected = oracles.pairwise(oracles.giou, ordered, ordered[::-2])
    np.testing.assert_allclose(giou(ordered, ordered[::-2]), expected, rtol=1e-4, atol=1e-5)


def test_overlaps_equal_the_oracle(boxes):
    others = boxes[::-2]
    np.testing.assert_allclose(
        intersection(boxes, others),
        oracles.pairwise(oracles.intersection, boxes, others),
        rtol=1e-5,
        atol=1e-3,
    )
    np.testing.assert_allclose(iou(boxes, others), oracles.pairwise(oracles.iou, boxes, others), atol=1e-6)
    share = oracles.pairwise(
        lambda a, b: oracles.intersection(a, b) / max(oracles.area(b), 1e-9), boxes, others
    )
    np.testing.assert_allclose(intersection_over_area(boxes, others), share, atol=1e-6)


def test_overlaps_equal_the_libraries(golden):
    arrays = golden("iou_matcher")
    overlaps = iou(arrays["a"], arrays["b"])
    np.testing.assert_allclose(overlaps, arrays["d2_iou"], atol=1e-6)
    np.testing.assert_allclose(
        overlaps, np.nan_to_num(arrays["tv_iou"]), atol=1e-6
    )  # of two boxes without area torchvision gives NaN
    np.testing.assert_allclose(intersection_over_area(arrays["a"], arrays["b"]), arrays["d2_ioa"], atol=1e-6)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("library", ["", "d2_"])
def test_coding_equals_the_libraries(golden, library, name):
    arrays = golden("boxcoder")
    deltas = encode(arrays["tgt"], arrays["src"], WEIGHTS[name])
    np.testing.assert_allclose(deltas, arrays[f"{library}enc_{name}"], atol=2e-5, rtol=0)
    given = arrays["deltas"].reshape(40, 5, 4)
    decoded = decode(jnp.asarray(given), jnp.asarray(arrays["src"])[:, None].repeat(5, axis=1), WEIGHTS[name])
    np.testing.assert_allclose(decoded.reshape(40, 20), arrays[f"{library}dec_{name}"], rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("weights", WEIGHTS.values())
def test_decode_undoes_encode(weights):
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 800, (2, 200, 2))
    anchors, targets = np.concatenate([corner, corner + rng.uniform(8, 400, corner.shape)], axis=-1).astype(
        np.float32
    )
    np.testing.assert_allclose(
        decode(encode(targets, anchors, weights), jnp.asarray(anchors), weights), targets, atol=5e-3
    )


def test_zero_deltas_give_the_anchor_and_sizes_are_bounded():
    anchor = jnp.asarray([[10.0, 20.0, 26.0, 28.0]])
    np.testing.assert_array_equal(decode(jnp.zeros((1, 4)), anchor), anchor)
    wild = decode(jnp.asarray([[0.0, 0.0, 1e4, -1e4]]), anchor)
    np.testing.assert_allclose(wild, [[18 - 500, 24, 18 + 500, 24]], rtol=1e-5)


def test_default_maximum_scale_is_that_of_the_libraries(golden):
    default = inspect.signature(decode).parameters["max_scale"].default
    assert golden("boxcoder")["clip_value"] == math.log(default) and ModelConfig().max_box_scale == default
    doubled = decode(jnp.asarray([[0.0, 0.0, 5.0, 5.0]]), jnp.asarray([[0.0, 0.0, 8.0, 4.0]]), max_scale=2.0)
    np.testing.assert_allclose(doubled, [[-4, -2, 12, 6]], atol=1e-5)


def test_clip_equals_torchvision(golden):
    arrays = golden("boxcoder")
    boxes = jnp.asarray(arrays["dec_w10"].reshape(200, 4))
    np.testing.assert_array_equal(clip(boxes, 200, 300), arrays["clipped_200x300"])
    assert (arrays["clipped_200x300"] != arrays["dec_w10"].reshape(200, 4)).any(axis=0).all()


def test_clip_to_traced_sizes_per_image():
    boxes = jnp.asarray([[[-5.0, -5.0, 50.0, 50.0]], [[60.0, 3.0, 70.0, 9.0]]])
    sizes = jnp.asarray([[10, 20], [30, 40]])
    clipped = jax.vmap(lambda boxes, size: clip(boxes, size[0], size[1]))(boxes, sizes)
    np.testing.assert_array_equal(clipped, [[[0, 0, 20, 10]], [[40, 3, 40, 9]]])


def test_boxes_of_float64():
    anchors = np.array([[0.0, 0.0, 4.0, 8.0]])
    np.testing.assert_array_equal(decode(np.zeros((1, 4)), anchors), anchors)
    np.testing.assert_array_equal(clip(anchors, 5, 3), [[0, 0, 3, 5]])


def test_nonempty_needs_both_sides(golden):
    boxes = jnp.asarray(
        [
            [0.0, 0.0, 2.0, 2.0],
            [0.0, 0.0, 2.0, 0.0],
            [0.0, 0.0, 0.0, 2.0],
            [3.0, 3.0, 1.0, 1.0],
            [0.0, 0.0, 3.0, 2.5],
        ]
    )
    np.testing.assert_array_equal(is_nonempty(boxes), [True, False, False, False, True])
    np.testing.assert_array_equal(
        is_nonempty(boxes, 2.0), [True, False, False, False, True]
    )  # a side equal to the least is enough, but not 0
    np.testing.assert_array_equal(is_nonempty(boxes, 2.5), [False, False, False, False, True])
    assert not is_nonempty(boxes, 2.75).any()
    arrays = golden("boxcoder")
    clipped = arrays["clipped_200x300"]
    for name in ("1e-2", "30"):
        np.testing.assert_array_equal(
            np.flatnonzero(is_nonempty(clipped, float(name))), arrays[f"keep_small_{name}"]
        )
    sides = clipped[:, 2:] - clipped[:, :2]
    np.testing.assert_array_equal(
        is_nonempty(clipped, float(sides.min(axis=1)[7])), (sides >= sides.min(axis=1)[7]).all(axis=1)
    )


@pytest.mark.parametrize("function", [iou, intersection_over_area, encode, decode])
def test_degenerate_boxes_and_their_gradients_are_finite(function):
    every = DEGENERATE.repeat(len(DEGENERATE), axis=0), np.tile(DEGENERATE, (len(DEGENERATE), 1))
    value, gradients = jax.jit(jax.value_and_grad(lambda a, b: function(a, b).sum(), argnums=(0, 1)))(*every)
    assert np.isfinite(function(*map(jnp.asarray, every))).all()
    assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("function, name", [(iou, "a"), (encode, "targets"), (decode, "deltas")])
def test_wrong_shapes_are_refused_by_name(without_type_checks, function, name):
    with pytest.raises(ValueError, match=rf"{name} must have shape \[.*, 4\], not \[3, 5\]"):
        function(jnp.zeros((3, 5)), jnp.zeros((3, 4)))
