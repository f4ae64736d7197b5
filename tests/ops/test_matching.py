"""Matching of candidates to objects: against the libraries and the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from mrcnn_jax import ops

pytestmark = pytest.mark.usefixtures("strict_promotion")


def match(overlaps, valid, foreground, background, low_quality=False):
    """Calls ops.match with a matrix of overlaps."""
    overlaps = jnp.asarray(overlaps)
    return ops.match(
        lambda slot: overlaps[slot], overlaps.shape[1], valid, foreground, background, low_quality
    )


# matrix of overlaps ("q" has two objects without overlap, "q7" none), thresholds, low-quality rule
LIBRARY_CASES = [("q", 0.7, 0.3, False), ("q", 0.5, 0.5, False), ("q7", 0.7, 0.3, True)]


@pytest.mark.parametrize("matrix, high, low, low_quality", LIBRARY_CASES)
def test_equals_the_libraries(golden, matrix, high, low, low_quality):
    arrays = golden("iou_matcher")
    case = f"{matrix[1:]}_{high}_{low}_lq{int(low_quality)}"
    overlaps = arrays[matrix]
    index, labels = match(overlaps, jnp.ones(len(overlaps), bool), high, low, low_quality)
    np.testing.assert_array_equal(index, arrays[f"d2_match{case}"])
    np.testing.assert_array_equal(labels, arrays[f"d2_label{case}"])
    as_torchvision = np.select([np.asarray(labels) == 1, np.asarray(labels) == 0], [index, -1], -2)
    np.testing.assert_array_equal(as_torchvision, arrays[f"tv_match{case}"])


def test_objects_without_overlap_change_nothing(golden):
    """The libraries would make every candidate without overlap positive: ``q`` is 1 where ``q7`` is 0."""
    arrays = golden("iou_matcher")
    index, labels = match(arrays["q"], jnp.ones(9, bool), 0.7, 0.3, low_quality=True)
    np.testing.assert_array_equal(index, arrays["d2_match7_0.7_0.3_lq1"])
    np.testing.assert_array_equal(labels, arrays["d2_label7_0.7_0.3_lq1"])
    assert (arrays["d2_label_0.7_0.3_lq1"] == 1).all() and (labels != 1).sum() > 100
    np.testing.assert_array_equal(arrays["d2_match_0.7_0.3_lq1"], index)
    np.testing.assert_array_equal(arrays["tv_match_0.7_0.3_lq1"], index)  # none is background or ignored


@pytest.mark.parametrize("low_quality", [False, True])
def test_equals_the_oracle_with_ties_and_empty_slots(low_quality):
    rng = np.random.default_rng(3)
    overlaps = rng.choice(np.float32([0, 0.125, 0.25, 0.375, 0.5, 0.625]), (40, 5, 12))
    overlaps *= rng.random((40, 5, 1)) < 0.8  # some objects overlap nothing
    valid = rng.random((40, 5)) < 0.6
    valid[::8] = False  # some images have no object at all
    match_all = jax.jit(jax.vmap(lambda overlaps, valid: match(overlaps, valid, 0.5, 0.25, low_quality)))
    index, labels = match_all(overlaps, valid)
    for n in range(40):
        expected_index, expected_labels = oracles.match(overlaps[n], valid[n], 0.5, 0.25, low_quality)
        np.testing.assert_array_equal(labels[n], expected_labels)
        np.testing.assert_array_equal(index[n], expected_index)
    assert set(np.unique(labels)) == {-1, 0, 1}


def test_overlap_equal_to_a_threshold_has_the_upper_label():
    overlaps = jnp.asarray([[0.75, 0.7499, 0.25, 0.2499]])
    _, labels = match(overlaps, jnp.ones(1, bool), 0.75, 0.25)
    assert labels.tolist() == [1, -1, -1, 0]


def test_slots_of_numpy():
    overlaps, valid = jnp.asarray([[0.2, 0.8], [0.9, 0.0]]), np.array([True, False])
    index, labels = match(overlaps, valid, 0.5, 0.5)
    assert index.tolist() == [0, 0] and labels.tolist() == [0, 1]
    np.testing.assert_array_equal(ops.max_overlap(lambda slot: overlaps[slot], 2, valid), overlaps[0])


def test_without_objects_everything_is_background():
    index, labels = match(jnp.full((3, 4), 0.9), jnp.zeros(3, bool), 0.7, 0.3, low_quality=True)
    assert labels.tolist() == [0] * 4 and index.tolist() == [0] * 4
