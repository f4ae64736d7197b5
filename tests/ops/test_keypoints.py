"""Keypoints against torchvision's and Detectron2's, and at the borders where such code goes wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax import ops

BOX = np.float32([10, 20, 24, 48])  # a map of 7 x 7 over it has cells of 2 x 4 pixels


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("keypoints")


@pytest.mark.parametrize("library", ["tv", "d2"])
def test_targets_equal_torchvision_and_detectron2(arrays, library):
    cells, valid = jax.jit(ops.keypoint_targets, static_argnums=2)(arrays["keypoints"], arrays["rois"], 56)
    assert cells.dtype == jnp.int32 and valid.dtype == bool
    np.testing.assert_array_equal(cells, arrays[f"{library}_heatmap_idx"])
    np.testing.assert_array_equal(valid, arrays[f"{library}_valid"])
    assert 0 < valid.sum() < valid.size


@pytest.mark.parametrize(
    "x, y, visibility, cell",
    [
        (10, 20, 2, 0),
        (11.9, 23.9, 1, 0),
        (12, 20, 2, 1),
        (10, 24, 2, 7),
        (17, 34, 2, 3 * 7 + 3),
        (24, 34, 2, 3 * 7 + 6),  # on the right border
        (17, 48, 2, 6 * 7 + 3),  # on the bottom border
        (24, 48, 2, 48),
        (9.99, 34, 2, None),
        (24.01, 34, 2, None),
        (17, 19.99, 2, None),
        (17, 48.01, 2, None),
        (17, 34, 0, None),
        (1e30, 34, 2, None),
    ],
)
def test_the_cell_of_a_keypoint(x, y, visibility, cell):
    cells, valid = ops.keypoint_targets(np.float32([[x, y, visibility]]), BOX, 7)
    assert (int(cells[0]), bool(valid[0])) == ((0, False) if cell is None else (cell, True))


def test_boxes_without_area_hold_nothing():
    boxes = np.float32([[10, 20, 10, 48], [10, 20, 24, 20], [10, 20, 10, 20], [0, 0, 0, 0], [24, 48, 10, 20]])
    points = np.stack([boxes[:, :2], boxes[:, 2:], (boxes[:, :2] + boxes[:, 2:]) / 2], axis=1)
    cells, valid = jax.jit(ops.keypoint_targets, static_argnums=2)(
        np.concatenate([points, np.full((5, 3, 1), 2, np.float32)], axis=2), boxes, 7
    )
    assert not valid.any() and not cells.any()


def test_targets_of_many_images_are_those_of_each(arrays):
    keypoints, boxes = arrays["keypoints"][:12].reshape(3, 4, 17, 3), arrays["rois"][:12].reshape(3, 4, 4)
    cells, valid = jax.jit(jax.vmap(lambda points, rois: ops.keypoint_targets(points, rois, 56)))(
        keypoints, boxes
    )
    np.testing.assert_array_equal(cells.reshape(12, 17), arrays["tv_heatmap_idx"][:12])
    np.testing.assert_array_equal(valid.reshape(12, 17), arrays["tv_valid"][:12])
    cells, valid = jax.eval_shape(
        lambda points, rois: ops.keypoint_targets(points, rois, 56), jnp.zeros((2, 0, 3)), jnp.zeros((2, 4))
    )
    assert cells.shape == valid.shape == (2, 0)


def test_decoding_equals_torchvision_and_detectron2(arrays):
    found = ops.decode_keypoints(arrays["maps"], arrays["maps_rois"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[..., :2], arrays["tv_xyv"][..., :2], atol=1e-3)
    np.testing.assert_allclose(found[..., 2], arrays["tv_scores"], atol=2e-5)
    np.testing.assert_allclose(found[..., :2], arrays["d2_xy_logit_score"][..., :2], atol=1e-3)
    np.testing.assert_allclose(found[..., 2:], arrays["d2_xy_logit_score"][..., 2:], atol=2e-5)


def cubic(distance):
    """The cubic convolution kernel for a = -0.75 (Keys 1981)."""
    near = 1.25 * distance**3 - 2.25 * distance**2 + 1
    far = -0.75 * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def weights(size, cells):
    """Weights of cells in each pixel along one axis, with the border replicated."""
    places = (np.arange(size) + 0.5) * cells / size - 0.5
    matrix = np.zeros((size, cells))
    for tap in range(-2, cells + 2):
        matrix[:, np.clip(tap, 0, cells - 1)] += cubic(np.abs(places - tap))
    return matrix


@pytest.mark.parametrize("width, height", [(200, 400), (31, 12.5), (56, 56), (7.2, 90), (0.4, 3)])
def test_the_maximum_of_the_resized_map(width, height):
    """Position and logit in noise, ramps and single spikes, also at borders, against float64."""
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(14, 14)) for _ in range(8)]
    maps += [
        slope[0] * np.arange(14) + slope[1] * np.arange(14)[:, None] for slope in rng.normal(size=(4, 2))
    ]
    for place in [(0, 0), (0, 13), (13, 5), (13, 13), (6, 7)]:
        maps.append(rng.normal(size=(14, 14)) * 0.01)
        maps[-1][place] += 30
    logits = np.float32(maps)[None]
    found = ops.decode_keypoints(np.float32(logits), np.float32([[5, 6, 5 + width, 6 + height]]))[0]
    shown = max(1, int(np.ceil(height))), max(1, int(np.ceil(width)))
    pixels = max(1, height) / shown[0], max(1, width) / shown[1]
    for keypoint, one in zip(found, logits[0].astype(float), strict=True):
        exact = weights(shown[0], 14) @ one @ weights(shown[1], 14).T
        x, y = (keypoint[0] - 5) / pixels[1] - 0.5, (keypoint[1] - 6) / pixels[0] - 0.5
        np.testing.assert_allclose((x, y), np.round((x, y)), atol=1e-3)
        np.testing.assert_allclose(exact[round(y), round(x)], exact.max(), atol=1e-4)
        np.testing.assert_allclose(keypoint[2], exact.max(), atol=1e-4)
        np.testing.assert_allclose(keypoint[3], 1 / np.exp(one - exact.max()).sum(), rtol=2e-4)


def test_no_detections_and_no_joints():
    assert ops.decode_keypoints(np.zeros((0, 17, 56, 56)), np.zeros((0, 4))).shape == (0, 17, 4)
    assert ops.decode_keypoints(np.zeros((2, 0, 56, 56)), np.zeros((2, 4))).shape == (2, 0, 4)


def test_a_target_decodes_to_its_own_place():
    rng = np.random.default_rng(1)
    corners, sides = rng.uniform(0, 50, (20, 2)), rng.uniform(60, 150, (20, 2))
    boxes = np.float32(np.concatenate([corners, corners + sides], axis=1))
    points = np.float32(corners[:, None] + rng.uniform(0.05, 0.95, (20, 3, 2)) * sides[:, None])
    cells, valid = ops.keypoint_targets(
        np.concatenate([points, np.ones((20, 3, 1), np.float32)], axis=2), boxes, 28
    )
    assert valid.all()
    logits = np.where(np.arange(28 * 28) == np.asarray(cells)[..., None], 20, 0).reshape(20, 3, 28, 28)
    found = ops.decode_keypoints(np.float32(logits), boxes)
    assert (
        np.abs(found[..., :2] - points) <= 0.5 * sides[:, None] / 28 + 1
    ).all()  # half a cell, and the pixel


def test_a_box_of_one_pixel_may_miss_a_sharp_maximum():
    maps = np.zeros((1, 1, 56, 56), np.float32)
    maps[0, 0, 3, 3] = 1e4
    np.testing.assert_allclose(
        ops.decode_keypoints(maps, np.float32([[4, 5, 4.5, 5.5]])), [[[4.5, 5.5, 0, 0]]]
    )
