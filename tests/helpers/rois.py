"""Boxes and features for the tests of RoI operations, and their comparison with recorded results."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles

GRID = jnp.arange(25, dtype=jnp.float32).reshape(5, 5, 1)  # the value at row y, column x is 5 y + x
HUGE = np.float32(
    [
        [-1e30, -1e30, 1e30, 1e30],
        [1e30, 1e30, -1e30, -1e30],
        [3e38, 0, 3.4e38, 5],
        [-3.4e38, -3.4e38, 3.4e38, 3.4e38],
        [0, 0, 1e-40, 1e-40],
    ]
)
IMAGE = np.random.default_rng(5).standard_normal((12, 16, 2), dtype=np.float32)
PYRAMID = [
    np.random.default_rng(6).standard_normal((2, *side, 2), dtype=np.float32)
    for side in [(12, 16), (7, 8), (3, 5)]
]
STRIDES = (2, 4, 8)


def _boxes():
    """Over a 24 x 32 pixel image: inside, over an edge, outside, empty, inverted, larger than the image."""
    rng = np.random.default_rng(4)
    corner = rng.uniform(-8, 28, (20, 2))
    random = np.concatenate([corner, corner + rng.uniform(0.2, 24, (20, 2))], axis=1)
    special = [
        [0, 0, 32, 24], [-40, -40, 80, 80], [40, 5, 60, 9], [-30, -30, -20, -20], [-3, -3, 3, 3],
        [30, 22, 36, 27], [5, 5, 5, 5],
        [7, 3, 7, 20], [20, 15, 10, 4], [3.25, 4.5, 3.5, 4.75], [-500, 6, 900, 8], [31.5, 23.5, 32.5, 24.5],
    ]  # fmt: skip
    return np.concatenate([random, special]).astype(np.float32)


BOXES = _boxes()
SOLID = ((BOXES[:, 2:] - BOXES[:, :2]) > 0).all(axis=1)  # those with width and height


def boxes_and_levels():
    """RoIs with width and height for both images of the pyramid, and levels for them."""
    rng = np.random.default_rng(7)
    boxes = BOXES[SOLID]
    return np.stack([boxes, boxes[rng.permutation(len(boxes))]]), rng.integers(0, 3, (2, len(boxes))).astype(
        np.int32
    )


def oracle_bins(features, boxes, scale, operation, reduction, samples, half_pixel):
    """The oracle's 3 x 5 bins."""
    reduce = {"average": np.mean, "max": np.max}[reduction]
    match operation:
        case "align":
            return oracles.roi_align(features, boxes, (3, 5), scale, samples, half_pixel, reduce)
        case "warp":
            return oracles.roi_warp(features, boxes, (3, 5), scale, samples, reduce)
        case "pool":
            return oracles.roi_pool(features, boxes, (3, 5), scale)


def assert_equals_golden(operation, arrays, scale, size, variant, atol, gradient_atol):
    """Asserts that ``operation(features, boxes, output_size, scale)`` gives the recorded results."""
    rois, case = arrays[f"rois_s{scale}"], f"s{scale}_{size}" + (f"_{variant}" if variant else "")
    output_size = tuple(int(side) for side in size.split("x"))

    def pool_both(features):  # [2, H, W, C]: every RoI from both images, then its own
        pooled = jnp.stack([operation(image, rois[:, 1:], output_size, float(scale)) for image in features])
        return pooled[rois[:, 0].astype(int), np.arange(len(rois))]

    pooled, backward = jax.vjp(pool_both, jnp.asarray(arrays["x"].transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(pooled, arrays[f"out_{case}"].transpose(0, 2, 3, 1), atol=atol, rtol=0)
    (gradient,) = backward(jnp.asarray(arrays[f"cot_s{scale}_{size}"].transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(
        gradient, arrays[f"gradx_{case}"].transpose(0, 2, 3, 1), atol=gradient_atol, rtol=0
    )
