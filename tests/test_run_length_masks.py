"""Run-length codes of many masks at once: against pycocotools, and malformed ones."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_jax.run_length_masks import (
    RunLengthMasks,
    decode_counts,
    encode_counts,
    encode_masks,
    measure_counts,
)

SIZES = [(1, 1), (7, 5), (40_000, 50_000), (90, 120)]


def random_runs(rng, pixels):
    """Runs of lengths of all magnitudes, also of none, that fill an image."""
    edges = np.unique(np.float64(pixels) ** rng.random(rng.integers(0, 60)) // 1)
    runs = np.diff(edges, prepend=0, append=pixels).astype(int).tolist()
    return rng.permutation(runs).tolist() if rng.random() < 0.5 else [0, *runs]


@pytest.mark.parametrize("seed", range(5))
def test_codes_equal_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    sizes = [SIZES[i] for i in rng.integers(0, len(SIZES), 50)]
    runs = [random_runs(rng, height * width) for height, width in sizes]
    expected = [coco_mask.frPyObjects({"size": [*size], "counts": each}, *size)["counts"].decode()
                for size, each in zip(sizes, runs, strict=True)]  # fmt: skip
    codes = encode_counts(np.concatenate(runs), np.array(list(map(len, runs))))
    assert codes == expected
    assert [decode_counts(code).tolist() for code in codes] == runs
    pixels, areas = measure_counts(codes)
    assert pixels.tolist() == [height * width for height, width in sizes]
    assert areas.tolist() == [sum(each[1::2]) for each in runs]


@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (13, 7), (40, 60)])
def test_full_masks_are_encoded_as_by_pycocotools(height, width):
    rng = np.random.default_rng(height)
    masks = rng.random((6, height, width)) < np.array([0, 0.02, 0.3, 0.7, 0.98, 1])[:, None, None]
    expected = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    codes = encode_masks(masks)
    assert codes == [{"size": one["size"], "counts": one["counts"].decode()} for one in expected]
    runs = RunLengthMasks([one["counts"] for one in codes], height, width)
    assert encode_masks(runs) == codes and runs.areas.tolist() == masks.sum(axis=(1, 2)).tolist()


def test_no_codes():
    assert encode_counts(np.zeros(0, int), np.zeros(0, int)) == []
    assert [each.tolist() for each in measure_counts([])] == [[], []]


@pytest.mark.parametrize("flaw", ["", "~", "é", "o", "PP", "P" * 30, "oooooooo0", "O", "11O"])
def test_a_malformed_code_among_others_is_noticed(flaw):
    """Characters beyond the 64, a cut or too long number, a negative run."""
    whole = encode_counts(np.array([3, 2, 5]), np.array([3]))
    assert measure_counts(whole * 5) is not None
    assert measure_counts([*whole * 3, flaw, *whole]) is None
