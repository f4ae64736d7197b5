"""Matching of anchors and proposals to objects by overlap."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.checks import check_shape
from mrcnn_jax.typing import Array, Bool, Float, Int

FOREGROUND, BACKGROUND, IGNORED = 1, 0, -1

OverlapsOf = Callable[[Int[Array, ""]], Float[Array, "N"]]
"""Computes the overlap of one object, given by its slot, with every candidate."""


def match(
    overlaps_of: OverlapsOf,
    num_candidates: int,
    valid: Bool[Array, "G"],
    foreground_iou: float,
    background_iou: float,
    allow_low_quality: bool = False,
) -> tuple[Int[Array, "N"], Int[Array, "N"]]:
    """Matches each candidate to the object of greatest overlap and labels it.

    Objects are visited one after the other, up to the last valid one, so that no G x N matrix is written:
    with a hundred slots and a quarter of a million anchors it would take 100 MB an image.

    Args:
        overlaps_of: computes the IoU of an object slot with every candidate.
        num_candidates: N.
        valid: slots that hold an object; the others match nothing.
        foreground_iou: minimum IoU of FOREGROUND.
        background_iou: IoU below which a candidate is BACKGROUND; in between it is IGNORED.
        allow_low_quality: labels the best candidates of each object FOREGROUND whatever their IoU, unless it
            is 0: Detectron2 and torchvision would then make every candidate of zero overlap positive.

    Returns:
        Index of the best object (the first of equals, 0 where there is none) and label of each candidate.

    Raises:
        ValueError: for slots in more than one dimension.

    References:
        Ren et al., "Faster R-CNN", 2015, section 3.1.2 (low-quality matches).
    """
    check_shape("valid", valid, "G")
    valid = jnp.asarray(valid)
    if valid.size == 0:
        return jnp.zeros(num_candidates, jnp.int32), jnp.full(num_candidates, BACKGROUND)

    def visit(slot, state):
        best, index, is_best = state
        overlap = jnp.where(valid[slot], overlaps_of(slot), -1.0)
        index = jnp.where(overlap > best, slot, index)
        if allow_low_quality:
            most = jnp.max(overlap, initial=-1.0)
            is_best |= (overlap == most) & (most > 0)
        return jnp.maximum(best, overlap), index, is_best

    lowest = _like_overlaps(overlaps_of, valid, -1.0)
    start = lowest, jnp.zeros_like(lowest, jnp.int32), jnp.zeros_like(lowest, bool)
    best, index, is_best = jax.lax.fori_loop(0, _num_visited(valid), visit, start)
    labels = jnp.where(best < background_iou, BACKGROUND, IGNORED)
    labels = jnp.where(best >= foreground_iou, FOREGROUND, labels)
    return index, jnp.where(is_best, FOREGROUND, labels)


def max_overlap(overlaps_of: OverlapsOf, num_candidates: int, valid: Bool[Array, "G"]) -> Float[Array, "N"]:
    """Computes the greatest overlap of each candidate with a valid object; 0 where there is none.

    Raises:
        ValueError: for slots in more than one dimension.
    """
    check_shape("valid", valid, "G")
    valid = jnp.asarray(valid)
    if valid.size == 0:
        return jnp.zeros(num_candidates)

    def visit(slot, best):
        return jnp.maximum(best, jnp.where(valid[slot], overlaps_of(slot), 0.0))

    return jax.lax.fori_loop(0, _num_visited(valid), visit, _like_overlaps(overlaps_of, valid, 0.0))


def _num_visited(valid):
    """Number of slots up to the last valid one."""
    return jnp.max(jnp.where(valid, jnp.arange(valid.size, dtype=jnp.int32) + 1, 0), initial=0)


def _like_overlaps(overlaps_of, valid, value):
    """An array of one value with the type of overlaps, which under ``shard_map`` names the axes they vary on.

    The overlaps computed for it are unused, so that no program contains them.
    """
    return jnp.full_like(jnp.where(valid[0], overlaps_of(jnp.int32(0)), 0.0), value)
