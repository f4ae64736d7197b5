"""Soft-NMS against a plain loop in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax import ops


def expected(boxes, scores, groups, count, method, threshold, sigma):
    """The rule as the paper states it: take the best box, lower the scores of the others, repeat."""
    scores, chosen = scores.astype(np.float64), []
    for _ in range(count):
        best = max(set(range(len(scores))) - {index for index, _ in chosen}, key=lambda index: scores[index])
        chosen.append((best, scores[best]))
        for other in range(len(scores)):
            if groups[other] == groups[best]:
                overlap = iou(boxes[best], boxes[other])
                if method == "gaussian":
                    scores[other] *= np.exp(-(overlap**2) / sigma)
                elif overlap > threshold:
                    scores[other] *= 1 - overlap
    return chosen


def iou(one, other):
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    common = np.prod(np.maximum(sides, 0))
    return common / (np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - common)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("num_groups", [1, 3])
def test_selection_and_scores_equal_a_plain_loop(method, num_groups):
    random = np.random.default_rng(3)
    corners = random.uniform(0, 60, (40, 2))
    boxes = np.concatenate([corners, corners + random.uniform(10, 40, (40, 2))], axis=1)
    scores, groups = random.uniform(0.05, 1, 40), random.integers(0, num_groups, 40)
    arrays = np.float32(boxes), np.float32(scores)
    index, lowered, valid = ops.soft_nms(
        *arrays, 25, groups=groups, method=method, threshold=0.3, sigma=0.4
    )
    plain = expected(boxes, scores, groups, 25, method, 0.3, 0.4)
    assert valid.all() and index.tolist() == [one for one, _ in plain]
    np.testing.assert_allclose(lowered, [score for _, score in plain], rtol=2e-4)


def test_a_box_without_overlap_keeps_its_score_and_a_duplicate_loses_it():
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]])
    index, scores, valid = ops.soft_nms(boxes, np.float32([0.9, 0.8, 0.3]), 3, method="linear")
    assert index.tolist() == [0, 2, 1] and valid.all()
    np.testing.assert_allclose(scores, [0.9, 0.3, 0.0], atol=1e-7)


def test_invalid_boxes_are_never_selected():
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 9, 9], [0, 0, np.nan, 8], [5, 5, 8, 8]])
    valid = np.array([True, False, True, True])
    index, scores, found = ops.soft_nms(boxes, np.float32([0.2, 0.9, 0.9, 0.1]), 4, valid)
    assert found.tolist() == [True, True, False, False]
    assert index[:2].tolist() == [0, 3] and scores[2:].tolist() == [0, 0]


def test_no_boxes_and_no_output():
    index, scores, valid = ops.soft_nms(jnp.zeros((0, 4)), jnp.zeros(0), 5)
    assert index.shape == scores.shape == valid.shape == (0,)
    assert ops.soft_nms(jnp.zeros((3, 4)), jnp.zeros(3), 0)[0].shape == (0,)


def test_wrong_shapes_are_refused_by_name(without_type_checks):
    with pytest.raises(ValueError, match="scores"):
        ops.soft_nms(jnp.zeros((3, 4)), jnp.zeros(4), 2)


def test_other_methods_are_refused(without_type_checks):
    with pytest.raises(ValueError, match="method must be \"linear\" or \"gaussian\", not 'gauss'"):
        ops.soft_nms(jnp.zeros((2, 4)), jnp.zeros(2), 2, method="gauss")
