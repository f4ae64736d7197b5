"""Non-maximum suppression and selection with fixed shapes."""

from functools import partial

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.boxes import at_least_float32
from mrcnn_jax.ops.checks import check_shape
from mrcnn_jax.ops.manual_axes import vary_alike
from mrcnn_jax.typing import Array, Bool, Float, Int, Shaped

MAX_TILE = 256
"""Most boxes of a tile. On a CPU 128 takes a tenth less and 512 more; long tiles suit accelerators, where
each step of a loop costs."""


@partial(jax.jit, static_argnames="max_output")
def nms(
    boxes: Shaped[Array, "N 4"],
    scores: Shaped[Array, "N"],
    threshold: float | Float[Array, ""],
    valid: Bool[Array, "N"] | None = None,
    groups: Int[Array, "N"] | None = None,
    max_output: int | None = None,
) -> Bool[Array, "N"]:
    """Selects boxes by greedy non-maximum suppression.

    A box is suppressed by a kept box of higher score (of equal scores: of lower index) whose IoU with it
    exceeds the threshold; an IoU equal to the threshold is kept, as in torchvision and Detectron2.

    Boxes are visited in tiles in order of their scores. A tile is compared with the boxes kept so far, then
    with itself: the greedy rule is a fixed point, reached by sweeps that each settle at least one more link
    of every chain of suppressions. Memory is linear in N, and time is at most N times the number of kept
    boxes plus N times the square of a tile.

    Args:
        boxes: (x1, y1, x2, y2) of any real type; overlaps are computed in at least float32. A box with a
            coordinate that is not finite is not kept and suppresses nothing.
        scores: of the boxes, of any real type; NaN ranks last.
        threshold: maximum IoU of kept boxes.
        valid: boxes to consider; the others are not kept and suppress nothing.
        groups: classes or levels; boxes of different groups do not suppress each other.
        max_output: keep only this many, those of highest score, and stop there; None keeps all.

    Returns:
        Whether each box is kept, in the order given. No gradient flows through it.

    Raises:
        ValueError: for boxes, scores, valid or groups of other shapes.

    References:
        Felzenszwalb et al., "Object detection with discriminatively trained part-based models", 2010; here
        by IoU, as in Girshick et al., "Rich feature hierarchies" (R-CNN), 2014, section 2.2.
    """
    check_shape("boxes", boxes, "N", 4)
    for name, array in (("scores", scores), ("valid", valid), ("groups", groups)):
        if array is not None:
            check_shape(name, array, boxes.shape[0])
    boxes, scores = jax.lax.stop_gradient((jnp.asarray(boxes), jnp.asarray(scores)))
    boxes = at_least_float32(boxes)
    finite = jnp.isfinite(boxes).all(axis=1)
    valid = finite if valid is None else valid & finite
    groups = jnp.zeros_like(valid, jnp.int32) if groups is None else jnp.asarray(groups)
    order = jnp.argsort(jnp.where(valid, _finite(scores), -jnp.inf), stable=True, descending=True)
    limit = scores.size if max_output is None else max_output
    keep = _keep_of_sorted(boxes[order], groups[order], valid[order], threshold, limit)
    return jnp.zeros_like(keep).at[order].set(keep)


def masked_top_k(
    keep: Bool[Array, "N"], scores: Float[Array, "N"], k: int
) -> tuple[Int[Array, "k"], Bool[Array, "k"]]:
    """Selects the k kept entries of highest score; scores of -inf and NaN rank last.

    Returns:
        Their indices, best first (of equal scores the lower index first), and whether each of the k is valid.

    Raises:
        ValueError: if there are not as many scores as entries.
    """
    check_shape("keep", keep, "N")
    check_shape("scores", scores, keep.shape[0])
    keep, scores, size = jnp.asarray(keep), jnp.asarray(scores), min(k, scores.size)
    _, index = jax.lax.top_k(jnp.where(keep, _finite(scores), -jnp.inf), size)
    index = jnp.pad(index, (0, k - size))
    return index, jnp.pad(keep[index[:size]], (0, k - size))


def _finite(scores):
    """Replaces NaN and -inf by the lowest number, which ranks before the -inf of entries left out."""
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        scores = scores.astype(jnp.float32)
    lowest = jnp.finfo(scores.dtype).min
    return jnp.where(scores >= lowest, scores, jnp.full_like(scores, lowest))


def _keep_of_sorted(boxes, groups, valid, threshold, limit):
    """Greedy rule for boxes in order of their scores: at most the first ``limit`` that it keeps."""
    number = valid.size
    num_tiles = max(1, -(-number // MAX_TILE))
    tile = -(-number // (8 * num_tiles)) * 8  # tiles of equal length leave least to padding
    padding = num_tiles * tile - number
    sides = jnp.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    columns = jnp.concatenate([boxes, sides[:, :1] * sides[:, 1:]], axis=1).T
    columns = jnp.pad(columns, ((0, 0), (0, padding)))
    groups, valid = jnp.pad(groups, (0, padding)), jnp.pad(valid, (0, padding))
    columns, groups, valid, threshold = vary_alike(columns, groups, valid, threshold)
    num_visited = jnp.max(jnp.where(valid, jnp.arange(valid.size) + 1, 0), initial=0)
    better = jnp.tri(tile, k=-1, dtype=bool).T  # [i, j]: i comes before j

    def part(start):
        return [
            jax.lax.dynamic_slice_in_dim(array, start, tile, axis=-1) for array in (columns, groups, valid)
        ]

    def visit(state):
        start, count, kept, keep = state
        own, own_groups, alive = part(start)

        def compare(block, alive):
            others, other_groups = (
                jax.lax.dynamic_slice_in_dim(array, block * tile, tile, axis=-1) for array in kept
            )
            present = block * tile + jnp.arange(tile) < count
            suppressed = _suppresses(others, own, other_groups, own_groups, threshold) & present[:, None]
            return alive & ~suppressed.any(axis=0)

        alive = jax.lax.fori_loop(0, (count + tile - 1) // tile, compare, alive)
        suppresses = _suppresses(own, own, own_groups, own_groups, threshold) & better

        def sweep(state):
            keep, _ = state
            updated = alive & ~(suppresses & keep[:, None]).any(axis=0)
            return updated, (updated != keep).any()

        own_keep, _ = jax.lax.while_loop(lambda state: state[1], sweep, sweep((alive, None)))
        place = count + jnp.cumsum(own_keep) - 1
        own_keep &= place < limit
        place = jnp.where(own_keep, place, valid.size)
        kept = [
            array.at[..., place].set(values, mode="drop")
            for array, values in zip(kept, (own, own_groups), strict=True)
        ]
        keep = jax.lax.dynamic_update_slice_in_dim(keep, own_keep, start, 0)
        return start + tile, count + own_keep.sum(), kept, keep

    def is_unfinished(state):
        return (state[0] < num_visited) & (state[1] < limit)

    # ``kept`` is read as far as ``count``, so whatever it holds before will do
    start = 0, jnp.zeros_like(num_visited), [columns, groups], jnp.zeros_like(valid)
    *_, keep = jax.lax.while_loop(is_unfinished, visit, start)
    return keep[:number]


def _suppresses(others, own, other_groups, own_groups, threshold):
    """Returns whether each of the others, [n, 1], overlaps each own box, [1, n], by more than the threshold.

    Comparisons and areas computed once, unlike in ``iou``, let a CPU's compiler use vectors.
    """
    x1, y1, x2, y2, area = others[:, :, None]
    u1, v1, u2, v2, own_area = own[:, None, :]
    width = jnp.where(x2 < u2, x2, u2) - jnp.where(x1 > u1, x1, u1)
    height = jnp.where(y2 < v2, y2, v2) - jnp.where(y1 > v1, y1, v1)
    overlap = jnp.where(width > 0, width, 0) * jnp.where(height > 0, height, 0)
    union = jnp.where(overlap > 0, area + own_area - overlap, 1)
    return (overlap / union > threshold) & (other_groups[:, None] == own_groups[None, :])
