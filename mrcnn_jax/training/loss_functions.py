"""Elementary losses, each a sum over what was sampled.

Logits of any precision are converted to float32: in bfloat16 a sum of a few hundred terms is already wrong.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from mrcnn_jax.typing import Array, Bool, Float, Int


class Term(NamedTuple):
    """A loss before normalisation."""

    total: Float[Array, ""]  # sum over this device's images
    count: Float[Array, ""] | Int[Array, ""] | int  # this device's share of the divisor


def smooth_l1(prediction: Float[Array, "*n"], target: Float[Array, "*n"], beta: float) -> Float[Array, "*n"]:
    """Computes 0.5 d^2 / beta if |d| < beta, else |d| - 0.5 beta (Fast R-CNN, equation 3); beta 0 is L1."""
    distance = jnp.abs(prediction.astype(jnp.float32) - target)
    if beta == 0:
        return jnp.where(distance == 0, 0, distance)  # without gradient at 0, where that of abs is 1 in JAX
    return jnp.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)


def objectness_loss(
    logits: Float[Array, "*n"], positive: Bool[Array, "*n"], valid: Bool[Array, "*n"]
) -> Float[Array, ""]:
    """Sums binary cross-entropy over the valid anchors."""
    return jnp.sum(_binary_cross_entropy(logits, positive) * valid)


def box_loss(
    deltas: Float[Array, "*n 4"], targets: Float[Array, "*n 4"], positive: Bool[Array, "*n"], beta: float
) -> Float[Array, ""]:
    """Sums smooth L1 over the four deltas of the positive boxes."""
    return jnp.sum(smooth_l1(deltas, targets, beta) * positive[..., None])


def class_loss(
    logits: Float[Array, "*n K1"], classes: Int[Array, "*n"], valid: Bool[Array, "*n"]
) -> Float[Array, ""]:
    """Sums cross-entropy over K classes and background (K1 = K + 1) over the valid RoIs."""
    return jnp.sum(_cross_entropy(logits, classes) * valid)


def mask_loss(
    logits: Float[Array, "*n M M"], targets: Float[Array, "*n M M"], positive: Bool[Array, "*n"]
) -> Float[Array, ""]:
    """Averages binary cross-entropy over the pixels of a mask; sums over positive RoIs."""
    return jnp.sum(_binary_cross_entropy(logits, targets).mean(axis=(-2, -1)) * positive)


def softmax_mask_loss(
    logits: Float[Array, "*n M M K1"], targets: Float[Array, "*n M M"], classes: Int[Array, "*n"],
    positive: Bool[Array, "*n"],
) -> Float[Array, ""]:  # fmt: skip
    """Averages cross-entropy over the pixels of a mask; sums over positive RoIs.

    Classes and background (index K) compete for every pixel, the alternative of table 2b. Targets are 0 or 1.
    """
    pixel_classes = jnp.where(targets > 0.5, classes[..., None, None], logits.shape[-1] - 1)
    return jnp.sum(_cross_entropy(logits, pixel_classes).mean(axis=(-2, -1)) * positive)


def keypoint_loss(
    logits: Float[Array, "*n J cells"], cells: Int[Array, "*n J"], valid: Bool[Array, "*n J"]
) -> Float[Array, ""]:
    """Sums cross-entropy over the cells of a RoI over the valid keypoints (section 5)."""
    return jnp.sum(_cross_entropy(logits, cells) * valid)


def _binary_cross_entropy(logits, targets):
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets.astype(jnp.float32))


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
