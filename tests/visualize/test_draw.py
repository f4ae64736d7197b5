"""Overlays: places, colours and labels of masks, boxes and keypoints."""

from dataclasses import replace

import numpy as np
import pytest

from mrcnn_jax.detections import Detections
from mrcnn_jax.visualize.draw import draw_detections, draw_ground_truth

NAMES = ("cat", "Bär")


def scene(height=64, width=96):
    """A gray image; a big disc of class 0, a rectangle of class 1 and a doubtful one."""
    y, x = np.mgrid[:height, :width]
    disc = (x - 24) ** 2 + (y - 40) ** 2 < 18**2
    rectangle = (x >= 60) & (x < 90) & (y >= 30) & (y < 50)
    doubtful = (x >= 60) & (x < 90) & (y >= 2) & (y < 8)
    found = Detections(
        boxes=np.float32([[6, 22, 42, 58], [60, 30, 90, 50], [60, 2, 90, 8]]),
        scores=np.float32([0.98, 0.75, 0.2]),
        class_ids=np.int32([0, 1, 1]),
        masks=np.stack([disc, rectangle, doubtful]),
        class_names=NAMES,
    )
    return np.full((height, width, 3), 100, np.uint8), found


def test_masks_are_tinted_and_nothing_else():
    image, found = scene()
    before = image.copy()
    drawn = draw_detections(image, found, scale=1)
    assert drawn.dtype == np.uint8 and drawn.shape == image.shape
    np.testing.assert_array_equal(image, before)
    tints = np.unique(drawn[45:52, 19:29].reshape(-1, 3), axis=0)
    assert len(tints) == 1  # translucent over flat gray
    assert np.ptp(drawn[50, 24].astype(int)) > 50 and drawn[50, 24].max() < 255
    assert (drawn[30:60, 45:58] == 100).all()  # between the boxes
    assert not (drawn[22, 6:42] == 100).all(axis=-1).any()  # the box's first row
    assert not (drawn[57, 6:42] == 100).all(axis=-1).any()  # and its last


@pytest.mark.parametrize("scale", [1, 3])
def test_boxes_cover_their_first_and_last_pixels(scale):
    image, found = scene()
    one = replace(found[[1]], masks=np.zeros((1, 64, 96), bool))
    drawn = draw_ground_truth(image, one.boxes, one.class_ids, one.masks, ("", ""), scale=scale)
    rows, columns = np.nonzero((drawn != 100).any(axis=-1))
    extent = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert extent == (60 * scale, 30 * scale, 90 * scale, 50 * scale)


def test_score_threshold_keeps_the_colours_of_the_others():
    image, found = scene()
    default = draw_detections(image, found, scale=1)
    assert (default[2:8, 70:90] == 100).all()  # to the right of the label
    everything = draw_detections(image, found, score_threshold=0.2, scale=1)
    assert (everything[5, 62:88] != 100).any(axis=-1).all()
    only_second = draw_detections(image, replace(found, scores=np.float32([0.1, 0.75, 0.2])), scale=1)
    np.testing.assert_array_equal(only_second[44:50, 60:90], default[44:50, 60:90])
    assert (only_second[32:58, 6:42] == 100).all()


def test_instances_of_one_class_differ_in_colour():
    image = np.full((40, 400, 3), 100, np.uint8)
    boxes = np.float32([[20 * i, 20, 20 * i + 18, 38] for i in range(20)])
    masks = np.zeros((20, 40, 400), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    cells = Detections(boxes, np.ones(20), np.zeros(20, int), masks, class_names=("cell",))
    drawn = draw_detections(image, cells, scale=1)
    tints = drawn[29, 9::20].astype(int)
    distances = np.abs(tints[:, None] - tints[None]).sum(axis=-1) + 1000 * np.eye(20, dtype=int)
    assert distances.min() >= 12 and np.diag(distances, 1).min() >= 60  # neighbours differ most


def test_small_images_are_enlarged_and_large_ones_are_not():
    image, found = scene()
    assert draw_detections(image, found).shape == (7 * 64, 7 * 96, 3)
    assert draw_detections(image, found, scale=3).shape == (192, 288, 3)
    empty = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), np.zeros((0, 800, 1200), bool))
    large = np.random.default_rng(0).integers(0, 256, (800, 1200, 3), np.uint8)
    np.testing.assert_array_equal(draw_detections(large, empty), large)


def test_enlarged_masks_stay_in_place():
    image, found = scene()
    drawn = draw_detections(image, found[[1]], scale=4)
    tinted = (drawn != 100).any(axis=-1)
    assert tinted[4 * 30 : 4 * 50, 4 * 60 : 4 * 90].all()
    assert not tinted[4 * 50 + 2 :].any() and not tinted[:, : 4 * 60 - 2].any()
    assert not tinted[:, 4 * 90 + 2 :].any()


def label_area(drawn):
    """Returns the mask of letters: nearly white or black, which nothing else in the scene is."""
    return (drawn.min(axis=-1) > 190) | (drawn.max(axis=-1) < 50)


def test_labels_stand_above_their_boxes():
    image, found = scene(64, 96)
    one = found[[0]]
    drawn = draw_detections(image, one, scale=6)
    rows, columns = np.nonzero(label_area(drawn))
    assert len(rows) > 40 and rows.max() < 6 * 22 and columns.min() >= 6 * 6
    other = draw_detections(image, replace(one, class_ids=np.int32([1])), scale=6)
    assert (drawn != other).any()
    truth = draw_ground_truth(image, one.boxes, one.class_ids, one.masks, NAMES, scale=6)
    assert 0 < label_area(truth).sum() < len(rows)  # no score
    np.testing.assert_array_equal(truth[6 * 24 :], drawn[6 * 24 :])  # else the same picture


def test_labels_at_the_border_move_inside():
    image, found = scene()
    box, names = np.float32([[70, 0, 96, 64]]), ("a very long name", "")
    corner = replace(found[[0]], boxes=box, masks=None, class_names=names)
    drawn = draw_detections(image, corner, scale=6)
    letters = label_area(drawn)
    assert letters[: 6 * 10].sum() > 40 and not letters[:, -3:].any()


def test_labels_do_not_cover_one_another():
    image, found = scene()
    twice = found[[0, 0]]
    crowd = found[[0] * 30]
    one, two, many = (
        label_area(draw_detections(image, replace(d, class_names=("i", "i")), scale=6)).sum()
        for d in (found[[0]], twice, crowd)
    )
    assert one < two <= many < 4 * one  # above, within and below are taken; the others stay silent


def test_skeleton_joins_visible_keypoints():
    image, found = scene()
    points = np.float32([[[68, 5, 0.9], [92, 5, 0.4], [80, 20, 0.0]]])
    person = replace(found[[0]], keypoints=points)
    plain = draw_detections(image, found[[0]], scale=1)
    dots = draw_detections(image, person, scale=1)
    joined = draw_detections(image, person, skeleton=[(0, 1), (1, 2)], scale=1)
    changed = (dots != plain).any(axis=-1)
    assert changed[5, 68] and changed[5, 92] and not changed[20, 80] and not changed[5, 80]
    lines = (joined != dots).any(axis=-1)
    assert lines[5, 73:87].all() and not lines[10:].any()  # the line to the missing keypoint is missing


def test_keypoints_of_low_score_are_left_out():
    image, found = scene()
    person = replace(found[[0]], keypoints=np.float32([[[68, 5, 0.03], [92, 5, 0.01]]]))
    plain = draw_detections(image, found[[0]], scale=1)
    for threshold, expected in ((None, (True, False)), (0.005, (True, True)), (0.5, (False, False))):
        options = {} if threshold is None else {"keypoint_threshold": threshold}
        changed = (draw_detections(image, person, scale=1, **options) != plain).any(axis=-1)
        assert (changed[5, 68], changed[5, 92]) == expected
    truth = draw_ground_truth(
        image, person.boxes, person.class_ids, person.masks, NAMES, keypoints=person.keypoints, scale=1
    )
    assert (truth[5, [68, 92]] != 100).any(axis=-1).all()


def test_detections_without_masks_are_not_filled():
    image, found = scene()
    person = replace(found, masks=None, keypoints=np.float32([[[24, 40, 0.9]]] * 3))
    drawn = draw_detections(image, replace(person, class_names=("", "")), scale=1)
    changed = (drawn != 100).any(axis=-1)
    assert changed[22, 42 - 10 : 42].all() and changed[57, 6:42].all()  # the box
    assert changed[40, 24]  # the keypoint
    assert not changed[48:56, 10:38].any()  # nothing is filled
    boxes = draw_ground_truth(image, found.boxes, found.class_ids, None, ("", ""), scale=1)
    assert (boxes[22, 6:42] != 100).any(axis=-1).all() and (boxes[48:56, 10:38] == 100).all()


def test_ground_truth_without_objects_changes_nothing():
    image, _ = scene()
    masks = np.zeros((0, 64, 96), bool)
    drawn = draw_ground_truth(image, np.zeros((0, 4)), np.zeros(0, int), masks, NAMES, scale=1)
    np.testing.assert_array_equal(drawn, image)
