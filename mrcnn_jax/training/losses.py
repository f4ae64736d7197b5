"""L = L_rpn + L_cls + L_box + L_mask (section 3), each as a sum over what was sampled; the step divides.

Logits of any precision are taken as float32: in bfloat16 the sum of a few hundred terms is already wrong.
"""

import jax.numpy as jnp
import optax

from mrcnn_jax.typing import Array, Bool, Float, Int


def smooth_l1(prediction: Float[Array, "*n"], target: Float[Array, "*n"], beta: float) -> Float[Array, "*n"]:
    """Elementwise 0.5 d^2 / beta where |d| < beta, else |d| - 0.5 beta (Fast R-CNN, equation 3); beta 0 is L1."""
    distance = jnp.abs(prediction.astype(jnp.float32) - target)
    if beta == 0:
        return jnp.where(distance == 0, 0, distance)  # where both agree there is nothing to learn; the derivative of abs is 1 there
    return jnp.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)


def objectness_loss(logits: Float[Array, "*n"], positive: Bool[Array, "*n"], exists: Bool[Array, "*n"]) -> Float[Array, ""]:
    """Binary cross-entropy, summed over the sampled anchors."""
    return jnp.sum(_binary_cross_entropy(logits, positive) * exists)


def box_loss(deltas: Float[Array, "*n 4"], targets: Float[Array, "*n 4"], positive: Bool[Array, "*n"], beta: float) -> Float[Array, ""]:
    """Smooth L1, summed over the coordinates of the positive boxes."""
    return jnp.sum(smooth_l1(deltas, targets, beta) * positive[..., None])


def class_loss(logits: Float[Array, "*n K"], classes: Int[Array, "*n"], exists: Bool[Array, "*n"]) -> Float[Array, ""]:
    """Cross-entropy over classes and background, summed over the sampled RoIs."""
    return jnp.sum(_cross_entropy(logits, classes) * exists)


def mask_loss(logits: Float[Array, "*n M M"], targets: Float[Array, "*n M M"], positive: Bool[Array, "*n"]) -> Float[Array, ""]:
    """Per-pixel binary cross-entropy on the object's own class, averaged over the pixels of a mask, summed over positive RoIs."""
    return jnp.sum(_binary_cross_entropy(logits, targets).mean(axis=(-2, -1)) * positive)


def softmax_mask_loss(
    logits: Float[Array, "*n M M K+1"], targets: Float[Array, "*n M M"], classes: Int[Array, "*n"], positive: Bool[Array, "*n"]
) -> Float[Array, ""]:
    """Per-pixel multinomial cross-entropy over the K classes and the background (index K), averaged over the pixels of a mask, summed over
    positive RoIs: the alternative of table 2b, in which classes compete for a pixel. Targets are 0 or 1."""
    pixel_classes = jnp.where(targets > 0.5, classes[..., None, None], logits.shape[-1] - 1)
    return jnp.sum(_cross_entropy(logits, pixel_classes).mean(axis=(-2, -1)) * positive)


def keypoint_loss(logits: Float[Array, "*n J cells"], cells: Int[Array, "*n J"], valid: Bool[Array, "*n J"]) -> Float[Array, ""]:
    """Cross-entropy of a softmax over the positions in a box (section 5), summed over the valid keypoints."""
    return jnp.sum(_cross_entropy(logits, cells) * valid)


def _binary_cross_entropy(logits, targets):
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets.astype(jnp.float32))


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
