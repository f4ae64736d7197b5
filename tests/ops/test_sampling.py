"""Sampling of labelled candidates: counts, order, and uniformity; choice of hard ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.ops import hard_examples, sample_labels

pytestmark = pytest.mark.usefixtures("strict_promotion")


def labels_with(positives, backgrounds):
    """Labels of 64 candidates, so that all cases share a compilation; the rest are ignored."""
    labels = np.full(64, -1, np.int32)
    places = np.random.default_rng(positives * 100 + backgrounds).permutation(64)
    labels[places[:positives]] = 1
    labels[places[positives : positives + backgrounds]] = 0
    return labels


draw = jax.jit(lambda key, labels: sample_labels(key, labels, 16, 0.25))


@pytest.mark.parametrize(
    "positives, backgrounds, expected_positive, expected",
    [
        (20, 40, 4, 16), (4, 12, 4, 16), (2, 40, 2, 16), (0, 40, 0, 16), (20, 0, 4, 4), (3, 5, 3, 8),
        (0, 7, 0, 7), (1, 0, 1, 1), (0, 0, 0, 0),
    ],
)  # fmt: skip
def test_counts_of_positives_and_samples(positives, backgrounds, expected_positive, expected):
    labels = labels_with(positives, backgrounds)
    for seed in range(5):
        index, positive, valid = map(np.asarray, draw(jax.random.key(seed), labels))
        assert index.shape == positive.shape == valid.shape == (16,)
        assert positive.sum() == expected_positive and valid.sum() == expected
        assert (labels[index[positive]] == 1).all() and (labels[index[valid & ~positive]] == 0).all()
        assert positive[:expected_positive].all() and valid[positive].all()  # positives first
        assert len(set(index[valid].tolist())) == expected  # without replacement
        assert ((index >= 0) & (index < 64)).all()  # also where not valid


def test_fewer_candidates_than_samples():
    labels = jnp.asarray([0, 1, -1, 0])
    index, positive, valid = sample_labels(jax.random.key(0), labels, 16, 0.5)
    assert valid.sum() == 3 and positive.tolist() == [True] + [False] * 15
    assert index[0] == 1 and set(index[valid].tolist()) == {0, 1, 3}


def test_candidates_and_pairs_are_drawn_uniformly():
    labels = labels_with(8, 24)
    draws = 4000
    keys = jax.random.split(jax.random.key(7), draws)
    index, positive, valid = map(np.asarray, jax.vmap(draw, in_axes=(0, None))(keys, labels))
    for label, chosen, drawn in ((1, positive, 4), (0, valid & ~positive, 12)):
        candidates = np.flatnonzero(labels == label)
        number = len(candidates)
        taken = np.zeros((draws, 64))
        filler = index[:, :1] if label else index[:, -1:]
        np.put_along_axis(taken, np.where(chosen, index, filler), 1, axis=1)
        taken = taken[:, candidates]
        assert (taken.sum(axis=1) == drawn).all()
        share, pair_share = drawn / number, drawn * (drawn - 1) / (number * (number - 1))
        together = taken.T @ taken / draws
        five_sigma = 5 * np.sqrt(0.25 / draws)
        np.testing.assert_allclose(np.diag(together), share, atol=five_sigma)
        np.testing.assert_allclose(together[~np.eye(number, dtype=bool)], pair_share, atol=five_sigma)


def test_sample_depends_on_the_key_only():
    labels = labels_with(20, 40)
    first, again, other = (np.asarray(draw(jax.random.key(seed), labels)[0]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    "number, expected", [(2, [1, 3]), (4, [1, 3, 4, 6]), (8, [1, 3, 4, 6, 0, 2])]
)  # fmt: skip
def test_hard_examples_are_the_valid_ones_of_greatest_loss(number, expected):
    losses = jnp.asarray([0.5, 3.0, 0.0, 2.0, 2.0, 9.0, 1.0])
    index, valid = hard_examples(losses, jnp.asarray([1, 1, 1, 1, 1, 0, 1], bool), number)
    assert index.shape == valid.shape == (number,)
    assert index[valid].tolist() == expected and valid[: len(expected)].all()


def test_no_hard_examples():
    assert not hard_examples(jnp.ones(3), jnp.zeros(3, bool), 2)[1].any()
    with pytest.raises(ValueError, match="num_samples must be 1 or more, not 0"):
        hard_examples(jnp.zeros(3), jnp.ones(3, bool), 0)


def test_constants_of_numpy_in_a_jitted_function():
    labels = np.array([1, 0, -1])
    index, positive, valid = jax.jit(lambda key: sample_labels(key, labels, 2, 0.5))(jax.random.key(0))
    assert index.tolist() == [0, 1] and positive.tolist() == [True, False] and valid.all()
    index, _ = jax.jit(lambda losses: hard_examples(losses, labels >= 0, 2))(jnp.asarray([1.0, 2.0, 3.0]))
    assert index.tolist() == [1, 0]
