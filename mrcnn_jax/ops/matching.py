"""Which object each anchor or proposal answers for, and which of them are sampled for training."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mrcnn_jax.ops.nms import top_k_of

FOREGROUND, BACKGROUND, IGNORED = 1, 0, -1


def match(
    overlaps: Float[Array, "G N"], valid: Bool[Array, "G"], high: float, low: float, low_quality: bool = False
) -> tuple[Int[Array, "N"], Int[Array, "N"]]:
    """The best object of each candidate, and its label.

    Args:
        overlaps: IoU of every object slot with every candidate.
        valid: which object slots are real; the others match nothing.
        high, low: FOREGROUND from high on, BACKGROUND below low, IGNORED between.
        low_quality: an object's best candidates are FOREGROUND whatever their IoU (Faster R-CNN, section 3.1.2), unless that best is 0:
            Detectron2 and torchvision would then make every candidate of zero overlap positive; here such an object goes without.
    Returns:
        index of the object with the greatest overlap (0 when there is none) and label, for each candidate.
    """
    overlaps = jnp.where(valid[:, None], overlaps, -1.0)
    index = jnp.argmax(overlaps, axis=0)
    best = jnp.max(overlaps, axis=0)
    labels = jnp.where(best >= high, FOREGROUND, jnp.where(best < low, BACKGROUND, IGNORED))
    if low_quality:
        best_of_object = jnp.max(overlaps, axis=1, keepdims=True)
        labels = jnp.where(jnp.any((overlaps == best_of_object) & (best_of_object > 0), axis=0), FOREGROUND, labels)
    return index, labels


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
    positive, positive_exists = top_k_of(labels == FOREGROUND, lottery, most_positive)
    background, background_exists = top_k_of(labels == BACKGROUND, lottery, count)
    number_positive = positive_exists.sum()
    slot = jnp.arange(count)
    is_positive = slot < number_positive
    after = jnp.maximum(slot - number_positive, 0)  # position among the background samples
    index = jnp.where(is_positive, jnp.pad(positive, (0, count - most_positive)), background[after])
    return index, is_positive, is_positive | background_exists[after]
