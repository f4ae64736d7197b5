"""Training batches: one order for a seed, sharded by process, resumable; every image equally often."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from example_records import STILL
from noise_images import (
    CONFIG,
    LANDSCAPE,
    MIXED,
    PORTRAIT,
    assert_same,
    batches,
    ids,
    joined,
    pixels,
    shares,
    source,
)

from mrcnn_jax.data.pipeline import BatchPlan
from mrcnn_jax.data.resize import resized_size
from mrcnn_jax.data.transforms import padded_size, resize_and_pad

# ---- one order for a seed


def test_seed_determines_every_batch():
    first = batches()
    assert_same(first, batches())
    assert ids(first) != ids(batches(seed=6))


def test_seed_determines_which_images_meet_and_how_they_are_augmented():
    def meetings(seed, steps):
        plan = BatchPlan(np.array([LANDSCAPE] * 12 + [PORTRAIT] * 8), batch=4, seed=seed)
        return {frozenset(plan.record_index(step, position) for position in range(4)) for step in steps}

    assert not meetings(0, range(5)) & meetings(1, range(5))
    assert not meetings(0, range(5)) & meetings(0, range(5, 10))  # other batches in the next epoch
    one = source(LANDSCAPE)
    made = [batches(one, images_per_process=1, steps=20, seed=seed) for seed in (5, 6)]
    first, second = ([batch.images.tobytes() for batch, _ in run] for run in made)
    assert first != second


def test_batches_do_not_depend_on_the_number_of_threads():
    one, eight = (batches(config=dataclasses.replace(CONFIG, threads=n), steps=20) for n in (1, 8))
    assert_same(one, eight)


@pytest.mark.parametrize("start", [1, 4, 8, 9])
def test_starting_later_equals_skipping(start):
    assert_same(batches(start=start), batches()[start:])


def test_batch_does_not_depend_on_the_number_of_steps():
    assert_same(batches(steps=3), batches(steps=20)[:3])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batch_of_one(processes):
    assert_same(joined(shares(processes)), batches())


def test_run_resumes_on_another_number_of_processes():
    assert_same(joined(shares(2, start=5)), batches()[5:])


# ---- contents of a batch


def test_batch_holds_the_images_and_objects_of_its_records():
    plain = dataclasses.replace(CONFIG, augment=STILL, short_edge=(20,))
    for batch, info in batches(config=plain):
        assert batch.images.shape[0] == batch.boxes.shape[0] == 4 and batch.images.dtype == np.uint8
        for slot, image_id in enumerate(info.image_ids):
            record = MIXED[image_id - 100]
            size = resized_size(record.height, record.width, 20, plain.long_edge)
            assert tuple(batch.sizes[slot]) == size
            expected = resize_and_pad(pixels(record), size, batch.images.shape[1:3])
            np.testing.assert_array_equal(batch.images[slot], expected)
            np.testing.assert_array_equal(info.original_sizes[slot], [record.height, record.width])
            assert batch.valid[slot].sum() == len(record.objects.ids)
            scale = np.tile([size[1] / record.width, size[0] / record.height], 2)
            boxes = batch.boxes[slot][batch.valid[slot]]
            np.testing.assert_allclose(boxes, record.objects.boxes * scale, rtol=1e-6)


def test_image_is_augmented_anew_each_time():
    made = batches(source(LANDSCAPE), images_per_process=1, steps=40)
    assert len({batch.images[0].tobytes() for batch, _ in made}) == 4  # two sizes, flipped or not


def test_batch_has_one_orientation_and_one_of_two_shapes():
    made = batches(steps=60)
    shapes = {batch.images.shape[1:3] for batch, _ in made}
    assert shapes == {padded_size(CONFIG, False), padded_size(CONFIG, True)} == {(32, 64), (64, 32)}
    for batch, info in made:
        portrait = info.original_sizes[:, 0] > info.original_sizes[:, 1]
        assert portrait.all() or not portrait.any()
        assert batch.images.shape[1:3] == padded_size(CONFIG, bool(portrait[0]))


@pytest.mark.parametrize("size", [LANDSCAPE, PORTRAIT])
def test_one_orientation_alone_is_enough(size):
    made = batches(source(*[size] * 5), steps=10, images_per_process=2)
    assert Counter(sum(ids(made), [])) == dict.fromkeys(range(100, 105), 4)
    assert {batch.images.shape[1:3] for batch, _ in made} == {padded_size(CONFIG, size == PORTRAIT)}


# ---- frequency of images


@pytest.mark.parametrize(
    "landscape, portrait, batch",
    [
        (10, 4, 4), (50, 1, 4), (1, 50, 3), (49, 1, 16), (7, 0, 3), (0, 5, 2),
        (2, 1, 8), (1, 0, 5), (0, 1, 1), (5, 5, 5), (13, 11, 7),
    ],
)  # fmt: skip
def test_every_image_is_seen_equally_often(landscape, portrait, batch):
    plan = BatchPlan(np.array([LANDSCAPE] * landscape + [PORTRAIT] * portrait), batch, seed=3)
    images = landscape + portrait
    seen, by_step = np.zeros(images, int), []
    for step in range(3 * images):  # 3 * batch epochs: the end of an epoch cuts no batch of either stream
        indices = [plan.record_index(step, position) for position in range(batch)]
        assert len(np.unique(np.array(indices) >= landscape)) == 1
        np.add.at(seen, indices, 1)
        by_step.append(seen.copy())
    np.testing.assert_array_equal(seen, 3 * batch)
    of_its_orientation = np.repeat([landscape, portrait], [landscape, portrait])
    for step, seen in enumerate(by_step, start=1):
        # meanwhile each keeps to the average, but for the present epoch and a batch of its orientation
        assert (np.abs(seen - step * batch / images) <= 2 + batch / of_its_orientation).all()


def test_epoch_shows_each_image_once_if_batches_fit():
    plan = BatchPlan(np.array([LANDSCAPE] * 12 + [PORTRAIT] * 8), batch=4, seed=0)
    indices = [[plan.record_index(step, position) for position in range(4)] for step in range(40)]
    epochs = [sum(indices[start : start + 5], []) for start in range(0, 40, 5)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # and each is shuffled anew
    assert len({tuple(index >= 12 for index in epoch[::4]) for epoch in epochs}) > 1  # orientations, too


def test_steps_can_be_looked_up_in_any_order():
    late, walked = BatchPlan(MIXED.sizes, 4, seed=1), BatchPlan(MIXED.sizes, 4, seed=1)
    in_order = [[walked.record_index(step, position) for position in range(4)] for step in range(400)]
    for step in (399, 0, 200, 7):
        assert [late.record_index(step, position) for position in range(4)] == in_order[step]
