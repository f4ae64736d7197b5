"""Pyramid levels of RoIs, by hand and as the libraries assign them."""

import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.ops import assign_levels

pytestmark = pytest.mark.usefixtures("strict_promotion")


def test_levels_equal_the_libraries(golden):
    arrays = golden("fpn_levels")
    np.testing.assert_array_equal(assign_levels(arrays["boxes"]) - 2, arrays["tv_levels"])
    np.testing.assert_array_equal(assign_levels(arrays["boxes"], epsilon=0.0) - 2, arrays["d2_levels"])


def test_levels_by_hand():
    sides = np.float32([224, 448, 112, 111, 447, 1, 10000])
    boxes = np.stack([sides * 0, sides * 0, sides, sides], axis=1)
    np.testing.assert_array_equal(assign_levels(boxes), [4, 5, 3, 2, 4, 2, 5])
    levels = assign_levels(boxes, lowest=3, highest=6, canonical_size=112.0)
    np.testing.assert_array_equal(levels, [5, 6, 4, 3, 5, 3, 6])
    elongated = jnp.asarray([[0.0, 0.0, 112.0, 448.0], [0.0, 0.0, 56.0, 896.0]])  # the area counts
    np.testing.assert_array_equal(assign_levels(elongated), [4, 4])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32"])
def test_levels_of_other_types_are_those_of_float32(dtype):
    sides = [(300, 300), (224, 224), (223, 224), (112, 111)]  # areas of more than float16 or bfloat16 hold
    boxes = jnp.asarray([[0, 0, *side] for side in sides], dtype)
    np.testing.assert_array_equal(assign_levels(boxes), [4, 4, 3, 2])


def test_boxes_without_area_are_on_the_lowest_level():
    boxes = [[5.0, 5.0, 5.0, 5.0], [9.0, 9.0, 2.0, 2.0], [0.0, 0.0, 900.0, 0.0], [500.0, 0.0, 0.0, 500.0]]
    np.testing.assert_array_equal(assign_levels(jnp.asarray(boxes)), [2, 2, 2, 2])


def test_wrong_shape_is_refused(without_type_checks):
    with pytest.raises(ValueError, match=r"boxes must have shape \[..., 4\], not \[3, 5\]"):
        assign_levels(jnp.zeros((3, 5)))
