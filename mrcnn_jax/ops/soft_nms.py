"""Soft-NMS: overlapping boxes lose score instead of being dropped."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.boxes import at_least_float32, iou
from mrcnn_jax.ops.checks import check_shape
from mrcnn_jax.typing import Array, Bool, Float, Int, Shaped


@partial(jax.jit, static_argnames=("max_output", "method"))
def soft_nms(
    boxes: Shaped[Array, "N 4"],
    scores: Float[Array, "N"],
    max_output: int,
    valid: Bool[Array, "N"] | None = None,
    groups: Int[Array, "N"] | None = None,
    method: Literal["linear", "gaussian"] = "gaussian",
    threshold: float | Float[Array, ""] = 0.5,
    sigma: float | Float[Array, ""] = 0.5,
) -> tuple[Int[Array, "K"], Float[Array, "K"], Bool[Array, "K"]]:
    """Selects boxes one by one, the best first, and lowers the scores of those that overlap with it.

    "linear" multiplies the score of a box by 1 - IoU where the IoU exceeds the threshold, "gaussian" by
    exp(-IoU^2 / sigma) everywhere.

    Args:
        boxes: (x1, y1, x2, y2).
        scores: of the boxes, not negative.
        max_output: number of boxes to select, K = min(N, max_output).
        valid: boxes to consider.
        groups: classes; boxes of different groups do not affect each other.
        method: rule by which scores are lowered.
        threshold: IoU above which "linear" lowers scores.
        sigma: of "gaussian".

    Returns:
        Indices of the selected boxes, best first; their lowered scores; and whether each is valid, which none
        is beyond the number of valid boxes.

    Raises:
        ValueError: for boxes, scores, valid or groups of other shapes, or another method.

    References:
        Bodla et al., "Soft-NMS: improving object detection with one line of code", ICCV 2017.
    """
    if method not in ("linear", "gaussian"):
        raise ValueError(f'method must be "linear" or "gaussian", not {method!r}')
    check_shape("boxes", boxes, "N", 4)
    for name, array in (("scores", scores), ("valid", valid), ("groups", groups)):
        if array is not None:
            check_shape(name, array, boxes.shape[0])
    boxes, scores = jax.lax.stop_gradient((at_least_float32(jnp.asarray(boxes)), jnp.asarray(scores)))
    usable = jnp.isfinite(boxes).all(axis=1) & jnp.isfinite(scores)
    usable = usable if valid is None else usable & valid
    groups = jnp.zeros(len(scores), jnp.int32) if groups is None else jnp.asarray(groups)
    if not (count := min(len(scores), max_output)):
        return jnp.zeros(0, jnp.int32), scores[:0], usable[:0]

    def select(scores, _):
        best = jnp.argmax(scores)
        overlap = jnp.where(groups == groups[best], iou(boxes[best][None], boxes)[0], 0)
        factor = _factor(overlap, method, threshold, sigma).astype(scores.dtype)
        lowered = jnp.where(scores > -jnp.inf, scores * factor, -jnp.inf)
        return lowered.at[best].set(-jnp.inf), (best, scores[best])

    _, (index, selected) = jax.lax.scan(select, jnp.where(usable, scores, -jnp.inf), length=count)
    found = selected > -jnp.inf
    return index, jnp.where(found, selected, 0), found


def _factor(overlap, method, threshold, sigma):
    """Returns the numbers by which scores are multiplied."""
    if method == "gaussian":
        return jnp.exp(-(overlap**2) / sigma)
    return jnp.where(overlap > threshold, 1 - overlap, 1)
