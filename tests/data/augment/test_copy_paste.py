"""Pasted objects, and what is left of the objects beneath them."""

import dataclasses

import numpy as np
from example_records import AS_IT_IS, FACES, STILL, THINGS, record

from mrcnn_jax.data.augment.example import training_example

GRAY, WHITE = np.full((20, 30, 3), 90, np.uint8), np.full((20, 30, 3), 255, np.uint8)
PASTING = dataclasses.replace(AS_IT_IS, augment=dataclasses.replace(STILL, copy_paste=1.0), mask_size=10)


def rectangle(x1: int, y1: int, x2: int, y2: int) -> tuple[list[int], np.ndarray]:
    mask = np.zeros((20, 30), np.uint8)
    mask[y1:y2, x1:x2] = 1
    return [x1, y1, x2, y2], mask


def pasted(onto, other, info=THINGS, config=PASTING):
    def sample_other(_, render):
        return other and render(other)

    return training_example(onto, info, config, np.random.default_rng(0), sample_other=sample_other)


def test_object_is_cut_out_by_its_mask_and_covers_what_lies_beneath():
    (box, mask), (above, cover) = rectangle(2, 4, 12, 14), rectangle(7, 2, 20, 16)
    cover[2:4] = 0
    above[1] = 4
    one = pasted(record(GRAY, [box], [mask], classes=[1]), record(WHITE, [above], [cover], classes=[2]))
    expected = GRAY.copy()
    expected[cover > 0] = 255
    np.testing.assert_array_equal(one.images[:20, :30], expected)
    np.testing.assert_array_equal(one.boxes[:2], [[2, 4, 7, 14], above])
    np.testing.assert_array_equal(one.classes[:2], [1, 2])
    assert one.masks[:2].all() and one.valid.sum() == 2


def test_covered_object_is_left_out_and_a_covered_keypoint_hidden():
    hidden, part, above = rectangle(8, 6, 12, 10), rectangle(16, 4, 28, 16), rectangle(5, 3, 20, 17)
    points = [[[9, 7, 2]] * 3, [[17, 6, 2], [25, 6, 2], [0, 0, 0]]]
    onto = record(GRAY, [hidden[0], part[0]], [hidden[1], part[1]], keypoints=points)
    one = pasted(onto, record(WHITE, [above[0]], [above[1]], joints=3), FACES)
    np.testing.assert_array_equal(one.boxes[:2], [[20, 4, 28, 16], above[0]])
    np.testing.assert_array_equal(one.keypoints[0], [[17, 6, 1], [25, 6, 2], [0, 0, 0]])


def test_objects_without_a_mask_are_not_pasted_and_stay_unless_covered():
    box, above = [2, 4, 12, 14], rectangle(7, 2, 20, 16)
    plain = pasted(record(GRAY, [box]), record(WHITE, [above[0]]))
    np.testing.assert_array_equal(plain.images[:20, :30], GRAY)
    one = pasted(record(GRAY, [box, [8, 4, 18, 14]]), record(WHITE, [above[0]], [above[1]]))
    np.testing.assert_array_equal(one.boxes[:2], [box, above[0]])
    np.testing.assert_array_equal(one.has_mask[:2], [False, True])


def test_image_that_cannot_be_read_pastes_nothing():
    one = pasted(record(GRAY, [[2, 4, 12, 14]]), None)
    np.testing.assert_array_equal(one.images[:20, :30], GRAY)


def test_object_is_cut_at_the_border_of_the_smaller_image():
    """The other image may fill more of the padded size."""
    above = rectangle(5, 3, 25, 17)
    narrow = record(np.ascontiguousarray(GRAY[:, :20]), [[1, 1, 4, 3]], joints=3)
    points = [[[22, 5, 2], [6, 5, 2], [0, 0, 0]]]
    one = pasted(narrow, record(WHITE, [above[0]], [above[1]], keypoints=points), FACES)
    np.testing.assert_array_equal(one.sizes, [20, 20])
    np.testing.assert_array_equal(one.boxes[1], [5, 3, 20, 17])
    np.testing.assert_array_equal(one.keypoints[1], [[0, 0, 0], [6, 5, 2], [0, 0, 0]])
    assert not one.images[:, 20:].any()
