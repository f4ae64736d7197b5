"""Frequencies at which images are drawn: repeat factors, weights of data sets, empty images; classes."""

import hashlib
from collections import Counter

import numpy as np
import pytest
import saved_runs
from noise_images import LANDSCAPE, PORTRAIT, assert_same, batches, joined

from mrcnn_jax.config import DataConfig
from mrcnn_jax.data.catalog import open_training
from mrcnn_jax.data.image_sampling import epoch_images, repeat_factors, sample_counts, sampling_weights
from mrcnn_jax.data.mixture import Mixture, merge_infos
from mrcnn_jax.data.pipeline import BatchPlan
from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import DatasetInfo


def drawn(plan: BatchPlan, steps: int) -> np.ndarray:
    """Returns the images of each step."""
    places = range(plan.batch)
    return np.array([[plan.record_index(step, place) for place in places] for step in range(steps)])


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Images 1 to 5, of which 1 has the rare class b and 5 no object; and 11 to 13 of the classes b and c."""
    folder = tmp_path_factory.mktemp("sets")
    first = [saved_runs.image(1, classes=[1, 0])]
    first += [saved_runs.image(i, classes=[0, 0]) for i in (2, 3, 4)] + [saved_runs.image(5, objects=0)]
    others = [saved_runs.image(i, classes=[0, 1]) for i in (11, 12, 13)]
    saved_runs.write(folder / "one", first)
    saved_runs.write(folder / "two", others, others, DatasetInfo("two", (2, 9), ("b", "c")))
    return folder / "one", folder / "two"


def config(sets, number=1, **fields) -> DataConfig:
    paths = [str(path) for path in sets[:number]]
    small = {"short_edge": (20,), "short_edge_test": 20, "long_edge": 40, "max_objects": 2, "mask_size": 4}
    return DataConfig(dataset=paths[0], extra_datasets=tuple(paths[1:]), threads=2, **small, **fields)


# ---- the plan


def test_batches_of_equally_frequent_images_are_those_of_earlier_versions():
    digest = hashlib.blake2b(digest_size=8)
    for batch, _ in batches(steps=12):
        for _, leaf in sorted(vars(batch).items()):
            digest.update(np.ascontiguousarray(leaf).tobytes())
    assert digest.hexdigest() == "afe9c59c04ca338a"
    plan = BatchPlan(np.array([(20, 40)] * 13 + [(40, 20)] * 7), 4, 3)
    order = hashlib.blake2b(drawn(plan, 300).astype(np.int64).tobytes(), digest_size=8)
    assert order.hexdigest() == "7a86ca675a8ac54e"


def test_images_come_as_often_as_their_weights_say():
    weights = np.array([1.0, 2.5, 0.4, 0.0, 1.1, 3.0, 1.0])
    sizes = np.array([LANDSCAPE] * 5 + [PORTRAIT] * 2)
    plan = BatchPlan(sizes, 3, seed=1, weights=weights)
    assert plan.lengths == [5, 4] and plan.images == 9
    images = drawn(plan, 3 * 400)  # 400 epochs
    assert all(len(set(step >= 5)) == 1 for step in images)  # one orientation
    np.testing.assert_allclose(np.bincount(images.ravel()) / 400, weights, atol=0.05)
    late = BatchPlan(sizes, 3, seed=1, weights=weights)
    assert [late.record_index(700, place) for place in range(3)] == images[700].tolist()
    assert (drawn(BatchPlan(sizes, 3, seed=2, weights=weights), 30) != images[:30]).any()
    assert 3 not in [*plan.with_replacements(0)]


def test_counts_of_an_epoch_are_expectations_rounded_up_or_down():
    weights, random = np.array([0.3, 1.0, 2.6, 1.1]), np.random.default_rng(0)
    counts = np.array([sample_counts(weights, 5, random) for _ in range(4000)])
    assert (counts.sum(axis=1) == 5).all()
    assert (np.abs(counts - weights) < 1).all() and (counts[:, 1] == 1).all()
    np.testing.assert_allclose(counts.mean(axis=0), weights, atol=0.03)


# ---- weights


def test_repeat_factors_are_those_of_the_paper():
    """Class 0 in 8 of 10 images, class 1 in 2, class 2 in 1, with 0.4 as threshold."""
    images = np.array([*range(8), 0, 0, 1, 8])
    classes = np.array([0] * 8 + [1, 1, 1, 2])
    expected = [np.sqrt(0.4 / 0.2)] * 2 + [1] * 6 + [np.sqrt(0.4 / 0.1), 1]
    np.testing.assert_allclose(repeat_factors(images, classes, 10, 0.4), expected)


def test_weights_of_one_data_set(sets):
    def weights(**fields):
        given = config(sets, **fields)
        return sampling_weights(open_training(given), given)

    assert weights() is None
    np.testing.assert_allclose(weights(repeat_threshold=0.8), [2, 1, 1, 1, 1])  # b: sqrt(0.8 / 0.2)
    np.testing.assert_allclose(weights(empty_share=0.0), [1, 1, 1, 1, 0])
    np.testing.assert_allclose(weights(empty_share=0.5), [1, 1, 1, 1, 4])
    both = config(sets, empty_share=0.5, repeat_threshold=0.8)
    assert epoch_images(open_training(both), both) == 10


def test_weights_of_data_sets_are_shares_of_what_is_drawn(sets):
    given = config(sets, 2, weights=(1.0, 3.0))
    weights = sampling_weights(open_training(given), given)
    np.testing.assert_allclose(weights, [2 / 5] * 5 + [2] * 3)  # together 8, as without
    everything = config(sets, 2, weights=(1.0, 1.0), empty_share=0.2, repeat_threshold=0.8)
    weights = sampling_weights(open_training(everything), everything)
    assert weights[4] / weights.sum() == pytest.approx(0.2)
    np.testing.assert_allclose(weights[:4], weights[0])  # a and b are both in 4 of 8 images
    np.testing.assert_allclose(weights[5:], weights[5])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"weights": (1.0,), "extra_datasets": ("b", "c")}, "data.weights must have a number for each of 3"),
        ({"weights": (0.0,)}, "data.weights must be greater than 0"),
        ({"empty_share": 1.0}, "data.empty_share must be less than 1"),
        ({"repeat_threshold": 2.0}, "data.repeat_threshold must lie between 0 and 1"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        DataConfig(**fields)


def test_a_share_of_images_without_objects_needs_some(sets, tmp_path):
    given = config(sets[1:], empty_share=0.1)
    with pytest.raises(InputError, match="empty_share is 0.1, but every training image of .* has objects"):
        sampling_weights(open_training(given), given)
    saved_runs.write(tmp_path / "old")
    (tmp_path / "old/train_objects.npz").unlink()
    given = config([tmp_path / "old"], repeat_threshold=0.1)
    with pytest.raises(InputError, match="need the table of objects that .* lacks.*: prepare it again"):
        sampling_weights(open_training(given), given)


# ---- mixtures


def test_classes_are_merged_by_name_in_a_stable_order():
    one = DatasetInfo("one", (3, 1), ("b", "a"), ("nose", "tail"), (0, 1), keypoint_classes=(1,))
    two = one._replace(name="two", category_ids=(1, 7, 3), category_names=("c", "a", "a"))
    merged, maps = merge_infos([one, two])
    assert merged.category_names == ("b", "a", "c", "a") and merged.category_ids == (3, 1, 4, 5)
    assert merged.name == "one + two" and merged.keypoint_names == ("nose", "tail")
    assert [classes.tolist() for classes in maps] == [[0, 1], [2, 1, 3]] and merged.keypoint_classes == (1,)
    assert merge_infos([one])[0] == one
    other = two._replace(keypoint_names=("nose", "ear"))
    assert merge_infos([one, other])[0].keypoint_names == ()


def test_mixture_holds_the_records_of_all(sets):
    mixture = open_training(config(sets, 2))
    assert isinstance(mixture, Mixture) and len(mixture) == 8 and len(mixture.sizes) == 8
    assert [mixture[index].image_id for index in range(8)] == [1, 2, 3, 4, 5, 11, 12, 13]
    assert mixture.info.category_names == ("a", "b", "c") and mixture.info.category_ids == (1, 2, 9)
    assert mixture[0].objects.classes.tolist() == [1, 0] and mixture[7].objects.classes.tolist() == [1, 2]
    assert mixture[4].objects.classes.shape == (0,) and str(sets[1]) in mixture.directory


def test_mixed_batches_are_the_same_on_any_number_of_processes_and_after_a_resume(sets):
    given = config(sets, 2, weights=(1.0, 2.0), empty_share=0.2, repeat_threshold=0.8)
    source = open_training(given)
    whole = batches(source, given, steps=30)
    halves = [batches(source, given, steps=30, images_per_process=2, processes=2, process=p) for p in (0, 1)]
    assert_same(joined(halves), whole)
    assert_same(batches(source, given, steps=30, start=17), whole[17:])
    seen = Counter(np.concatenate([info.image_ids for _, info in whole]).tolist())
    assert seen[11] > seen[2] and sum(seen.values()) == 120
