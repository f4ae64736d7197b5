"""Targets of hand-made images: labels of anchors and RoIs, their samples, and what each should predict."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from mrcnn_jax import ops
from mrcnn_jax.config import (
    BoxHeadConfig,
    BranchPoolConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    RoIConfig,
    RPNConfig,
)
from mrcnn_jax.structures import Example, Proposals
from mrcnn_jax.training.targets import roi_targets, rpn_targets

SLOTS, CLASSES, MASK, SIDE = 4, 5, 8, 16  # SIDE of the masks of a batch

ANCHORS = np.float32(
    [
        [0, 0, 10, 10],  # 0: the first object exactly
        [0, 0, 10, 14],  # 1: IoU 0.714 with it
        [0, 0, 10, 20],  # 2: IoU 0.5
        [0, 0, 10, 50],  # 3: IoU 0.2
        [40, 40, 60, 60],  # 4: IoU 0.25 with the second object, the best that it has
        [70, 70, 80, 80],  # 5: touches nothing
        [60, 0, 70, 10],  # 6: inside the crowd
        [55, 0, 65, 10],  # 7: half of it inside the crowd
        [-5, -5, 5, 5],  # 8: beyond the border, IoU 1/7
    ]
)
OBJECTS = {"object": (0, 0, 10, 10), "lonely": (50, 40, 70, 50), "crowd": (60, 0, 90, 30)}
POSITIVE, BACKGROUND = {0, 1, 4}, {3, 5, 6, 7, 8}


def slots(*names):
    """Returns boxes, valid and crowd of the named objects; invalid slots hold a copy of the first anchor."""
    boxes = np.tile(ANCHORS[0], (SLOTS, 1))
    boxes[: len(names)] = [OBJECTS[name] for name in names] if names else boxes[:0]
    names += ("nothing",) * (SLOTS - len(names))
    valid = np.array([name != "nothing" for name in names])
    return boxes, valid, np.array([name == "crowd" for name in names])


RPN = RPNConfig(samples_per_image=8, positive_fraction=0.5)


@partial(jax.jit, static_argnames="config")
def rpn(key, *objects, config=RPN):
    return rpn_targets(key, jnp.asarray(ANCHORS), *objects, config)


def sampled(targets, which="valid"):
    chosen = np.asarray(getattr(targets, which))
    return set(np.asarray(targets.index)[chosen].tolist())


def test_anchor_labels_follow_iou_thresholds_and_best_matches():
    drawn = [rpn(jax.random.key(seed), *slots("object", "lonely")) for seed in range(10)]
    assert set().union(*(sampled(targets, "positive") for targets in drawn)) == POSITIVE
    # never 2, whose IoU is between the thresholds
    assert set().union(*(sampled(targets) for targets in drawn)) == POSITIVE | BACKGROUND
    for targets in drawn:
        assert targets.positive.tolist() == [True] * 3 + [False] * 5  # positives first
        assert targets.valid.all()


def test_decoding_anchor_deltas_returns_the_object():
    objects = slots("object", "lonely")
    targets = rpn(jax.random.key(0), *objects)
    own = {0: 0, 1: 0, 4: 1}
    for slot in range(3):
        anchor = int(targets.index[slot])
        decoded = ops.decode(targets.deltas[slot], ANCHORS[anchor])
        np.testing.assert_allclose(decoded, objects[0][own[anchor]], atol=1e-4)
    assert not np.asarray(targets.deltas)[3:].any()


def test_anchors_inside_a_crowd_are_ignored():
    drawn = [rpn(jax.random.key(seed), *slots("object", "lonely", "crowd")) for seed in range(10)]
    # 7 is only half inside
    assert set().union(*(sampled(targets) for targets in drawn)) == (POSITIVE | BACKGROUND) - {6}
    alone = rpn(jax.random.key(0), *slots("crowd"))  # the best anchor of a crowd is not positive
    assert not alone.positive.any() and 6 not in sampled(alone)


def test_no_object_makes_every_anchor_background():
    targets = rpn(jax.random.key(0), *slots())
    assert not targets.positive.any() and targets.valid.all() and len(sampled(targets)) == 8
    assert np.isfinite(targets.deltas).all() and not np.asarray(targets.deltas).any()


def test_object_without_overlapping_anchor_has_no_positive():
    boxes, valid, crowd = slots("object")
    boxes[0] = 200, 200, 210, 210
    assert not rpn(jax.random.key(0), boxes, valid, crowd).positive.any()


def test_excess_positive_anchors_are_drawn_at_random():
    config = RPNConfig(samples_per_image=4, positive_fraction=0.5)
    drawn = [rpn(jax.random.key(seed), *slots("object", "lonely"), config=config) for seed in range(20)]
    for targets in drawn:
        assert targets.positive.tolist() == [True, True, False, False] and targets.valid.all()
    assert set().union(*(sampled(targets, "positive") for targets in drawn)) == POSITIVE


# ---- RoIs ----

PROPOSALS = np.float32(
    [
        [0, 0, 10, 12],  # 0: IoU 0.83 with the object
        [0, 0, 10, 20],  # 1: 0.5 exactly
        [0, 0, 10, 21],  # 2: below
        [52, 40, 70, 50],  # 3: 0.9 with the lonely one
        [70, 70, 80, 80],  # 4: nothing
        [62, 2, 72, 12],  # 5: in the crowd
        [0, 0, 10, 10],  # 6: not valid
        [0, 0, 0, 0],  # 7: not valid
    ]
)
PROPOSAL_VALID = np.arange(8) < 6
CLASS = np.int32([3, 1, 2, 4])
ROI = RoIConfig(samples_per_image=16, positive_fraction=0.5)
BOX = BoxHeadConfig()


def object_masks():
    """Masks of the lower half of the first object, the left half of the second, and all of the others."""
    masks = np.ones((SLOTS, SIDE, SIDE), np.uint8)
    masks[0, : SIDE // 2] = 0
    masks[1, :, SIDE // 2 :] = 0
    return masks


MASK_HEAD = MaskHeadConfig(pool=BranchPoolConfig(size=MASK // 2))
MODEL = ModelConfig(num_classes=CLASSES, roi=ROI, box=BOX, mask=MASK_HEAD)
NO_KEYPOINTS = np.zeros((SLOTS, 0, 3), np.float32)
ALL_MASKS = np.ones(SLOTS, bool)


@partial(jax.jit, static_argnames="config")
def rois(
    key, boxes, valid, crowd, proposal_valid=PROPOSAL_VALID, config=MODEL, keypoints=NO_KEYPOINTS,
    has_mask=ALL_MASKS,
):  # fmt: skip
    proposals = Proposals(boxes=jnp.asarray(PROPOSALS), scores=jnp.zeros(8), valid=proposal_valid)
    classes, masks = jnp.asarray(CLASS), jnp.asarray(object_masks())
    objects = Example(images=None, sizes=None, boxes=boxes, classes=classes, valid=valid, crowd=crowd,
                      masks=masks, has_mask=jnp.asarray(has_mask), keypoints=keypoints)  # fmt: skip
    return roi_targets(key, proposals, objects, config)


def rows(boxes):
    return {tuple(box) for box in np.asarray(boxes).tolist()}


def test_roi_labels_follow_the_iou_threshold():
    objects = slots("object", "lonely")
    targets = rois(jax.random.key(0), *objects)
    positive, valid = np.asarray(targets.positive), np.asarray(targets.valid)
    assert positive.tolist() == [True] * 5 + [False] * 11
    assert valid.tolist() == [True] * 8 + [False] * 8
    # boxes of the objects are candidates, invalid slots and invalid proposals are not
    assert rows(targets.boxes[:5]) == rows(PROPOSALS[[0, 1, 3]]) | rows(objects[0][:2])
    assert rows(targets.boxes[5:8]) == rows(PROPOSALS[[2, 4, 5]])
    assert (np.asarray(targets.classes)[~positive] == CLASSES).all()
    assert not np.asarray(targets.boxes)[~valid].any() and not np.asarray(targets.deltas)[~positive].any()


def test_positive_roi_has_the_class_and_deltas_of_its_object():
    objects = slots("object", "lonely")
    targets = rois(jax.random.key(0), *objects)
    for slot in range(5):
        own = int(targets.boxes[slot, 0] > 40)
        assert targets.classes[slot] == CLASS[own]
        decoded = ops.decode(targets.deltas[slot], targets.boxes[slot], BOX.delta_weights)
        np.testing.assert_allclose(decoded, objects[0][own], atol=1e-4)


def test_mask_target_is_the_part_of_the_object_inside_the_roi():
    targets = rois(jax.random.key(0), *slots("object", "lonely"))
    assert targets.masks.shape == (8, MASK, MASK)  # half of the samples at most are positive
    row, column = np.mgrid[:MASK, :MASK] + 0.5
    for slot in range(5):
        x1, y1, x2, y2 = np.asarray(targets.boxes[slot])
        x, y = x1 + (x2 - x1) * column / MASK, y1 + (y2 - y1) * row / MASK
        expected = (y >= 5) & (y <= 10) if x1 < 40 else (x >= 50) & (x <= 60)
        np.testing.assert_array_equal(targets.masks[slot], expected, err_msg=str(targets.boxes[slot]))


def test_rois_inside_a_crowd_are_ignored():
    targets = rois(jax.random.key(0), *slots("object", "lonely", "crowd"))
    assert targets.positive.sum() == 5
    assert rows(targets.boxes[5:7]) == rows(PROPOSALS[[2, 4]]) and targets.valid.sum() == 7


def test_crowd_box_is_not_a_candidate_of_the_object_it_covers():
    boxes, valid, crowd = slots("object", "crowd")
    boxes[1] = 0, 0, 10, 11  # IoU 0.91 with the object
    targets = rois(jax.random.key(0), boxes, valid, crowd)
    assert rows(targets.boxes[np.asarray(targets.positive)]) == rows(PROPOSALS[[0, 1]]) | rows(boxes[:1])


def test_no_object_makes_every_roi_background():
    targets = rois(jax.random.key(0), *slots())
    assert not targets.positive.any() and targets.valid.sum() == 6
    assert rows(targets.boxes[:6]) == rows(PROPOSALS[:6]) and (np.asarray(targets.classes) == CLASSES).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(targets))


def test_neither_objects_nor_proposals_stays_finite():
    targets = rois(jax.random.key(0), *slots(), np.zeros(8, bool))
    assert not targets.valid.any() and not targets.positive.any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(targets))


def test_excess_positive_rois_are_drawn_at_random():
    config = replace(MODEL, roi=RoIConfig(samples_per_image=8, positive_fraction=0.25))
    drawn = [rois(jax.random.key(seed), *slots("object", "lonely"), config=config) for seed in range(20)]
    for targets in drawn:
        assert targets.positive.tolist() == [True] * 2 + [False] * 6
        assert targets.valid.sum() == 5  # two positive, and all three of background
        assert targets.masks.shape == (2, MASK, MASK) and targets.masks.any(axis=(1, 2)).all()
    assert len(set().union(*(rows(targets.boxes[:2]) for targets in drawn))) == 5


# ---- branches ----


def test_keypoint_target_is_the_cell_of_the_roi():
    """Keypoints of the first object: its centre, a hidden one below, an unlabelled one, one outside."""
    keypoints = np.zeros((SLOTS, 4, 3), np.float32)
    keypoints[0] = [(5, 5, 2), (2, 11.5, 1), (5, 5, 0), (200, 5, 2)]
    head = KeypointHeadConfig(pool=BranchPoolConfig(size=5), num_keypoints=4)
    config = replace(MODEL, tasks=("boxes", "masks", "keypoints"), keypoint=head)
    assert config.keypoint_size == 20
    targets = rois(jax.random.key(0), *slots("object", "lonely"), config=config, keypoints=keypoints)
    assert targets.keypoint_cells.shape == targets.keypoint_valid.shape == (8, 4)
    seen = set()
    for slot in range(8):
        x1, _, x2, y2 = np.asarray(targets.boxes[slot])
        inside = targets.positive[slot] and x1 == 0
        expected = [bool(inside and visible and y < y2) for _, y, visible in keypoints[0]]
        expected[3] = False
        assert targets.keypoint_valid[slot].tolist() == expected
        seen.add(tuple(expected[:2]))
        for joint in np.flatnonzero(expected):
            x, y = keypoints[0, joint, :2]
            assert targets.keypoint_cells[slot, joint] == int(20 * y / y2) * 20 + int(20 * x / x2)
    assert (True, True) in seen and (True, False) in seen  # the hidden one is only inside taller RoIs


def test_only_configured_branches_have_targets():
    boxes_only = rois(jax.random.key(0), *slots("object"), config=replace(MODEL, tasks=("boxes",)))
    assert boxes_only[-4:] == (None, None, None, None)
    with_masks = rois(jax.random.key(0), *slots("object"))
    assert with_masks.masks is not None and with_masks.keypoint_cells is None
    tiny.assert_same(boxes_only, with_masks._replace(masks=None, mask_valid=None))  # the same sample


def test_masks_are_taught_by_the_objects_that_have_one():
    objects = slots("object", "lonely")
    all_have = rois(jax.random.key(0), *objects)
    np.testing.assert_array_equal(all_have.mask_valid, all_have.positive[: len(all_have.mask_valid)])
    some = rois(jax.random.key(0), *objects, has_mask=np.arange(SLOTS) > 0)
    tiny.assert_same(some._replace(mask_valid=None), all_have._replace(mask_valid=None))
    of_lonely = np.asarray(some.boxes[: len(some.mask_valid), 0]) >= 40
    np.testing.assert_array_equal(some.mask_valid, all_have.mask_valid & of_lonely)
    assert 0 < some.mask_valid.sum() < all_have.mask_valid.sum()
