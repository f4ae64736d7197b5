"""Matching against the libraries' matchers and a slow reference; sampling: how many, which, and that each is as likely."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from mrcnn_jax import ops
from mrcnn_jax.ops import sample_labels

pytestmark = pytest.mark.usefixtures("strict_promotion")


def match(overlaps, valid, high, low, low_quality=False):
    """ops.match over a matrix of overlaps at hand."""
    overlaps = jnp.asarray(overlaps)
    return ops.match(lambda slot: overlaps[slot], overlaps.shape[1], valid, high, low, low_quality)


# ("q" has two objects that nothing overlaps, "q7" none), thresholds, low-quality rule
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


def test_objects_that_nothing_overlaps_change_nothing(golden):
    """The libraries would make every candidate positive that has no overlap with them (label ``q`` is 1 where ``q7`` is 0)."""
    arrays = golden("iou_matcher")
    index, labels = match(arrays["q"], jnp.ones(9, bool), 0.7, 0.3, low_quality=True)
    np.testing.assert_array_equal(index, arrays["d2_match7_0.7_0.3_lq1"])
    np.testing.assert_array_equal(labels, arrays["d2_label7_0.7_0.3_lq1"])
    assert (arrays["d2_label_0.7_0.3_lq1"] == 1).all() and (labels != 1).sum() > 100
    np.testing.assert_array_equal(arrays["d2_match_0.7_0.3_lq1"], index)
    np.testing.assert_array_equal(arrays["tv_match_0.7_0.3_lq1"], index)  # and none is background or between


@pytest.mark.parametrize("low_quality", [False, True])
def test_equals_the_oracle_with_ties_and_empty_slots(low_quality):
    rng = np.random.default_rng(3)
    overlaps = rng.choice(np.float32([0, 0.125, 0.25, 0.375, 0.5, 0.625]), (40, 5, 12))
    overlaps *= rng.random((40, 5, 1)) < 0.8  # some objects overlap nothing
    valid = rng.random((40, 5)) < 0.6
    valid[::8] = False  # some images have no object at all
    index, labels = jax.jit(jax.vmap(lambda overlaps, valid: match(overlaps, valid, 0.5, 0.25, low_quality)))(overlaps, valid)
    for n in range(40):
        expected_index, expected_labels = oracles.match(overlaps[n], valid[n], 0.5, 0.25, low_quality)
        np.testing.assert_array_equal(labels[n], expected_labels)
        np.testing.assert_array_equal(index[n], expected_index)
    assert set(np.unique(labels)) == {-1, 0, 1}


def test_thresholds_belong_to_the_upper_label():
    overlaps = jnp.asarray([[0.75, 0.7499, 0.25, 0.2499]])
    _, labels = match(overlaps, jnp.ones(1, bool), 0.75, 0.25)
    assert labels.tolist() == [1, -1, -1, 0]


def test_without_objects_all_is_background():
    index, labels = match(jnp.full((3, 4), 0.9), jnp.zeros(3, bool), 0.7, 0.3, low_quality=True)
    assert labels.tolist() == [0] * 4 and index.tolist() == [0] * 4


# 64 candidates in every case, so that they share a compilation: positives and backgrounds in the middle of ignored ones
def labels_with(positives, backgrounds):
    labels = np.full(64, -1, np.int32)
    places = np.random.default_rng(positives * 100 + backgrounds).permutation(64)
    labels[places[:positives]] = 1
    labels[places[positives : positives + backgrounds]] = 0
    return labels


draw = jax.jit(lambda key, labels: sample_labels(key, labels, 16, 0.25))


@pytest.mark.parametrize(
    "positives, backgrounds, expected_positive, expected",
    [(20, 40, 4, 16), (4, 12, 4, 16), (2, 40, 2, 16), (0, 40, 0, 16), (20, 0, 4, 4), (3, 5, 3, 8), (0, 7, 0, 7), (1, 0, 1, 1), (0, 0, 0, 0)],
)
def test_sample_counts(positives, backgrounds, expected_positive, expected):
    labels = labels_with(positives, backgrounds)
    for seed in range(5):
        index, positive, exists = map(np.asarray, draw(jax.random.key(seed), labels))
        assert index.shape == positive.shape == exists.shape == (16,)
        assert positive.sum() == expected_positive and exists.sum() == expected
        assert (labels[index[positive]] == 1).all() and (labels[index[exists & ~positive]] == 0).all()
        assert positive[:expected_positive].all() and exists[positive].all()  # positives first
        assert len(set(index[exists].tolist())) == expected  # without replacement
        assert ((index >= 0) & (index < 64)).all()  # what does not exist can still be looked up


def test_fewer_candidates_than_asked_for():
    index, positive, exists = jax.jit(lambda key, labels: sample_labels(key, labels, 16, 0.5))(jax.random.key(0), jnp.asarray([0, 1, -1, 0]))
    assert exists.sum() == 3 and positive.tolist() == [True] + [False] * 15
    assert index[0] == 1 and set(index[exists].tolist()) == {0, 1, 3}


def test_every_candidate_is_as_likely_and_so_is_every_pair():
    labels = labels_with(8, 24)
    draws = 4000
    index, positive, exists = map(np.asarray, jax.vmap(draw, in_axes=(0, None))(jax.random.split(jax.random.key(7), draws), labels))
    for label, chosen, drawn in ((1, positive, 4), (0, exists & ~positive, 12)):
        candidates = np.flatnonzero(labels == label)
        number = len(candidates)
        taken = np.zeros((draws, 64))
        np.put_along_axis(taken, np.where(chosen, index, index[:, :1] if label else index[:, -1:]), 1, axis=1)
        taken = taken[:, candidates]
        assert (taken.sum(axis=1) == drawn).all()
        share, pair_share = drawn / number, drawn * (drawn - 1) / (number * (number - 1))
        together = taken.T @ taken / draws
        five_sigma = 5 * np.sqrt(0.25 / draws)
        np.testing.assert_allclose(np.diag(together), share, atol=five_sigma)
        np.testing.assert_allclose(together[~np.eye(number, dtype=bool)], pair_share, atol=five_sigma)


def test_one_key_one_sample():
    labels = labels_with(20, 40)
    first, again, other = (np.asarray(draw(jax.random.key(seed), labels)[0]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
