"""From the outputs of the heads to proposals and detections, against torchvision and Detectron2, which differ in what is too small to keep."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mrcnn_jax import ops
from mrcnn_jax.config import BoxHeadConfig
from mrcnn_jax.models.mask_rcnn import MaskRCNN
from mrcnn_jax.models.rpn import select_proposals

TORCHVISION = {"proposals": 1e-3, "detections": 1e-2}
"""Its least sides in pixels; Detectron2 leaves out what has no area."""


@pytest.fixture(scope="module")
def rpn(golden):
    """Logits, deltas and anchors of each level as our head gives them, from the recorded outputs of a convolutional one, and the image sizes."""
    arrays = golden("postprocess")
    logits, deltas, anchors, start = [], [], [], 0
    for level in range(5):
        objectness, shifts = arrays[f"obj{level}"], arrays[f"delta{level}"]
        number, cell, height, width = objectness.shape
        logits.append(jnp.asarray(objectness.transpose(0, 2, 3, 1).reshape(number, -1)))
        deltas.append(jnp.asarray(shifts.reshape(number, cell, 4, height, width).transpose(0, 3, 4, 1, 2).reshape(number, -1, 4)))
        anchors.append(jnp.asarray(golden("anchors")["tv_anchors_192x160"][start : start + cell * height * width]))
        start += cell * height * width
    return logits, deltas, anchors, arrays["sizes"].astype(np.int32)


@pytest.fixture(scope="module")
def propose(rpn):
    """propose(sizes, min_size): 300 of each level before NMS, 200 after it."""
    logits, deltas, anchors, _ = rpn
    compiled = cache(lambda min_size: jax.jit(lambda sizes: select_proposals(logits, deltas, anchors, sizes, 300, 200, 0.7, min_size)))
    return lambda sizes, min_size=0.0: compiled(min_size)(sizes)


def test_every_anchor_is_decoded_as_in_torchvision(golden, rpn):
    _, deltas, anchors, _ = rpn
    decoded = ops.decode(jnp.concatenate(deltas, axis=1), jnp.concatenate(anchors)[None])
    np.testing.assert_allclose(decoded[:, ::16], golden("postprocess")["decoded_every16"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("library, min_size", [("d2", 0.0), ("tv", TORCHVISION["proposals"])])
def test_proposals_equal_the_libraries(golden, rpn, propose, library, min_size):
    arrays = golden("postprocess")
    proposals = propose(rpn[-1], min_size)
    for image in range(2):
        assert proposals.valid[image].all()
        np.testing.assert_allclose(proposals.boxes[image], arrays[f"{library}_prop{image}"], rtol=0, atol=1e-3)
        if library == "tv":
            np.testing.assert_allclose(jax.nn.sigmoid(proposals.scores[image]), arrays[f"tv_prop_score{image}"], rtol=0, atol=1e-6)
        else:
            np.testing.assert_allclose(proposals.scores[image], arrays[f"d2_prop_logit{image}"], rtol=0, atol=1e-6)


def test_proposals_without_area_are_left_out(rpn, propose):
    sizes = rpn[-1]
    nothing = propose(np.zeros_like(sizes))  # everything is clipped to a point
    assert not nothing.valid.any() and not nothing.boxes.any()
    little = propose(np.full_like(sizes, 3))
    boxes = little.boxes[np.asarray(little.valid)]
    assert 0 < little.valid.sum() < little.valid.size
    assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes <= 3).all()


def test_small_proposals_are_left_out(rpn, propose):
    """The least side itself may stay, and NMS never sees what is below it: of a 3 x 3 image then only the whole is proposed."""
    sizes = np.full_like(rpn[-1], 3)
    some, whole = propose(sizes), propose(sizes, 3.0)
    assert (some.boxes[np.asarray(some.valid)][:, 2:] - some.boxes[np.asarray(some.valid)][:, :2]).min() < 3
    for image in range(2):
        # one on each level at most, for they are all alike
        assert 1 <= whole.valid[image].sum() <= 5
        np.testing.assert_array_equal(whole.boxes[image][np.asarray(whole.valid[image])], np.tile([0, 0, 3, 3], (int(whole.valid[image].sum()), 1)))


@pytest.fixture(scope="module")
def outputs(golden):
    """Recorded logits, deltas and proposals of a box head; background goes from the first column to the last and has no deltas."""
    arrays = golden("postprocess")
    np.testing.assert_array_equal(arrays["tv_prop0"], arrays["d2_prop0"])
    deltas = arrays["box_deltas"].reshape(80, 6, 4)[:, 1:]
    return np.roll(arrays["box_logits"], -1, axis=1), deltas, arrays["d2_prop0"][:80]


@pytest.fixture(scope="module")
def detect(golden):
    """detect(logits, deltas, proposals, valid, min_size): score over 0.05, NMS 0.5 within each class, the best 30."""
    size = jnp.asarray(golden("postprocess")["sizes"][0], jnp.int32)

    @cache
    def compiled(min_size):
        config = dataclasses.replace(tiny.model_config(num_classes=5), box=BoxHeadConfig(detections=30, min_size=min_size))
        return jax.jit(lambda *given: MaskRCNN(config).apply({}, *given, size, method="detect"))

    return lambda *given, min_size=0.0: compiled(min_size)(*given)


@pytest.mark.parametrize("library, first_class, min_size", [("d2", 0, 0.0), ("tv", 1, TORCHVISION["detections"])])
def test_detections_equal_the_libraries(golden, outputs, detect, library, first_class, min_size):
    arrays = golden("postprocess")
    boxes, scores, classes, valid = detect(*outputs, np.ones(80, bool), min_size=min_size)
    assert valid.all()
    np.testing.assert_allclose(boxes, arrays[f"{library}_box"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(scores, arrays[f"{library}_score"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(classes + first_class, arrays["d2_class" if library == "d2" else "tv_label"])


def test_a_detection_is_its_own_proposals(golden, outputs, detect):
    """Each goes away with the proposal that Detectron2 says it came from."""
    arrays = golden("postprocess")
    _, _, _, everything = detect(*outputs, np.ones(80, bool))
    assert everything.all()
    for number in (0, 7, 29):
        _, scores, _, _ = detect(*outputs, np.arange(80) != arrays["d2_roi_index"][number])
        assert not np.isclose(scores, arrays["d2_score"][number], rtol=0, atol=1e-7).any()


def test_proposals_that_do_not_exist_are_not_detected(outputs, detect):
    boxes, scores, classes, valid = detect(*outputs, np.zeros(80, bool))
    assert not (valid.any() or boxes.any() or scores.any() or classes.any())


def test_a_box_suppresses_only_its_own_class(outputs, detect):
    """Two proposals at one place, the first unsure between classes 1 and 3, the second sure of class 3."""
    probabilities = np.full((80, 6), 1e-6)
    probabilities[0, [1, 3]] = 0.6, 0.4
    probabilities[1, 3] = 1
    proposals = np.tile(np.float32([10, 20, 50, 60]), (80, 1))
    boxes, scores, classes, valid = detect(np.log(probabilities).astype(np.float32), np.zeros_like(outputs[1]), proposals, np.arange(80) < 2)
    assert valid.sum() == 2 and classes[:2].tolist() == [3, 1]
    np.testing.assert_allclose(scores[:2], [1, 0.6], atol=1e-4)
    np.testing.assert_allclose(boxes[:2], proposals[:2], atol=1e-4)


@pytest.mark.parametrize("min_size, found", [(0.0, [0, 1, 2]), (TORCHVISION["detections"], [1, 2])])
def test_small_detections_are_left_out(outputs, detect, min_size, found):
    """Sides of 1/128, 1/64 and 10 pixels, all sure of one class each; the fourth has none."""
    logits = np.where(np.arange(6) == np.arange(80)[:, None] % 5, np.float32(9), 0).astype(np.float32)
    proposals = np.zeros((80, 4), np.float32)
    proposals[:4] = [[10, 20, 10 + 1 / 128, 30], [10, 20, 20, 20 + 1 / 64], [10, 20, 20, 30], [10, 20, 10, 30]]
    _, _, classes, valid = detect(logits, np.zeros_like(outputs[1]), proposals, np.arange(80) < 4, min_size=min_size)
    assert sorted(classes[valid].tolist()) == found
