"""Mask voting: against the published rules pixel by pixel in float64, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from mrcnn_jax import ops

pytestmark = pytest.mark.usefixtures("strict_promotion")

HEIGHT, WIDTH, CLASSES, SIZE = 60, 90, 3, 7
vote = jax.jit(ops.vote_masks, static_argnames=("binarize", "frame_size"))


def stretch(mask, box, height=HEIGHT, width=WIDTH):
    """The mask over its box by bilinear interpolation, its border values up to the border of the box."""
    image = np.zeros((height, width))
    lines = []
    for first, last, pixels in ((box[1], box[3], height), (box[0], box[2], width)):
        centres = np.arange(pixels) + 0.5
        inside = (centres >= first) & (centres <= last)
        lines.append((inside, (centres[inside] - first) / (last - first) * len(mask) - 0.5))
    (rows, y), (columns, x) = lines
    cells = np.arange(len(mask))
    down = np.stack([np.interp(y, cells, column) for column in mask.T], axis=1)
    across = np.stack([np.interp(x, cells, row) for row in down])
    image[np.ix_(rows, columns)] = across
    return image


def resize(region, size):
    """Bilinear samples of a region at the centres of size x size bins, clamped to its border pixels."""
    height, width = region.shape
    y, x = (((np.arange(size) + 0.5) * side / size - 0.5) for side in (height, width))
    down = np.stack([np.interp(y, np.arange(height), column) for column in region.T], axis=1)
    return np.stack([np.interp(x, np.arange(width), row) for row in down])


def published(box, kind, boxes, masks, scores, binarize):
    """Box and mask of one detection by the rules of the paper and the released code."""
    similar = [index for index, other in enumerate(boxes) if oracles.iou(box, other) >= 0.5]
    total = np.zeros((HEIGHT, WIDTH))
    for index in similar:
        stretched = stretch(masks[index], boxes[index])
        votes = stretched >= 0.4 if binarize else stretched
        total += scores[index, kind] / scores[similar, kind].sum() * votes
    rows, columns = (np.flatnonzero((total >= 0.4).any(axis=axis)) for axis in (1, 0))
    tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    return tight, resize(total[tight[1] : tight[3], tight[0] : tight[2]], len(masks[0]))


@pytest.fixture(scope="module")
def instances():
    """Forty instances in three clusters, whose masks are blurred disks, and the best one of each cluster."""
    rng = np.random.default_rng(2)
    centres = np.float64([[20, 20, 24, 18], [60, 35, 40, 44], [75, 12, 12, 20]])
    cluster = rng.integers(0, 3, 40)
    centre, size = centres[cluster, :2], centres[cluster, 2:] * rng.uniform(0.8, 1.25, (40, 2))
    centre = centre + rng.normal(0, 0.08, (40, 2)) * size
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    boxes = np.clip(boxes, 0, [WIDTH, HEIGHT] * 2)
    radius = np.hypot(*(np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2))
    masks = 1 / (1 + np.exp(radius - rng.uniform(2, 4, (40, 1, 1)) + rng.normal(0, 0.5, (40, SIZE, SIZE))))
    scores = rng.dirichlet(np.ones(CLASSES + 1), 40)[:, :CLASSES]
    best = np.array([np.flatnonzero(cluster == group)[0] for group in range(3)])
    return np.float32(boxes), np.float32(masks), np.float32(scores), best


@pytest.mark.parametrize("binarize", [False, True])
def test_equals_the_published_rules(instances, binarize):
    boxes, masks, scores, best = instances
    chosen, kinds = boxes[[*best, best[0], 0]], np.int32([0, 1, 2, 2, 0])
    valid = np.array([True, True, True, True, False])
    new_boxes, new_masks = vote(chosen, kinds, valid, boxes, masks, scores, binarize=binarize)
    double = [np.float64(array) for array in (boxes, masks, scores)]
    for index in range(4):
        box, mask = published(np.float64(chosen[index]), kinds[index], *double, binarize)
        np.testing.assert_array_equal(new_boxes[index], box)
        np.testing.assert_allclose(new_masks[index], mask, atol=2e-6)
    assert not np.any(new_boxes[4]) and not np.any(new_masks[4])
    with pytest.raises(AssertionError):  # class counts
        np.testing.assert_allclose(new_masks[0], new_masks[3], atol=1e-3)


def test_a_small_frame_is_exact_to_one_of_its_cells(instances):
    boxes, masks, scores, best = instances
    given = boxes[best], np.int32([0, 1, 2]), np.ones(3, bool), boxes, masks, scores
    (exact, _), (coarse, _) = vote(*given), vote(*given, frame_size=32)
    assert not np.array_equal(exact, coarse)  # boxes of the second cluster reach over more than 32 pixels
    assert np.abs(exact - coarse).max() <= 2


def test_votes_by_hand():
    boxes = np.float32([[10, 10, 18, 18], [10, 10, 18, 18], [40, 40, 48, 48], [10, 10, 18, 18]])
    left, right = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32)
    left[:, :4], right[2:6, 4:] = 1, 1
    masks, scores = np.stack([left, right, left, right]), np.float32([[0.9], [0.6], [0.9], [0.0]])
    detections = boxes[:1], np.int32([0]), np.ones(1, bool)
    new_boxes, new_masks = vote(*detections, boxes, masks, scores)
    np.testing.assert_array_equal(new_boxes, [[10, 10, 18, 18]])  # 0.4 of the votes for the right half
    np.testing.assert_allclose(new_masks[0], 0.6 * left + 0.4 * right, atol=1e-6)
    new_boxes, new_masks = vote(*detections, boxes, masks, scores, threshold=0.5)
    np.testing.assert_array_equal(new_boxes, [[10, 10, 14, 18]])
    np.testing.assert_allclose(new_masks[0], 0.6, atol=1e-6)
    new_boxes, new_masks = vote(*detections, boxes, masks, scores, threshold=0.7)  # no pixel reaches it
    assert not np.any(new_boxes) and not np.any(new_masks)


@pytest.mark.parametrize("detections, instances", [(0, 4), (2, 0)])
def test_without_detections_or_instances(detections, instances):
    boxes, masks = ops.vote_masks(
        jnp.ones((detections, 4)), jnp.zeros(detections, jnp.int32), jnp.zeros(detections, bool),
        jnp.ones((instances, 4)), jnp.ones((instances, 5, 5)), jnp.ones((instances, 2)),
    )  # fmt: skip
    assert boxes.shape == (detections, 4) and masks.shape == (detections, 5, 5) and not boxes.any()


def test_boxes_of_half_precision():
    boxes, masks = jnp.asarray([[2, 2, 6, 8]], jnp.bfloat16), jnp.ones((1, 3, 3))
    others = jnp.zeros(1, int), jnp.ones(1, bool)
    found, voted = jax.eval_shape(ops.vote_masks, boxes, *others, boxes, masks, jnp.ones((1, 1)))
    assert found.dtype == voted.dtype == jnp.float32


def test_memory_does_not_grow_with_the_pairs():
    shape = jax.ShapeDtypeStruct
    detections = shape((100, 4), jnp.float32), shape((100,), jnp.int32), shape((100,), bool)
    instances = shape((600, 4), jnp.float32), shape((600, 28, 28), jnp.float32), shape((600, 80), jnp.float32)
    memory = jax.jit(ops.vote_masks).lower(*detections, *instances).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 32 * 2**20  # all pairs in full: 100 x 600 frames, 16 GB


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"classes": np.zeros(2, np.int32)}, r"classes must have shape \[1\], not \[2\]"),
        ({"instance_masks": np.zeros((4, 5, 6), np.float32)}, r"instance_masks must have shape \[4, 6, 6\]"),
        ({"instance_scores": np.zeros((3, 2), np.float32)}, r"instance_scores must have shape \[4, K\]"),
    ],
)
def test_wrong_shapes_are_refused_by_name(without_type_checks, wrong, message):
    right = {
        "boxes": np.zeros((1, 4), np.float32), "classes": np.zeros(1, np.int32), "valid": np.ones(1, bool),
        "instance_boxes": np.zeros((4, 4), np.float32), "instance_masks": np.zeros((4, 5, 5), np.float32),
        "instance_scores": np.zeros((4, 2), np.float32),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        ops.vote_masks(**(right | wrong))
