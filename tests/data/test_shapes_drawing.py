"""Drawing of shapes: coverage of pixels, objects that hide one another, left and right of puppets."""

import numpy as np

from mrcnn_jax.data import shapes_drawing
from mrcnn_jax.data.shapes import INFO, KEYPOINTS, ShapesConfig

CONFIG = ShapesConfig()


def test_some_objects_are_hidden_in_part():
    """Their share that shows is below one, and never so low that they should have been left out."""
    rng = np.random.default_rng(0)
    scene = shapes_drawing.Scene(CONFIG.drawn, CONFIG.min_size, CONFIG.max_size, CONFIG.max_objects)
    arranged = [a for _ in range(100) for a in shapes_drawing.arrange(rng, scene, 128, 160)]
    share = np.array([np.count_nonzero(shown) / sprite.full_area for sprite, shown in arranged])
    hidden = np.array([np.count_nonzero(shown) < np.count_nonzero(sprite.mask) for sprite, shown in arranged])
    assert share.min() >= shapes_drawing.MIN_VISIBLE_SHARE and share.max() == 1
    assert 0.1 < hidden.mean() < 0.6


def test_hole_of_a_ring_is_not_covered():
    large = shapes_drawing.Outline([200 * shapes_drawing.CIRCLE], holes=[100 * shapes_drawing.CIRCLE])
    ring = shapes_drawing.fill(large, np.array([-101.0, -101.0]), 202, 202)
    assert ring[101, 101] == 0 and ring[101, 101 + 75] == 1 and ring[0, 0] == 0
    np.testing.assert_allclose(ring.sum(), np.pi * (100**2 - 50**2), rtol=0.01)


def test_coverage_is_centred_on_continuous_coordinates():
    square = shapes_drawing.Outline([np.array([(2.0, 3.0), (6.0, 3.0), (6.0, 8.0), (2.0, 8.0)])])
    expected = np.zeros((10, 10), bool)
    expected[3:8, 2:6] = True
    np.testing.assert_array_equal(shapes_drawing.fill(square, np.zeros(2), 10, 10) >= 0.5, expected)


def left_hand_is_on_the_left(points: np.ndarray) -> bool:
    """Returns whether it lies on the puppet's left, seen from the way its head points."""
    name = KEYPOINTS.index
    up = points[name("head")] - (points[name("left_foot")] + points[name("right_foot")]) / 2
    across = points[name("left_hand")] - points[name("right_hand")]
    return up[0] * across[1] - up[1] * across[0] > 0


def test_left_and_right_follow_from_the_arrangement():
    """A mirrored puppet with left and right swapped is a puppet: only the arrangement shows the sides."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        puppet = shapes_drawing.puppet(rng).keypoints
        angle = rng.uniform(-np.pi, np.pi)
        turned = puppet @ shapes_drawing.unit_vectors(np.array([angle, angle + np.pi / 2]))
        assert left_hand_is_on_the_left(turned)
        mirrored = turned * (-1, 1)
        assert not left_hand_is_on_the_left(mirrored)
        assert left_hand_is_on_the_left(mirrored[list(INFO.keypoint_flip)])
