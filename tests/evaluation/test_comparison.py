"""Comparison of two sets of detections: literal differences, intervals, seeds, what cannot be compared."""

import numpy as np
import pytest
from square_objects import INFO, detections, ground_truth, matches_of

from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.analysis.average_precision import average_precision
from mrcnn_jax.evaluation.analysis.comparison import compare

TRUTH = ground_truth((7, 3, 0, 0, 20), (7, 17, 40, 0, 20), (9, 3, 0, 0, 20), (9, 17, 40, 0, 20))
PERFECT = (0, 0.9, 0, 0, 20), (1, 0.8, 40, 0, 20)


def results(first, second):
    """Returns results with these detections in the two images."""
    return detections(*first).to_coco(7, INFO) + detections(*second).to_coco(9, INFO)


def test_differences_are_literal_and_intervals_cover_them():
    half, all_ = (matches_of(TRUTH, results(PERFECT, part)) for part in (PERFECT[:1], PERFECT))
    found = compare(half, all_, resamples=400, seed=3)
    row = found["metrics"]["AP"]
    assert row["first"] == pytest.approx(50 + 50 * 51 / 101) and row["second"] == pytest.approx(100)
    # an image in two is drawn twice, once or not at all: the dogs' AP is 0, 51/101 or 1
    assert (row["low"], row["high"]) == (pytest.approx(0), pytest.approx(50))
    assert found["classes"]["cat"] == {
        "first": pytest.approx(100), "second": pytest.approx(100), "difference": 0, "low": 0, "high": 0
    }  # fmt: skip
    assert found["errors"]["missed"]["first"] == pytest.approx(50 * 50 / 101)
    assert found["errors"]["missed"]["low"] is None
    assert [best["f1"] for best in found["best"]] == [pytest.approx(6 / 7, abs=1e-6), 1]


def test_the_same_detections_do_not_differ():
    same = matches_of(TRUTH, results(PERFECT[:1], PERFECT[1:]))
    for row in compare(same, same, resamples=50)["metrics"].values():
        assert (row["difference"], row["low"], row["high"]) == (0, 0, 0)


def test_a_seed_decides_the_intervals():
    random, sides = np.random.default_rng(0), []
    for _ in range(2):
        found = [(int(c), float(s), 40 * int(c) + int(x), 0, 20)
                 for c, s, x in zip(random.integers(0, 2, 12), random.random(12), random.integers(0, 9, 12),
                                    strict=True)]  # fmt: skip
        sides.append(matches_of(TRUTH, results(found[:6], found[6:])))
    once, again, *others = (compare(*sides, resamples=3, seed=seed)["metrics"] for seed in (1, 1, 2, 3, 4))
    assert once == again and any(once != other for other in others)
    assert all(once["AP"]["difference"] == other["AP"]["difference"] for other in others)


def test_precision_of_weighted_images_equals_its_definition():
    random = np.random.default_rng(1)
    for _ in range(20):
        correct, ignored = random.random((2, 30)) < 0.3
        correct &= ~ignored
        weights = random.integers(0, 4, 30).astype(float)
        objects = weights[correct].sum() + random.integers(1, 9)
        true = np.cumsum(weights * correct)
        recall, precision = true / objects, true / np.maximum(np.cumsum(weights * ~ignored), 1)
        best = [precision[recall >= level].max(initial=0) for level in np.linspace(0, 1, 101)]
        found = average_precision(correct[None], ignored[None], np.array([objects]), weights[None])
        assert found[0, 0] == pytest.approx(np.mean(best))


def test_absent_classes_and_other_truths():
    empty = ground_truth()
    none = matches_of(empty, [])
    row = compare(none, none, resamples=5)["metrics"]["AP"]
    assert set(row.values()) == {None}
    cats = compare(*[matches_of(TRUTH, results(PERFECT, ()))] * 2, resamples=5, classes=["cat"])
    assert list(cats["classes"]) == ["cat"]
    with pytest.raises(InputError, match="the same images, classes and objects"):
        compare(none, matches_of(TRUTH, []))
