"""Selection of proposals and detections from recorded outputs, against torchvision and Detectron2."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax import ops
from mrcnn_jax.config import BoxHeadConfig, MaskHeadConfig, ModelConfig
from mrcnn_jax.models.detection import (
    Voters,
    select_candidates,
    suppress,
    vote_detections,
    voting_candidates,
)
from mrcnn_jax.models.rpn import select_proposals
from mrcnn_jax.structures import Proposals

TORCHVISION = {"proposals": 1e-3, "detections": 1e-2}
"""Its minimum sides in pixels; Detectron2 only drops boxes without area."""


def select_detections(logits, deltas, proposals, sizes, config):
    return suppress(select_candidates(logits, deltas, proposals, sizes, config), config)


@pytest.fixture(scope="module")
def rpn(golden):
    """Recorded logits and deltas of each level in our layout, anchors, and image sizes."""
    arrays = golden("postprocess")
    logits, deltas, anchors, start = [], [], [], 0
    for level in range(5):
        objectness, shifts = arrays[f"obj{level}"], arrays[f"delta{level}"]
        number, cell, height, width = objectness.shape
        shifts = shifts.reshape(number, cell, 4, height, width).transpose(0, 3, 4, 1, 2)
        logits.append(jnp.asarray(objectness.transpose(0, 2, 3, 1).reshape(number, -1)))
        deltas.append(jnp.asarray(shifts.reshape(number, -1, 4)))
        end = start + cell * height * width
        anchors.append(jnp.asarray(golden("anchors")["tv_anchors_192x160"][start:end]))
        start = end
    return logits, deltas, anchors, arrays["sizes"].astype(np.int32)


@pytest.fixture(scope="module")
def propose(rpn):
    """propose(sizes, min_size): 300 of each level before NMS, 200 after it."""
    logits, deltas, anchors, _ = rpn

    @cache
    def compiled(min_size):
        select = partial(select_proposals, logits, deltas, anchors)
        return jax.jit(lambda sizes: select(sizes, 300, 200, 0.7, min_size))

    return lambda sizes, min_size=0.0: compiled(min_size)(sizes)


def test_every_anchor_is_decoded_as_in_torchvision(golden, rpn):
    _, deltas, anchors, _ = rpn
    decode = jax.vmap(ops.decode, in_axes=(0, None))
    decoded = decode(jnp.concatenate(deltas, axis=1), jnp.concatenate(anchors))
    expected = golden("postprocess")["decoded_every16"]
    np.testing.assert_allclose(decoded[:, ::16], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("library, min_size", [("d2", 0.0), ("tv", TORCHVISION["proposals"])])
def test_proposals_equal_the_libraries(golden, rpn, propose, library, min_size):
    arrays = golden("postprocess")
    proposals = propose(rpn[-1], min_size)
    for image in range(2):
        assert proposals.valid[image].all()
        boxes, scores = proposals.boxes[image], proposals.scores[image]
        np.testing.assert_allclose(boxes, arrays[f"{library}_prop{image}"], rtol=0, atol=1e-3)
        if library == "tv":
            scores, expected = jax.nn.sigmoid(scores), arrays[f"tv_prop_score{image}"]
        else:
            expected = arrays[f"d2_prop_logit{image}"]
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)


def test_proposals_without_area_are_dropped(rpn, propose):
    sizes = rpn[-1]
    nothing = propose(np.zeros_like(sizes))  # everything is clipped to a point
    assert not nothing.valid.any() and not nothing.boxes.any()
    little = propose(np.full_like(sizes, 3))
    boxes = little.boxes[np.asarray(little.valid)]
    assert 0 < little.valid.sum() < little.valid.size
    assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes <= 3).all()


def test_small_proposals_are_dropped_before_nms(rpn, propose):
    """NMS never sees boxes below the minimum side: of a 3 x 3 image only the whole is then proposed."""
    sizes = np.full_like(rpn[-1], 3)
    some, whole = propose(sizes), propose(sizes, 3.0)
    boxes = some.boxes[np.asarray(some.valid)]
    assert (boxes[:, 2:] - boxes[:, :2]).min() < 3
    for image in range(2):
        boxes = whole.boxes[image][np.asarray(whole.valid[image])]
        assert 1 <= len(boxes) <= 5  # equal boxes, of which each level keeps one
        np.testing.assert_array_equal(boxes, np.tile([0, 0, 3, 3], (len(boxes), 1)))


@pytest.fixture(scope="module")
def outputs(golden):
    """Recorded logits (background moved to the last column), deltas and proposals of a box head."""
    arrays = golden("postprocess")
    np.testing.assert_array_equal(arrays["tv_prop0"], arrays["d2_prop0"])
    deltas = arrays["box_deltas"].reshape(80, 6, 4)[:, 1:]
    return np.roll(arrays["box_logits"], -1, axis=1), deltas, arrays["d2_prop0"][:80]


@pytest.fixture(scope="module")
def detect(golden):
    """detect(logits, deltas, boxes, valid, min_size) of one image: score above 0.05, NMS 0.5, the best 30."""
    sizes = jnp.asarray(golden("postprocess")["sizes"][:1], jnp.int32)

    @cache
    def compiled(min_size):
        config = BoxHeadConfig(max_detections=30, min_size=min_size)

        def select(logits, deltas, boxes, valid):
            proposals = Proposals(boxes=boxes[None], scores=jnp.zeros((1, len(boxes))), valid=valid[None])
            found = select_detections(logits[None], deltas[None], proposals, sizes, config)
            return found.boxes[0], found.scores[0], found.classes[0], found.valid[0]

        return jax.jit(select)

    return lambda *arrays, min_size=0.0: compiled(min_size)(*map(jnp.asarray, arrays))


@pytest.mark.parametrize(
    "library, first_class, min_size", [("d2", 0, 0.0), ("tv", 1, TORCHVISION["detections"])]
)
def test_detections_equal_the_libraries(golden, outputs, detect, library, first_class, min_size):
    arrays = golden("postprocess")
    boxes, scores, classes, valid = detect(*outputs, np.ones(80, bool), min_size=min_size)
    assert valid.all()
    np.testing.assert_allclose(boxes, arrays[f"{library}_box"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(scores, arrays[f"{library}_score"], rtol=0, atol=1e-6)
    expected = arrays["d2_class" if library == "d2" else "tv_label"]
    np.testing.assert_array_equal(classes + first_class, expected)


def test_detection_vanishes_with_the_proposal_it_came_from(golden, outputs, detect):
    """Each goes away with the proposal that Detectron2 says it came from."""
    arrays = golden("postprocess")
    _, _, _, everything = detect(*outputs, np.ones(80, bool))
    assert everything.all()
    for number in (0, 7, 29):
        _, scores, _, _ = detect(*outputs, np.arange(80) != arrays["d2_roi_index"][number])
        assert not np.isclose(scores, arrays["d2_score"][number], rtol=0, atol=1e-7).any()


def test_invalid_proposals_are_not_detected(outputs, detect):
    boxes, scores, classes, valid = detect(*outputs, np.zeros(80, bool))
    assert not (valid.any() or boxes.any() or scores.any() or classes.any())


def test_nms_suppresses_within_a_class_only(outputs, detect):
    """Two equal boxes, the first unsure between classes 1 and 3, the second sure of class 3."""
    probabilities = np.full((80, 6), 1e-6)
    probabilities[0, [1, 3]] = 0.6, 0.4
    probabilities[1, 3] = 1
    proposals = np.tile(np.float32([10, 20, 50, 60]), (80, 1))
    logits, deltas = np.log(probabilities).astype(np.float32), np.zeros_like(outputs[1])
    boxes, scores, classes, valid = detect(logits, deltas, proposals, np.arange(80) < 2)
    assert valid.sum() == 2 and classes[:2].tolist() == [3, 1]
    np.testing.assert_allclose(scores[:2], [1, 0.6], atol=1e-4)
    np.testing.assert_allclose(boxes[:2], proposals[:2], atol=1e-4)


@pytest.mark.parametrize("min_size, found", [(0.0, [0, 1, 2]), (TORCHVISION["detections"], [1, 2])])
def test_small_detections_are_dropped(outputs, detect, min_size, found):
    """Sides of 1/128, 1/64 and 10 pixels, all sure of one class each; the fourth has none."""
    logits = np.where(np.arange(6) == np.arange(80)[:, None] % 5, np.float32(9), 0).astype(np.float32)
    proposals = np.zeros((80, 4), np.float32)
    proposals[:2] = [[10, 20, 10 + 1 / 128, 30], [10, 20, 20, 20 + 1 / 64]]
    proposals[2:4] = [[10, 20, 20, 30], [10, 20, 10, 30]]
    deltas, four = np.zeros_like(outputs[1]), np.arange(80) < 4
    _, _, classes, valid = detect(logits, deltas, proposals, four, min_size=min_size)
    assert sorted(classes[valid].tolist()) == found


@pytest.mark.parametrize(
    "settings, scores, classes",
    [
        ({}, [0.8, 0.6, 0.4], [0, 1, 0]),
        ({"class_agnostic_nms": True}, [0.8, 0.4], [0, 0]),
        ({"class_agnostic_nms": True, "soft_nms": "linear"}, [0.8, 0.4, 0.6 * (1 - 0.8)], [0, 0, 1]),
        (
            {"class_agnostic_nms": True, "soft_nms": "gaussian"},
            [0.8, 0.4, 0.6 * np.exp(-(0.8**2) / 0.5)],
            [0, 0, 1],
        ),
        ({"soft_nms": "linear"}, [0.8, 0.6, 0.4], [0, 1, 0]),
    ],
)
def test_suppression_of_an_overlapping_object_of_another_class(settings, scores, classes):
    """Two boxes of IoU 0.8, of classes 0 and 1, and a third far away."""
    boxes = jnp.float32([[0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60]])
    probabilities = jnp.float32([[0.8, 0.01, 0.19], [0.01, 0.6, 0.39], [0.4, 0.01, 0.59]])
    proposals = Proposals(boxes=boxes[None], scores=jnp.zeros((1, 3)), valid=jnp.ones((1, 3), bool))
    config = BoxHeadConfig(max_detections=5, score_threshold=0.05, **settings)
    found = select_detections(
        jnp.log(probabilities)[None], jnp.zeros((1, 3, 2, 4)), proposals, jnp.int32([[100, 100]]), config
    )
    count = len(scores)
    assert found.valid[0].tolist() == [True] * count + [False] * (5 - count)
    np.testing.assert_allclose(found.scores[0, :count], scores, rtol=1e-5)
    assert found.classes[0, :count].tolist() == classes


@pytest.mark.parametrize("soft_nms", ["none", "linear"])
def test_there_are_no_more_slots_than_candidates(soft_nms):
    boxes = jnp.float32([[[0, 0, 10, 10], [20, 20, 30, 30]]])
    proposals = Proposals(boxes=boxes, scores=jnp.zeros((1, 2)), valid=jnp.ones((1, 2), bool))
    logits, sizes = jnp.log(jnp.float32([[[0.6, 0.1, 0.3], [0.1, 0.8, 0.1]]])), jnp.int32([[100, 100]])

    def select(limit):
        config = BoxHeadConfig(max_detections=limit, soft_nms=soft_nms)
        return select_detections(logits, jnp.zeros((1, 2, 2, 4)), proposals, sizes, config)

    most, exact = select(100_000), select(4)
    assert most.scores.shape == (1, 4)
    jax.tree.map(np.testing.assert_array_equal, most, exact)
    np.testing.assert_allclose(most.scores[0, :2], [0.8, 0.6], rtol=1e-5)


def test_detections_have_the_masks_and_boxes_that_similar_instances_vote_for():
    boxes = np.float32([[0, 0, 10, 10], [1, 0, 11, 10], [40, 40, 60, 60], [0, 0, 0, 0]])
    scores = np.float32([[0.9, 0], [0.3, 0], [0.1, 0.8], [0, 0]])
    nothing = np.zeros_like(boxes), np.zeros_like(scores)
    boxes, scores = (np.stack(pair) for pair in zip((boxes, scores), nothing, strict=True))
    masks = np.ones((2, 4, 4, 4), np.float32)
    box = BoxHeadConfig(score_threshold=0.05, nms_iou=0.3, max_detections=5)
    config = ModelConfig(num_classes=2, box=box, mask=MaskHeadConfig(threshold=0.2))
    candidates = voting_candidates(Voters(*map(jnp.asarray, (boxes, scores, masks))), box)
    vote = partial(vote_detections, config=config, similar_iou=0.5, binarize=False)
    found = jax.jit(vote)(candidates)
    np.testing.assert_array_equal(found.valid, [[True] * 3 + [False] * 2, [False] * 5])
    np.testing.assert_array_equal(found.classes[0, :3], [0, 1, 0])
    np.testing.assert_array_equal(found.scores[0, :3], np.float32([0.9, 0.8, 0.1]))
    own = [40, 40, 60, 60]
    np.testing.assert_array_equal(found.boxes[0], [[0, 0, 11, 10], own, own, [0] * 4, [0] * 4])
    # the first pixel has 0.75 of the votes, the last 0.25; the bins' centres lie 1.375 pixels inside
    first = [0.875 + 0.125 * 0.75, 1, 1, 0.875 + 0.125 * 0.25]
    np.testing.assert_allclose(found.masks[0, 0], np.tile(np.float32(first), (4, 1)), atol=1e-6)
    np.testing.assert_allclose(found.masks[0, 1:3], 1, atol=1e-6)
