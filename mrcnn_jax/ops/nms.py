"""Non-maximum suppression with fixed shapes."""

import jax
import jax.numpy as jnp

from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.typing import Array, Bool, Float, Int


def nms(
    boxes: Float[Array, "N 4"], scores: Float[Array, "N"], threshold: float, valid: Bool[Array, "N"] | None = None, groups: Int[Array, "N"] | None = None
) -> Bool[Array, "N"]:
    """Which boxes greedy non-maximum suppression keeps, in the order given.

    A box is suppressed by a kept box of higher score (ties: of lower index) whose IoU with it is greater than the threshold; an IoU equal to
    the threshold is kept, as in torchvision and Detectron2. Boxes of different groups (classes, levels) never suppress each other. Boxes that
    are not valid neither suppress nor are kept.

    The greedy rule is solved as a fixed point on the sorted boxes: keep what no kept better box suppresses. Each sweep settles at least one
    more link of every chain of suppressions, so it ends exactly at the greedy answer, usually after a few sweeps.
    """
    valid = jnp.ones(scores.shape, bool) if valid is None else valid
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    boxes, valid = boxes[order], valid[order]
    better = jnp.tri(scores.size, k=-1, dtype=bool)  # [i, j]: j comes before i
    suppresses = (box_ops.iou(boxes, boxes) > threshold) & better & valid[None, :]
    if groups is not None:
        groups = groups[order]
        suppresses &= groups[:, None] == groups[None, :]

    def sweep(state):
        keep, _ = state
        updated = valid & ~jnp.any(suppresses & keep[None, :], axis=1)
        return updated, jnp.any(updated != keep)

    keep, _ = jax.lax.while_loop(lambda state: state[1], sweep, (valid, jnp.any(valid)))
    return jnp.zeros_like(keep).at[order].set(keep)


def masked_top_k(keep: Bool[Array, "N"], scores: Float[Array, "N"], k: int) -> tuple[Int[Array, "k"], Bool[Array, "k"]]:
    """Indices of the k best kept entries, best first (ties in index order), and which of the k exist."""
    size = min(k, scores.size)
    _, index = jax.lax.top_k(jnp.where(keep, scores, -jnp.inf), size)
    index = jnp.pad(index, (0, k - size))
    return index, jnp.pad(keep[index[:size]], (0, k - size))
