"""Which object each anchor or proposal answers for, and which of them are sampled for training."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.nms import masked_top_k
from mrcnn_jax.typing import Array, Bool, Float, Int, PRNGKeyArray

FOREGROUND, BACKGROUND, IGNORED = 1, 0, -1


OverlapsOf = Callable[[Int[Array, ""]], Float[Array, "N"]]
"""Overlap of one object, by its slot, with every candidate."""


def match(
    overlaps_of: OverlapsOf, candidates: int, valid: Bool[Array, "G"], high: float, low: float, low_quality: bool = False
) -> tuple[Int[Array, "N"], Int[Array, "N"]]:
    """The best object of each candidate, and its label.

    Objects are visited one after the other, up to the last real one, so that no G x N matrix is ever written: with a hundred slots and a
    quarter of a million anchors it would be 100 MB an image.

    Args:
        overlaps_of: IoU of an object slot with every candidate.
        candidates: how many there are, N.
        valid: which object slots are real; the others match nothing.
        high, low: FOREGROUND from high on, BACKGROUND below low, IGNORED between.
        low_quality: an object's best candidates are FOREGROUND whatever their IoU (Faster R-CNN, section 3.1.2), unless that best is 0:
            Detectron2 and torchvision would then make every candidate of zero overlap positive; here such an object goes without.
    Returns:
        index of the object with the greatest overlap (the first of equals, 0 when there is none) and label, for each candidate.
    """

    def visit(slot, state):
        best, index, favourite = state
        overlap = jnp.where(valid[slot], overlaps_of(slot), -1.0)
        index = jnp.where(overlap > best, slot, index)
        if low_quality:
            most = jnp.max(overlap, initial=-1.0)
            favourite |= (overlap == most) & (most > 0)
        return jnp.maximum(best, overlap), index, favourite

    nothing = jnp.full(candidates, -1.0), jnp.zeros(candidates, jnp.int32), jnp.zeros(candidates, bool)
    best, index, favourite = jax.lax.fori_loop(0, _past_last(valid), visit, nothing)
    labels = jnp.where(best >= high, FOREGROUND, jnp.where(best < low, BACKGROUND, IGNORED))
    return index, jnp.where(favourite, FOREGROUND, labels)


def max_overlap(overlaps_of: OverlapsOf, candidates: int, valid: Bool[Array, "G"]) -> Float[Array, "N"]:
    """Each candidate's greatest overlap with a real object; 0 where there is none."""

    def visit(slot, best):
        return jnp.maximum(best, jnp.where(valid[slot], overlaps_of(slot), 0.0))

    return jax.lax.fori_loop(0, _past_last(valid), visit, jnp.zeros(candidates))


def _past_last(valid):
    return jnp.max(jnp.where(valid, jnp.arange(valid.size, dtype=jnp.int32) + 1, 0), initial=0)


def sample(
    key: PRNGKeyArray, labels: Int[Array, "N"], count: int, positive_fraction: float
) -> tuple[Int[Array, "count"], Bool[Array, "count"], Bool[Array, "count"]]:
    """Draws up to ``count`` candidates, at most ``count * positive_fraction`` of them FOREGROUND, the rest BACKGROUND, without replacement.

    Returns:
        index of each sample, which of them are positive, and which exist at all. Positives come first; the slots
        ``[0, count * positive_fraction)`` hold every positive.
    """
    most_positive = int(count * positive_fraction)
    lottery = jax.random.uniform(key, labels.shape)
    positive, positive_exists = masked_top_k(labels == FOREGROUND, lottery, most_positive)
    background, background_exists = masked_top_k(labels == BACKGROUND, lottery, count)
    number_positive = positive_exists.sum()
    slot = jnp.arange(count)
    is_positive = slot < number_positive
    after = jnp.maximum(slot - number_positive, 0)  # position among the background samples
    index = jnp.where(is_positive, jnp.pad(positive, (0, count - most_positive)), background[after])
    return index, is_positive, is_positive | background_exists[after]
