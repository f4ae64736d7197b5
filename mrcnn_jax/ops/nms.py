"""Non-maximum suppression and selection with fixed shapes."""

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.boxes import iou
from mrcnn_jax.ops.checks import check_shape
from mrcnn_jax.typing import Array, Bool, Float, Int


def nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, "N"],
    threshold: float | Float[Array, ""],
    valid: Bool[Array, "N"] | None = None,
    groups: Int[Array, "N"] | None = None,
) -> Bool[Array, "N"]:
    """Selects boxes by greedy non-maximum suppression.

    A box is suppressed by a kept box of higher score (of equal scores: of lower index) whose IoU with it
    exceeds the threshold; an IoU equal to the threshold is kept, as in torchvision and Detectron2.

    The greedy rule is solved as a fixed point on the sorted boxes: keep what no kept better box suppresses.
    Each sweep settles at least one more link of every chain of suppressions, so it ends exactly at the greedy
    answer, usually after a few sweeps. Memory is quadratic, about 10 N**2 bytes at most (4 GB for 20,000
    boxes): select the best few thousand first, for example with ``masked_top_k``.

    Args:
        boxes: (x1, y1, x2, y2), overlaps computed in at least float32; a box with a coordinate that is not
            finite is not kept and suppresses nothing.
        scores: of the boxes.
        threshold: maximum IoU of kept boxes.
        valid: boxes to consider; the others are not kept and suppress nothing.
        groups: classes or levels; boxes of different groups do not suppress each other.

    Returns:
        Whether each box is kept, in the order given.

    Raises:
        ValueError: for boxes, scores, valid or groups of other shapes.
    """
    check_shape("boxes", boxes, "N", 4)
    for name, array in (("scores", scores), ("valid", valid), ("groups", groups)):
        if array is not None:
            check_shape(name, array, boxes.shape[0])
    boxes = jnp.asarray(boxes)
    if jnp.finfo(boxes.dtype).bits < 32:
        boxes = boxes.astype(jnp.float32)  # areas would overflow
    finite = jnp.isfinite(boxes).all(axis=1)
    valid = finite if valid is None else valid & finite
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    boxes, valid = boxes[order], valid[order]
    better = jnp.tri(scores.size, k=-1, dtype=bool)  # [i, j]: j comes before i
    suppresses = (iou(boxes, boxes) > threshold) & better & valid[None, :]
    if groups is not None:
        groups = groups[order]
        suppresses &= groups[:, None] == groups[None, :]

    def sweep(state):
        keep, _ = state
        updated = valid & ~jnp.any(suppresses & keep[None, :], axis=1)
        return updated, jnp.any(updated != keep)

    keep, _ = jax.lax.while_loop(lambda state: state[1], sweep, (valid, jnp.any(valid)))
    return jnp.zeros_like(keep).at[order].set(keep)


def masked_top_k(
    keep: Bool[Array, "N"], scores: Float[Array, "N"], k: int
) -> tuple[Int[Array, "k"], Bool[Array, "k"]]:
    """Selects the k kept entries of highest score.

    Returns:
        Their indices, best first (of equal scores the lower index first), and whether each of the k is valid.
    """
    size = min(k, scores.size)
    _, index = jax.lax.top_k(jnp.where(keep, scores, -jnp.inf), size)
    index = jnp.pad(index, (0, k - size))
    return index, jnp.pad(keep[index[:size]], (0, k - size))
