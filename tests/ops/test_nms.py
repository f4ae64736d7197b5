"""Non-maximum suppression: the greedy answer, with ties, groups and validity."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from mrcnn_jax import ops
from mrcnn_jax.ops import masked_top_k

pytestmark = pytest.mark.usefixtures("strict_promotion")

nms = jax.jit(ops.nms)


def kept_best_first(keep, scores):
    index, valid = masked_top_k(keep, jnp.asarray(scores), len(scores))
    return np.asarray(index)[np.asarray(valid)]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_equals_torchvision_and_detectron2(golden, threshold):
    arrays = golden("nms")
    boxes, scores, labels = arrays["boxes"], arrays["scores"], jnp.asarray(arrays["labels"])
    np.testing.assert_array_equal(
        kept_best_first(nms(boxes, scores, threshold), scores), arrays[f"keep_{threshold}"]
    )
    by_class = kept_best_first(nms(boxes, scores, threshold, groups=labels), scores)
    np.testing.assert_array_equal(by_class, arrays[f"bkeep_{threshold}"])
    np.testing.assert_array_equal(by_class, arrays[f"d2_bkeep_{threshold}"])


def test_edge_cases_equal_torchvision(golden):
    arrays = golden("nms")
    keep = nms(arrays["edge_boxes"], arrays["edge_scores"], 0.5)
    np.testing.assert_array_equal(kept_best_first(keep, arrays["edge_scores"]), arrays["edge_keep"])


def test_zero_boxes(golden):
    keep = nms(jnp.zeros((0, 4)), jnp.zeros(0), 0.5)
    assert keep.shape == golden("nms")["empty_keep"].shape == (0,)
    index, valid = masked_top_k(keep, jnp.zeros(0), 3)
    assert index.shape == (3,) and not valid.any()


def test_overlap_equal_to_the_threshold_is_kept():
    boxes = jnp.asarray([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0]])  # IoU exactly one half
    scores = jnp.asarray([0.9, 0.8])
    assert nms(boxes, scores, 0.5).tolist() == [True, True]
    assert nms(boxes, scores, 0.499).tolist() == [True, False]


def test_first_of_equal_scores_is_kept():
    boxes = jnp.asarray([[0.0, 0.0, 10.0, 10.0]] * 3)
    assert nms(boxes, jnp.asarray([0.5, 0.5, 0.5]), 0.5).tolist() == [True, False, False]
    assert nms(boxes, jnp.asarray([0.5, 0.7, 0.7]), 0.5).tolist() == [False, True, False]


def test_long_chain_of_suppressions():
    """Each box would suppress the next, so every second one is kept: no fixed number of sweeps suffices."""
    left = np.arange(101, dtype=np.float32)
    boxes = np.stack(
        [left, left * 0, left + 3, left * 0 + 1], axis=1
    )  # IoU 1/2 with the next, 1/5 with the one after
    order = np.random.default_rng(0).permutation(101)
    keep = nms(boxes[order], (-left)[order], 0.4)
    np.testing.assert_array_equal(keep, order % 2 == 0)


@pytest.fixture(scope="module")
def crowds():
    """30 cases of 40 boxes with integer corners (overlaps are exact fractions) and few distinct scores."""
    rng = np.random.default_rng(2)
    corner = rng.integers(0, 16, (30, 40, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 14, corner.shape)], axis=-1).astype(np.float32)
    scores = rng.integers(0, 9, (30, 40)).astype(np.float32) / 8 - 0.5
    return boxes, scores, rng.random((30, 40)) < 0.7, rng.integers(0, 3, (30, 40)).astype(np.int32)


@pytest.mark.parametrize(
    "use_valid, use_groups", [(False, False), (True, False), (False, True), (True, True)]
)
def test_equals_the_greedy_oracle(crowds, use_valid, use_groups):
    boxes, scores, valid, groups = crowds
    valid = valid if use_valid else np.ones_like(valid)
    groups = groups if use_groups else np.zeros_like(groups)

    def case_nms(threshold, boxes, scores, valid, groups):
        return ops.nms(boxes, scores, threshold, valid, groups)

    suppress = jax.jit(jax.vmap(case_nms, in_axes=(None, 0, 0, 0, 0)))
    for threshold in (0.1, 0.25, 0.5, 0.75, 1.0):
        keep = suppress(threshold, boxes, scores, valid, groups)
        for n in range(len(boxes)):
            expected = oracles.greedy_nms(boxes[n], scores[n], threshold, valid[n], groups[n])
            np.testing.assert_array_equal(kept_best_first(keep[n], scores[n]), expected)


def test_invalid_boxes_neither_suppress_nor_are_kept():
    boxes = jnp.asarray([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [jnp.nan] * 4])
    keep = nms(boxes, jnp.asarray([0.9, 0.8, jnp.inf]), 0.5, valid=jnp.asarray([False, True, False]))
    assert keep.tolist() == [False, True, False]
    assert not nms(boxes, jnp.asarray([0.9, 0.8, jnp.inf]), 0.5, valid=jnp.zeros(3, bool)).any()


def test_masked_top_k_is_sorted_and_marks_valid_entries():
    keep = jnp.asarray([True, False, True, True, True])
    scores = jnp.asarray([0.2, 0.9, 0.7, 0.2, -3.0])
    index, valid = masked_top_k(keep, scores, 3)
    assert index.tolist() == [2, 0, 3] and valid.tolist() == [True] * 3
    index, valid = masked_top_k(keep, scores, 7)
    assert index[:4].tolist() == [2, 0, 3, 4] and valid.tolist() == [True] * 4 + [False] * 3
    assert ((index >= 0) & (index < 5)).all()  # also where not valid
    index, valid = masked_top_k(keep, scores, 0)
    assert index.shape == valid.shape == (0,)


def test_half_precision_areas_do_not_overflow():
    boxes = jnp.asarray([[0, 0, 400, 400], [1, 1, 401, 401]], jnp.float16)
    assert nms(boxes, jnp.asarray([0.9, 0.8]), 0.5).tolist() == [True, False]


def test_boxes_that_are_not_finite_neither_suppress_nor_are_kept():
    boxes = [
        [0.0, 0.0, 10.0, 10.0],
        [jnp.nan, 0.0, 10.0, 10.0],
        [0.0, 0.0, jnp.inf, 10.0],
        [1.0, 0.0, 10.0, 10.0],
    ]
    keep = nms(jnp.asarray(boxes), jnp.asarray([0.5, 0.9, 0.8, 0.4]), 0.5)
    assert keep.tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"boxes": jnp.zeros((3, 5))}, r"boxes must have shape \[N, 4\], not \[3, 5\]"),
        ({"scores": jnp.zeros((3, 1))}, r"scores must have shape \[3\], not \[3, 1\]"),
        ({"valid": jnp.ones(2, bool)}, r"valid must have shape \[3\], not \[2\]"),
        ({"groups": jnp.zeros(4, jnp.int32)}, r"groups must have shape \[3\], not \[4\]"),
    ],
)
def test_wrong_shapes_are_refused_by_name(without_type_checks, arguments, message):
    usual = {"boxes": jnp.zeros((3, 4)), "scores": jnp.zeros(3)}
    with pytest.raises(ValueError, match=message):
        ops.nms(**usual | arguments, threshold=0.5)


def greedy_by_matrix(boxes, scores, threshold, groups):
    """The greedy rule on the matrix of all overlaps, for more boxes than the oracle can take."""
    suppresses = (np.asarray(ops.iou(boxes, boxes)) > threshold) & (groups[:, None] == groups)
    keep = np.ones(len(boxes), bool)
    for index in np.argsort(-scores, kind="stable"):
        if keep[index]:
            keep &= ~suppresses[index]
            keep[index] = True
    return keep


@pytest.mark.parametrize("number", [257, 700])
@pytest.mark.parametrize("kind", ["sparse", "crowded", "equal scores", "chain", "groups"])
def test_several_tiles_equal_the_greedy_rule(number, kind):
    rng = np.random.default_rng(number)
    corner = rng.uniform(0, 60 if kind == "crowded" else 900, (number, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 120, (number, 2))], axis=1).astype(np.float32)
    scores, groups = rng.random(number).astype(np.float32), np.zeros(number, np.int32)
    if kind == "chain":
        boxes = np.arange(number, dtype=np.float32)[:, None] * [1, 0, 1, 0] + np.float32([0, 0, 3, 1])
        boxes, scores = boxes.astype(np.float32)[rng.permutation(number)], -boxes[:, 0].astype(np.float32)
    elif kind == "equal scores":
        scores = np.zeros_like(scores)
    elif kind == "groups":
        groups = rng.integers(0, 5, number).astype(np.int32)
    expected = greedy_by_matrix(boxes, scores, 0.4, groups)
    np.testing.assert_array_equal(nms(boxes, scores, 0.4, groups=groups), expected)
    best = kept_best_first(jnp.asarray(expected), scores)
    keep = ops.nms(boxes, scores, 0.4, groups=groups, max_output=20)
    np.testing.assert_array_equal(kept_best_first(keep, scores), best[:20])


def test_no_gradient_flows_through_it():
    boxes = jnp.asarray([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])

    def total(boxes):
        return jnp.sum(jnp.where(nms(boxes, jnp.ones(2), 0.5)[:, None], boxes, 0))

    gradient = jax.grad(total)(boxes)
    np.testing.assert_array_equal(gradient, [[1] * 4, [0] * 4])
