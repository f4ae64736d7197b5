"""Batches of an evaluation: every image once, in a fixed order, shared among processes."""

import dataclasses

import numpy as np
import pytest
from noise_images import CONFIG, MIXED, assert_same, pixels

from mrcnn_jax.data.pipeline import evaluation_batches
from mrcnn_jax.data.transforms import inference_sizes, padded_size, resize_and_pad


def evaluated(made) -> list[int]:
    return [int(image_id) for batch in made for image_id in batch.info.image_ids[batch.info.valid]]


@pytest.mark.parametrize("size", [1, 3, 4, 20])
def test_evaluation_sees_every_image_once_in_a_fixed_order(size):
    made = list(evaluation_batches(MIXED, CONFIG, size))
    landscape, portrait = [0, 2, 3, 4, 6, 7, 9, 10, 11, 13], [1, 5, 8, 12]
    assert evaluated(made) == [100 + i for i in landscape + portrait]
    shapes = {(size, *padded_size(CONFIG, portrait), 3) for portrait in (False, True)}
    assert {batch.images.shape for batch in made} == shapes
    full = [[True] * (count // size) + [False] * (count % size > 0) for count in (10, 4)]
    assert [batch.info.valid.all() for batch in made] == sum(full, [])
    for batch in made:
        padding = ~batch.info.valid
        assert (np.diff(padding.astype(int)) >= 0).all() and not padding[0]  # valid images come first
        assert not batch.images[padding].any() and (batch.sizes[padding] == batch.images.shape[1:3]).all()


def test_evaluation_images_are_those_of_the_data_set():
    for batch in evaluation_batches(MIXED, CONFIG, 3):
        for slot in np.flatnonzero(batch.info.valid):
            image = pixels(MIXED[batch.info.image_ids[slot] - 100])
            size, padded = inference_sizes(*image.shape[:2], CONFIG)
            np.testing.assert_array_equal(batch.images[slot], resize_and_pad(image, size, padded))
            assert tuple(batch.sizes[slot]) == size
            assert tuple(batch.info.original_sizes[slot]) == image.shape[:2]


@pytest.mark.parametrize("processes", [2, 3, 9])
def test_evaluation_is_shared_among_processes(processes):
    whole = list(evaluation_batches(MIXED, CONFIG, 3))
    for process in range(processes):
        share = list(evaluation_batches(MIXED, CONFIG, 3, process=process, processes=processes))
        assert_same(share, whole[process::processes])


@pytest.mark.parametrize("limit", [1, 5, 14, 99])
def test_evaluation_may_be_limited_to_the_first_images(limit):
    seen = evaluated(evaluation_batches(MIXED, CONFIG, 4, limit=limit))
    assert sorted(seen) == list(range(100, 100 + min(limit, 14)))


def test_evaluation_does_not_depend_on_the_number_of_threads():
    one, four = (evaluation_batches(MIXED, dataclasses.replace(CONFIG, threads=n), 3) for n in (1, 4))
    assert_same(list(one), list(four))
