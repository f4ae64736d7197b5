"""Tiles: they cover the image, and objects that are cut are joined again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_jax.detections import Detections
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.tiles import join_tiles, tile_image
from mrcnn_jax.run_length_masks import RunLengthMasks, encode_masks


def detections(masks: np.ndarray, scores, classes, boxes=None) -> Detections:
    """Detections with the masks' run-length codes and, unless given, their bounding boxes."""
    codes = RunLengthMasks([one["counts"] for one in encode_masks(masks)], *masks.shape[1:])
    if boxes is None:
        boxes = np.zeros((len(masks), 4), np.float32)
        for box, mask in zip(boxes, masks, strict=True):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return Detections(boxes, np.float32(scores), np.int32(classes), codes, class_names=("a", "b"))


def cut(whole: Detections, tile) -> Detections:
    """The detections that a perfect detector has in a tile."""
    x1, y1, x2, y2 = tile
    parts = np.asarray(whole.masks)[:, y1:y2, x1:x2]
    seen = parts.any(axis=(1, 2))
    return detections(parts[seen], whole.scores[seen], whole.class_ids[seen])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 70), st.sampled_from([0, 0.2, 0.5, 0.9]))
def test_tiles_cover_the_image_and_overlap(height, width, side, overlap):
    tiles = np.array(tile_image(height, width, side, overlap))
    covered = np.zeros((height, width), int)
    for x1, y1, x2, y2 in tiles:
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        assert x2 - x1 == min(side, width) and y2 - y1 == min(side, height)
        covered[y1:y2, x1:x2] += 1
    assert covered.min() >= 1
    starts = np.unique(tiles[:, 0])
    assert len(starts) == 1 or np.diff(starts).max() <= max(1, np.ceil(side * (1 - overlap)))


def test_an_image_of_the_tile_size_is_one_tile():
    assert tile_image(40, 60, 60) == [(0, 0, 60, 40)]
    with pytest.raises(InputError, match="must be a whole number of at least 1 pixel, not 0"):
        tile_image(40, 60, 0)
    with pytest.raises(InputError, match="between 0 and 0.9 of their side, not 1"):
        tile_image(40, 60, 10, 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_cut_objects_become_whole_again(seed):
    random, (height, width) = np.random.default_rng(seed), (90, 130)
    y, x = np.mgrid[:height, :width]
    masks = []
    for number in range(6):  # far from each other, some longer than a tile
        centre, radius = (20 + 45 * (number // 3), 20 + 45 * (number % 3)), random.uniform(6, 20)
        masks.append((y - centre[0]) ** 2 + (x - centre[1]) ** 2 * random.uniform(0.6, 1) < radius**2)
    masks = np.array([*masks, (y > 60) & (y < 88) & (x > 3) & (x < 127)])
    whole = detections(masks, random.permutation(np.linspace(0.3, 0.9, 7)), [0] * 6 + [1])
    whole = whole[np.argsort(-whole.scores)]
    tiles = tile_image(height, width, 50, 0.4)
    joined = join_tiles([cut(whole, tile) for tile in tiles], tiles, height, width)
    np.testing.assert_allclose(joined.scores, whole.scores)
    np.testing.assert_array_equal(joined.boxes, whole.boxes)
    np.testing.assert_array_equal(joined.class_ids, whole.class_ids)
    np.testing.assert_array_equal(np.asarray(joined.masks), np.asarray(whole.masks))
    assert joined.masks.counts == tuple(one["counts"] for one in encode_masks(np.asarray(whole.masks)))


def test_one_tile_gives_its_own_detections():
    masks = np.zeros((3, 20, 30), bool)
    masks[0, 2:9, 3:12] = masks[1, 3:9, 3:12] = masks[2, 15:20, 25:30] = True
    found = detections(masks, [0.9, 0.8, 0.7], [0, 0, 1])
    joined = join_tiles([found], [(0, 0, 30, 20)], 20, 30)
    assert joined.scores.tolist() == found.scores.tolist() and joined.masks.counts == found.masks.counts
    np.testing.assert_array_equal(joined.boxes, found.boxes)


def test_other_classes_and_other_places_stay_apart():
    mask = np.ones((1, 10, 10), bool)
    tiles = [(0, 0, 10, 10), (5, 0, 15, 10)]
    whole = np.float32([[0, 0, 10, 10]])
    left, right = detections(mask, [0.9], [0], whole), detections(mask, [0.8], [1], whole)
    assert len(join_tiles([left, right], tiles, 10, 15)) == 2
    joined = join_tiles([left, detections(mask, [0.8], [0], whole)], tiles, 10, 15)
    assert joined.boxes.tolist() == [[0, 0, 15, 10]] and np.asarray(joined.masks).all()
    lower = detections(mask & (np.arange(10)[:, None] > 6), [0.8], [0])
    assert len(join_tiles([left, lower], tiles, 10, 15)) == 2
    bare = [Detections(one.boxes, one.scores, one.class_ids) for one in (left, lower)]
    assert len(join_tiles(bare, tiles, 10, 15)) == 2 and len(join_tiles([bare[0]] * 2, tiles, 10, 15)) == 1


def test_no_detections_and_empty_masks():
    nothing = detections(np.zeros((0, 10, 10), bool), [], [])
    joined = join_tiles([nothing, nothing], [(0, 0, 10, 10), (5, 0, 15, 10)], 10, 15)
    assert len(joined) == 0 and joined.masks.shape == (0, 10, 15)
    empty = detections(np.zeros((1, 10, 10), bool), [0.5], [0], np.float32([[1, 1, 3, 3]]))
    assert not np.asarray(join_tiles([empty, nothing], [(0, 0, 10, 10), (5, 0, 15, 10)], 10, 15).masks).any()


def test_keypoints_move_with_their_tile():
    found = Detections(
        np.float32([[0, 0, 4, 4], [0, 0, 2, 2]]), np.float32([0.9, 0.8]), np.int32([0, 1]),
        keypoints=np.float32([[[1, 2, 0.5]], [[0, 0, 0]]]),
    )  # fmt: skip
    joined = join_tiles([found[:0], found], [(0, 0, 10, 10), (7, 3, 17, 13)], 13, 17)
    assert joined.keypoints.tolist() == [[[8, 5, 0.5]], [[0, 0, 0]]] and joined.masks is None


def test_one_tile_is_the_plain_result_and_tiles_find_the_same_objects(detector):
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    (plain,), (whole,) = (list(detector.stream([image], tile=tile)) for tile in (0, 96))
    assert whole.detections.masks.counts == plain.detections.masks.counts
    np.testing.assert_array_equal(whole.detections.boxes, plain.detections.boxes)
    (several,) = detector.stream([image], tile=48, tile_overlap=0.5)
    assert several.detections.masks.shape[1:] == (64, 96) and len(several.detections)


def test_unreadable_files_and_impossible_tiles(detector, tmp_path):
    (result,) = detector.stream([tmp_path / "none.png"], tile=32)
    assert "none.png" in str(result.error)
    with pytest.raises(InputError, match="the side of tiles"):
        detector.stream([], tile=-1)
    for wrong in ({"tile": "32"}, {"tile": 1.5}, {"tile": 32, "tile_overlap": "x"}):
        with pytest.raises(InputError, match="of tiles must be "):
            detector.stream([], **wrong)
